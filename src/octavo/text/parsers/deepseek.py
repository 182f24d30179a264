"""Calls between the marker tokens of DeepSeek: with a code fence around the arguments, or (3.1) without one."""

from __future__ import annotations

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Malformed, Rules, Steps, ToolFormat, Tools
from octavo.text.parsers.scan import MAX_NAME_CHARS, Scanner

_ALL, _END_ALL = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _SEPARATOR, _END_ONE = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE = "```json"
_MARKERS = (_ALL, _ONE, _SEPARATOR, _END_ONE, _END_ALL)


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    yield from _calls(scanner, is_fenced=True)


def _parse_bare(scanner: Scanner, tools: Tools) -> Steps[None]:
    yield from _calls(scanner, is_fenced=False)


def _calls(scanner: Scanner, *, is_fenced: bool) -> Steps[None]:
    while True:
        marker = yield from scanner.until((_ALL, _ONE), scanner.content)
        if not marker:
            return
        scanner.hold(marker)
        try:
            if marker == _ALL and not (yield from scanner.at((_ONE,))):
                raise Malformed(f"expected {_ONE!r}")
            yield from _call(scanner, is_fenced)
            while (yield from scanner.at((_ONE,))):
                yield from _call(scanner, is_fenced)
            yield from scanner.at((_END_ALL,))
            scanner.release()
        except Malformed as flaw:
            was_call = scanner.is_in_call
            yield from scanner.recover(flaw, (_END_ONE, _END_ALL))
            if was_call:
                yield from scanner.at((_END_ALL,))
        scanner.skip_layout()


def _call(scanner: Scanner, is_fenced: bool) -> Steps[None]:
    parts: list[str] = []
    if is_fenced:
        parts, _ = yield from _word(scanner, _SEPARATOR)  # the kind: function
    name, _ = yield from _word(scanner, _FENCE if is_fenced else _SEPARATOR)
    scanner.begin_call("".join(name))
    yield from scanner.value(scanner.arguments)
    if is_fenced:
        yield from scanner.at(("```",))
    scanner.end_call()
    if not (yield from scanner.at((_END_ONE,))) and (yield from scanner.peek()):
        raise Malformed(f"expected {_END_ONE!r}")
    scanner.hold()


def _word(scanner: Scanner, end: str) -> Steps[tuple[list[str], str]]:
    """Text up to a marker that must come."""
    parts: list[str] = []
    marker = yield from scanner.until((end, *_MARKERS), parts.append)
    if marker != end or not parts or sum(map(len, parts)) > MAX_NAME_CHARS:
        raise Malformed(f"expected a name and {end!r}")
    return parts, marker


def _demand(demand: Demand) -> Rules:
    return _grammar(demand, is_fenced=True)


def _demand_bare(demand: Demand) -> Rules:
    return _grammar(demand, is_fenced=False)


def _grammar(demand: Demand, *, is_fenced: bool) -> Rules:
    head = lark.lead(demand, _ALL)
    one, separator, end, tail = (lark.mark(demand.special_id, m) for m in _MARKERS[1:])
    if is_fenced:
        return lark.calls(
            demand,
            lambda tool, rule: (
                f'{one} "function" {separator} {lark.quote(tool.name + chr(10) + _FENCE + chr(10))} '
                f'{rule} "\\n```" {end}'
            ),
            before=head,
            between='"\\n"',
            after=tail,
        )
    return lark.calls(
        demand,
        lambda tool, rule: f"{one} {lark.quote(tool.name)} {separator} {rule} {end}",
        before=head,
        after=tail,
    )


def _claims(template: str) -> bool:
    return _ALL in template and _FENCE in template


def _claims_bare(template: str) -> bool:
    return _ALL in template and _FENCE not in template


FORMAT = ToolFormat(parse=_parse, markers=_MARKERS, claims=_claims, demand=_demand, trigger=_ALL)
BARE = ToolFormat(
    parse=_parse_bare, markers=_MARKERS, claims=_claims_bare, demand=_demand_bare, trigger=_ALL
)
