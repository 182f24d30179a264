"""Reasoning between two markers at the beginning of the output, or behind one that the prompt ends with."""

from __future__ import annotations

from collections.abc import Callable

from octavo.text.parsers.base import ReasoningFormat, Steps
from octavo.text.parsers.scan import Scanner

_START, _END = "<think>", "</think>"


def reasoning_between(
    starts: tuple[str, ...], ends: tuple[str, ...]
) -> Callable[[Scanner, bool], Steps[None]]:
    """A parser of reasoning from one of `starts` to one of `ends`.

    Anywhere but at the beginning of the output these are text like any other.
    """

    def parse(scanner: Scanner, is_open: bool) -> Steps[None]:
        if not is_open:
            scanner.hold()
            if not (yield from scanner.at(starts)):
                scanner.unread()
                return
            scanner.release()
        scanner.skip_layout()
        scanner.begin_reasoning()
        marker = yield from scanner.until(ends, scanner.reasoning)
        scanner.end_reasoning(marker)

    return parse


def _claims(template: str) -> bool:
    return _START in template or _END in template


FORMAT = ReasoningFormat(
    parse=reasoning_between((_START,), (_END,)), starts=(_START,), ends=(_END,), claims=_claims
)
