"""Messages of the Anthropic shape, their blocks, tools and choices, to those of a chat call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.server.anthropic.schema import CountTokensBody, MessagesBody
from octavo.server.limits import MAX_CONTENT_PARTS, MAX_TOOL_DEPTH, check_depth
from octavo.server.schema import ChatBody
from octavo.server.state import AppState
from octavo.text.fields import check_names, string_in

_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_BLOCK_FIELDS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_THINKING_NAMES = ("enable_thinking", "thinking")
"""Variables by which templates switch reasoning on and off."""


def chat_body(body: CountTokensBody, state: AppState) -> ChatBody:
    """The chat call that answers a messages call.

    Raises:
        RequestError: naming what is malformed or cannot be honoured.
    """
    messages: list[dict[str, Any]] = []
    if body.system is not None:
        messages.append({"role": "system", "content": _texts(body.system, "system")})
    for index, message in enumerate(body.messages):
        messages += _message(message, f"messages[{index}]")
    choice = body.tool_choice
    more: dict[str, Any] = {}
    if isinstance(body, MessagesBody):
        more = {
            "stream": body.stream,
            "stop": body.stop_sequences,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "deadline_ms": body.deadline_ms,
            "ttft_slo_ms": body.ttft_slo_ms,
        }
    return ChatBody(
        model=body.model,
        messages=messages,
        tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools or [])],
        tool_choice=_choice(body),
        parallel_tool_calls=not (choice is not None and choice.disable_parallel_tool_use),
        chat_template_kwargs=_kwargs(body, state),
        thinking_token_budget=body.thinking.budget_tokens if body.thinking else None,
        reasoning_effort=body.output_config.effort if body.output_config else None,
        **more,
    )


def shape_of(body: CountTokensBody) -> StructuredOutputs | None:
    """The shape that the answer must have, if any."""
    wanted = body.output_config.format if body.output_config else None
    return StructuredOutputs(json=json.dumps(wanted.schema)) if wanted else None


def _choice(body: CountTokensBody) -> Any:
    choice = body.tool_choice
    if choice is None:
        return None
    if (choice.type == "tool") != (choice.name is not None):
        raise RequestError(
            "tool_choice.name goes with type tool, which needs it.", param="tool_choice.name"
        )
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": "auto", "any": "required", "none": "none"}[choice.type]


def _kwargs(body: CountTokensBody, state: AppState) -> dict[str, Any] | None:
    """Template arguments, with what `thinking` asks for."""
    thinking = body.thinking
    if thinking is None or thinking.type == "adaptive":
        return body.chat_template_kwargs
    known = state.chat_template.variables if state.chat_template else frozenset()
    name = next((name for name in _THINKING_NAMES if name in known), None)
    wants = thinking.type == "enabled"
    if name is None:
        # A model that cannot be switched does what it does; asking for just that is fine.
        if wants == (state.formats.reasoning is not None):
            return body.chat_template_kwargs
        raise RequestError(
            f"thinking is {thinking.type}, and this model's chat template cannot switch it.",
            param="thinking",
            code="unsupported_field",
            fix="Leave it out.",
        )
    return {name: wants, **(body.chat_template_kwargs or {})}


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type", "custom") not in ("custom", None):
        raise RequestError(
            f"{where}.type is {str(tool['type'])[:40]!r}; this server runs no tools of its own,"
            " expected 'custom'.",
            param=f"{where}.type",
            code="unsupported_field",
        )
    check_names(tool, _TOOL_FIELDS, where)
    function = {"name": tool.get("name")}
    for theirs, ours in (
        ("description", "description"),
        ("input_schema", "parameters"),
        ("strict", "strict"),
    ):
        if tool.get(theirs) is not None:
            function[ours] = tool[theirs]
    return {"type": "function", "function": function}


def _message(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """One message as chat messages: results of tools become messages of their own, in front of the text."""
    check_names(message, frozenset({"role", "content"}), where)
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise RequestError(
            f"{where}.role is {str(role)[:40]!r}; expected user or assistant.",
            param=f"{where}.role",
        )
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or len(content) > MAX_CONTENT_PARTS:
        raise RequestError(
            f"{where}.content is neither a string nor a list of at most {MAX_CONTENT_PARTS} blocks.",
            param=f"{where}.content",
        )
    texts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    results: list[dict[str, Any]] = []
    for index, block in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = _kind(block, place)
        if kind == "text":
            texts.append({"type": "text", "text": string_in(block, "text", place)})
        elif kind == "thinking":
            thoughts.append(string_in(block, "thinking", place))
        elif kind == "tool_use":
            calls.append(_call(block, place))
        else:
            results.append(_result(block, place))
    if (calls or thoughts) and role != "assistant" or results and role != "user":
        raise RequestError(
            f"{where}: tool_use and thinking are blocks of the assistant, tool_result of the user.",
            param=f"{where}.content",
        )
    if results and not texts:
        return results
    made: dict[str, Any] = {"role": role, "content": texts or ("" if not calls else None)}
    if thoughts:
        made["reasoning_content"] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return [*results, made]


def _kind(block: object, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or not isinstance(kind, str) or kind not in _BLOCK_FIELDS:
        raise RequestError(
            f"{where}.type is {str(kind)[:40]!r}; expected one of {', '.join(_BLOCK_FIELDS)}.",
            param=f"{where}.type",
            code="unsupported_content",
        )
    check_names(block, _BLOCK_FIELDS[kind], where)
    if block.get("citations"):
        raise RequestError(f"{where}.citations is not supported.", param=f"{where}.citations")
    return kind


def _call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise RequestError(f"{where}.input is not an object.", param=f"{where}.input")
    check_depth(arguments, MAX_TOOL_DEPTH, f"{where}.input")
    function = {
        "name": string_in(block, "name", where),
        "arguments": json.dumps(arguments, ensure_ascii=False),
    }
    return {"id": string_in(block, "id", where), "type": "function", "function": function}


def _result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    content = block.get("content")
    text = "" if content is None else _texts(content, f"{where}.content")
    if block.get("is_error"):
        # Chat templates know no failed result; the model has to be told in words.
        text = (
            f"Error: {text}"
            if isinstance(text, str)
            else [{"type": "text", "text": "Error:"}, *text]
        )
    return {
        "role": "tool",
        "tool_call_id": string_in(block, "tool_use_id", where),
        "content": text,
    }


def _texts(content: object, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError(f"{where} is neither a string nor a list of text blocks.", param=where)
    parts: list[dict[str, Any]] = []
    for index, block in enumerate(content):
        place = f"{where}[{index}]"
        if _kind(block, place) != "text":
            raise RequestError(f"{place}.type is not text.", param=f"{place}.type")
        parts.append({"type": "text", "text": string_in(block, "text", place)})
    return parts
