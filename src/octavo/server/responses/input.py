"""Items of a responses call to chat messages, and its tools and choices to those of a chat call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.server.responses.schema import SAME_IN_CHAT, ResponsesBody
from octavo.server.schema import ChatBody
from octavo.text.fields import check_names, string_in

_ROLES = ("user", "assistant", "system", "developer")
_FIELDS: Mapping[str, frozenset[str]] = {
    "message": frozenset({"type", "role", "content", "id", "status", "phase"}),
    "function_call": frozenset({"type", "call_id", "name", "arguments", "id", "status"}),
    "function_call_output": frozenset({"type", "call_id", "output", "id", "status"}),
    "reasoning": frozenset({"type", "summary", "content", "id", "status", "encrypted_content"}),
}
_TOOL_FIELDS = frozenset({"type", "name", "description", "parameters", "strict"})


def chat_body(body: ResponsesBody, messages: list[dict[str, Any]]) -> ChatBody:
    """The chat call that answers a responses call."""
    same = {name: getattr(body, name) for name in SAME_IN_CHAT}
    return ChatBody(
        messages=messages,
        stream=body.stream,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or [])],
        tool_choice=_choice(body.tool_choice),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        **same,
    )


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(
            f"{where}.type is {str(tool.get('type'))[:40]!r}; this server runs no tools of its own,"
            " expected 'function'.",
            param=f"{where}.type",
            code="unsupported_field",
        )
    check_names(tool, _TOOL_FIELDS, where)
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _choice(choice: str | dict[str, Any] | None) -> Any:
    if not isinstance(choice, dict):
        return choice
    if set(choice) != {"type", "name"} or choice["type"] != "function":
        raise RequestError(
            "tool_choice names no function.",
            param="tool_choice",
            fix='Expected {"type": "function", "name": ...}, or auto, none or required.',
        )
    return {"type": "function", "function": {"name": choice["name"]}}


def items_of(given: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items of an input; a text is one message."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise RequestError("input is an empty list; expected at least one item.", param="input")
    return given


def messages_of(items: Sequence[Mapping[str, Any]], where: str = "input") -> list[dict[str, Any]]:
    """Chat messages. What the assistant thought, said and called in a row is one message.

    Raises:
        RequestError: an item that is none, or of a kind that this server does not know.
    """
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        place = f"{where}[{index}]"
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise RequestError(
                f"{place}.type is {str(kind)[:40]!r}; expected one of {', '.join(_FIELDS)}.",
                param=f"{place}.type",
                code="unsupported_field",
            )
        check_names(item, _FIELDS[kind], place)
        _ADD[kind](messages, item, place)
    return [_without_marks(message) for message in messages]


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise RequestError(
            f"{where}.role is {str(role)[:40]!r}; expected one of {', '.join(_ROLES)}.",
            param=f"{where}.role",
        )
    if role == "assistant":
        message = _assistant(messages, has_text=True)
        message["content"] = item.get("content")
    else:
        messages.append({"role": role, "content": item.get("content")})


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    call = {name: string_in(item, name, where) for name in ("call_id", "name", "arguments")}
    function = {"name": call["name"], "arguments": call["arguments"]}
    message = _assistant(messages)
    message.setdefault("tool_calls", []).append(
        {"id": call["call_id"], "type": "function", "function": function}
    )


def _add_output(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    call_id = string_in(item, "call_id", where)
    output = item.get("output")
    if not isinstance(output, str | list):
        raise RequestError(
            f"{where}.output is {type(output).__name__}; expected a string or a list of parts.",
            param=f"{where}.output",
        )
    messages.append({"role": "tool", "tool_call_id": call_id, "content": output})


def _add_reasoning(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    if item.get("encrypted_content") is not None:
        raise RequestError(
            f"{where}.encrypted_content is not supported: reasoning is not encrypted here.",
            param=f"{where}.encrypted_content",
            code="unsupported_field",
        )
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    if not isinstance(parts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{where}.content holds no texts.", param=f"{where}.content")
    message = _assistant(messages, has_reasoning=True)
    message["reasoning_content"] = "\n".join(str(text) for text in texts)


_ADD: Mapping[str, Callable[[list[dict[str, Any]], Mapping[str, Any], str], None]] = {
    "message": _add_message,
    "function_call": _add_call,
    "function_call_output": _add_output,
    "reasoning": _add_reasoning,
}


def _assistant(
    messages: list[dict[str, Any]], *, has_text: bool = False, has_reasoning: bool = False
) -> dict[str, Any]:
    """The assistant's message that goes on with this item: reasoning, then a text, then calls."""
    last = messages[-1] if messages else {}
    is_same = last.get("role") == "assistant" and not (
        (has_text and (last["content"] is not None or "tool_calls" in last)) or has_reasoning
    )
    if not is_same:
        messages.append({"role": "assistant", "content": None})
    return messages[-1]


def _without_marks(message: dict[str, Any]) -> dict[str, Any]:
    if message["content"] is None and len(message) == 2:
        return {**message, "content": ""}
    return message


def shape_of(body: ResponsesBody) -> StructuredOutputs | None:
    """The shape that `text.format` asks for; None for plain text. Raises RequestError."""
    shape = body.text.format if body.text else None
    if shape is None or shape == {"type": "text"}:
        return None
    if shape == {"type": "json_object"}:
        return StructuredOutputs(json_object=True)
    schema = shape.get("schema")
    known = {"type", "name", "description", "schema", "strict"}
    if shape.get("type") != "json_schema" or not isinstance(schema, dict) or set(shape) - known:
        raise RequestError(
            f"text.format is {msgspec.json.encode(shape)[:60].decode(errors='replace')}; expected type text,"
            " json_object, or json_schema with name and schema.",
            param="text.format",
        )
    return StructuredOutputs(json=json.dumps(schema))
