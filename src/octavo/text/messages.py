"""Chat messages as callers send them, brought into the form that a template was written for.

A template is written for plain strings ("string") or for lists of parts ("parts"); which one is read off its syntax
tree, after https://github.com/vllm-project/vllm/blob/v0.10.0/vllm/entrypoints/chat_utils.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from jinja2 import nodes

from octavo.core.errors import RequestError
from octavo.text.fields import check_names, string_in

ContentFormat = Literal["string", "parts"]

# Part types that are text, and the key that holds it.
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_PART_HINTS = frozenset({"type", "cache_control", "annotations", "logprobs"})
"""What clients send beside the text: marks for caching, which goes by tokens here, and parts of earlier answers."""
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_INSTEAD_OF_CONTENT = ("tool_calls", *_REASONING_NAMES)
_DEVELOPER, _SYSTEM = "developer", "system"


def prepare(
    messages: Sequence[dict[str, Any]],
    content_format: ContentFormat,
    *,
    wraps_strings: bool,
    knows_developer: bool = False,
) -> list[dict[str, Any]]:
    """Fresh messages for a template; the caller's are left as they are.

    A template that does not know the role `developer` gets it as `system`, which it stands for.

    Raises:
        RequestError: a message is malformed, or holds a part that is not text.
    """
    if not messages:
        raise RequestError("messages is empty; expected at least one.", param="messages")
    prepared = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"{where} is not an object with a role.", param=where)
        fresh = _with_reasoning(dict(message))
        if fresh["role"] == _DEVELOPER and not knows_developer:
            fresh["role"] = _SYSTEM
        if fresh.get("content") is None and not any(map(fresh.get, _INSTEAD_OF_CONTENT)):
            raise RequestError(
                f"{where}.content is missing; expected a string or a list of parts.",
                param=f"{where}.content",
            )
        if "content" in fresh:
            fresh["content"] = _content(fresh["content"], content_format, where, wraps_strings)
        if isinstance(fresh.get("tool_calls"), list):
            fresh["tool_calls"] = [_tool_call(call, where) for call in fresh["tool_calls"]]
        prepared.append(fresh)
    return prepared


def _content(
    content: object, content_format: ContentFormat, where: str, wraps_strings: bool
) -> object:
    if content is None:
        return None
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if wraps_strings else content
    if not isinstance(content, list):
        raise RequestError(
            f"{where}.content is of type {type(content).__name__}; expected a string or a list of parts.",
            param=f"{where}.content",
        )
    texts = [_part_text(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
    if content_format == "parts":
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise RequestError(f"{where} is not a content part with a type.", param=where)
    if kind not in _TEXT_PARTS:
        raise RequestError(
            f"{where}.type is {kind!r}; this model takes text alone ({', '.join(_TEXT_PARTS)}).",
            code="unsupported_content",
            param=f"{where}.type",
        )
    check_names(part, _PART_HINTS | {_TEXT_PARTS[kind]}, where)
    return string_in(part, _TEXT_PARTS[kind], where)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The reasoning of an earlier answer, under each name that templates read it by."""
    for name in _REASONING_NAMES:
        if message.get(name) is not None:
            return {"thinking": message[name], **message, "reasoning_content": message[name]}
    return message


def _tool_call(call: object, where: str) -> object:
    """The call with its arguments as an object, which templates expect; JSON that is broken stays text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise RequestError(
            f"{where}.tool_calls holds an entry without a function.", param=f"{where}.tool_calls"
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments:
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            # The model itself wrote it so; it has to see what it wrote.
            arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments or {}}}


def content_format_of(tree: nodes.Template) -> ContentFormat:
    """Whether a template loops over the parts of a message's content."""
    messages = _aliases(tree, {"messages"}, lambda node, known: _base_name(node) in known)
    items = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _base_name(loop.iter) in messages
    } | {"message"}
    contents = _aliases(
        tree,
        {name.name for macro in tree.find_all(nodes.Macro) for name in macro.args} & {"content"},
        lambda node, known: _reads_content(node, items) or _base_name(node) in known,
    )
    for loop in tree.find_all(nodes.For):
        if _reads_content(loop.iter, items) or _base_name(loop.iter) in contents:
            return "parts"
    return "string"


def knows_developer(tree: nodes.Template) -> bool:
    """Whether a template treats the role `developer` on its own."""
    return any(const.value == _DEVELOPER for const in tree.find_all(nodes.Const))


def tells_strings_apart(tree: nodes.Template) -> bool:
    """Whether a template asks anywhere if something is a string."""
    return any(test.name == "string" for test in tree.find_all(nodes.Test))


def _aliases(
    tree: nodes.Template, known: set[str], is_alias: Callable[[nodes.Node, set[str]], bool]
) -> set[str]:
    """`known` and every name that is assigned from one of them, directly or over others."""
    assigns = [
        (assign.target.name, assign.node)
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name)
    ]
    while True:
        new = {name for name, value in assigns if is_alias(value, known)} - known
        if not new:
            return known
        known = known | new


def _strip(node: nodes.Node | None) -> nodes.Node | None:
    """The expression under filters, tests and slices."""
    while True:
        if isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice):
            return node
        if not isinstance(node, nodes.Getitem | nodes.Filter | nodes.Test):
            return node
        node = node.node


def _base_name(node: nodes.Node | None) -> str | None:
    found = _strip(node)
    return found.name if isinstance(found, nodes.Name) else None


def _reads_content(node: nodes.Node | None, items: set[str]) -> bool:
    found = _strip(node)
    if isinstance(found, nodes.Getattr):
        return found.attr == "content" and _base_name(found.node) in items
    if isinstance(found, nodes.Getitem) and isinstance(found.arg, nodes.Const):
        return found.arg.value == "content" and _base_name(found.node) in items
    return False
