"""Which formats a model writes: as the operator says, or as its chat template shows beyond doubt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from octavo.core.registry import Registry
from octavo.text.parsers.output import Formats
from octavo.text.parsers.registry import REASONING, TOOL_CALLS

AUTO, NONE = "auto", "none"


class Chosen(NamedTuple):
    """The formats, and for each decision its name, value and reason."""

    formats: Formats
    decisions: tuple[tuple[str, str, str], ...]


def choose(templates: Iterable[str], *, tools: str = AUTO, reasoning: str = AUTO) -> Chosen:
    """The formats of a model with these chat templates. `auto` looks at them; `none` parses nothing.

    Raises:
        ConfigError: no parser of that name.
    """
    source = "\n".join(templates)
    thought, name, why = _row(REASONING, reasoning, source)
    calls, call_name, call_why = _row(TOOL_CALLS, tools, source)
    return Chosen(
        Formats(thought, calls),
        (
            (TOOL_CALLS.kind, call_name, call_why),
            (REASONING.kind, name, why),
        ),
    )


def _row(registry: Registry[Any], wanted: str, source: str) -> tuple[Any, str, str]:
    if wanted == NONE:
        return None, NONE, "as told"
    if wanted != AUTO:
        return registry.load(wanted), wanted, "as told"
    claiming: dict[int, tuple[str, Any]] = {}
    for name in registry:
        row = registry.load(name)
        if row.claims(source):
            claiming.setdefault(id(row), (name, row))
    if len(claiming) == 1:
        name, row = next(iter(claiming.values()))
        return row, name, "the chat template shows its markers"
    option = "--" + registry.kind.replace(" ", "-")
    if not claiming:
        return None, NONE, f"the chat template shows no known format; {option} names one"
    names = ", ".join(name for name, _ in claiming.values())
    return None, NONE, f"the chat template fits {names}; {option} decides"
