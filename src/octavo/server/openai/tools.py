"""The tools of a chat call: what the caller gives, checked, and what it asks to be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from octavo.core.errors import RequestError, did_you_mean
from octavo.server.limits import MAX_TOOL_DEPTH, check_depth
from octavo.server.schema import ChatBody
from octavo.text.parsers.base import Tool

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class FunctionBody(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A function, as callers describe it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A tool."""

    type: Literal["function"]
    function: FunctionBody


class _Named(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=64)]


class NamedChoice(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The function that must be called."""

    type: Literal["function"]
    function: _Named


class Asked(NamedTuple):
    """What a call asks of its tools."""

    tools: tuple[Tool, ...] = ()
    """Those that may be called; empty when none is to be."""
    shown: tuple[dict[str, Any], ...] = ()
    """What the chat template gets."""
    must_call: bool = False
    is_parallel: bool = True


def asked_tools(body: ChatBody) -> Asked:
    """The tools of a body and the choice among them.

    Raises:
        RequestError: a tool that is none, two of one name, or a choice that does not go with the tools.
    """
    choice = body.tool_choice
    if not body.tools:
        if choice == "required" or isinstance(choice, dict):
            raise RequestError(
                "tool_choice asks for a call, and tools is empty.", param="tool_choice"
            )
        return Asked()
    tools = _tools(body.tools)
    if choice == "none":
        return Asked()
    shown = tuple(_shown(given) for given in body.tools)
    is_parallel = body.parallel_tool_calls is not False
    if not isinstance(choice, dict):
        return Asked(tuple(tools.values()), shown, choice == "required", is_parallel)
    try:
        name = msgspec.convert(choice, NamedChoice).function.name
    except msgspec.ValidationError as error:
        raise RequestError(
            f"tool_choice names no function: {error}.",
            param="tool_choice",
            fix='Expected {"type": "function", "function": {"name": ...}}.',
        ) from error
    if name not in tools:
        raise RequestError(
            f"tool_choice names {name!r}, which is not in tools.{did_you_mean(name, tools)}",
            param="tool_choice.function.name",
        )
    return Asked((tools[name],), shown, True, False)


def check_tools(given: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tools that are none, where they are shown to the model alone. Raises RequestError."""
    _tools(given)


def _tools(given: Sequence[Mapping[str, Any]]) -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    for index, raw in enumerate(given):
        where = f"tools[{index}]"
        check_depth(raw, MAX_TOOL_DEPTH, where)
        try:
            function = msgspec.convert(raw, ToolBody).function
        except msgspec.ValidationError as error:
            reason, _, path = str(error).partition(" - at `$")
            raise RequestError(
                f"{where}{path.rstrip('`')}: {reason}.", param=f"{where}{path.rstrip('`')}"
            ) from error
        if not _NAME.fullmatch(function.name):
            raise RequestError(
                f"{where}.function.name is {function.name[:80]!r}; expected 1 to 64 letters, digits, "
                "'_', '-' or '.'.",
                param=f"{where}.function.name",
            )
        if function.name in tools:
            raise RequestError(
                f"two tools are named {function.name!r}.", param=f"{where}.function.name"
            )
        tools[function.name] = Tool(function.name, function.parameters or {}, bool(function.strict))
    return tools


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The tool as templates know it: `strict` is said to the server, not to the model."""
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {**tool, "function": function}
