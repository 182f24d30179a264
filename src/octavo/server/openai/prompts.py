"""What callers send as a prompt, in any of its forms, to lists of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from octavo.core.errors import RequestError, did_you_mean
from octavo.core.pooling import no_generation
from octavo.engine.frontend import Frontend, output_limit
from octavo.server.limits import (
    MAX_CONTENT_PARTS,
    MAX_KWARGS_DEPTH,
    MAX_PROMPTS,
    check_depth,
)
from octavo.server.parse import Refuse, refuse_strictly
from octavo.server.schema import ChatBody, TokenizeBody
from octavo.server.unsupported import MESSAGE_FIELDS, MESSAGE_NEUTRAL
from octavo.text.chat import ChatTemplate

_INLINE_CHARS = 8192
"""Text up to this length is tokenized or rendered in place (under a millisecond); more goes to a thread."""
_MAX_TOOL_CALL_DEPTH = 32


async def completion_prompts(
    frontend: Frontend,
    prompt: str | list[Any],
    *,
    add_special_tokens: bool,
    is_truncated: bool = False,
) -> list[list[int]]:
    """Token ids of each prompt of a completions call. Those that `is_truncated` will shorten may be too long here.

    Raises:
        RequestError: an empty or mixed list, or something that is neither text nor token ids.
        ContextLengthError: a prompt that cannot fit.
    """
    if isinstance(prompt, str):
        return [await encode(frontend, prompt, add_special_tokens=add_special_tokens)]
    if not prompt:
        raise RequestError("prompt is an empty list; expected at least one entry.", param="prompt")
    kinds = set(map(type, prompt))
    if kinds == {int}:
        return [_token_ids(frontend, prompt, is_truncated)]
    if len(prompt) > MAX_PROMPTS:
        raise RequestError(
            f"prompt is a list of {len(prompt)}; expected at most {MAX_PROMPTS}.", param="prompt"
        )
    if kinds == {str}:
        return [
            await encode(frontend, text, add_special_tokens=add_special_tokens) for text in prompt
        ]
    if kinds == {list}:
        return [_token_ids(frontend, ids, is_truncated) for ids in prompt]
    raise RequestError(
        "prompt is a list of neither texts alone, token ids alone, nor lists of token ids alone.",
        param="prompt",
    )


def _token_ids(frontend: Frontend, ids: list[Any], is_truncated: bool) -> list[int]:
    if set(map(type, ids)) != {int}:
        raise RequestError(
            "prompt holds a list that is empty or has more than token ids in it.", param="prompt"
        )
    if not is_truncated:
        output_limit(len(ids), None, frontend.client.ready.max_model_len)
    return ids


async def encode(frontend: Frontend, text: str, *, add_special_tokens: bool) -> list[int]:
    """Text to ids, off the event loop when it is long. Raises as `Frontend.encode`."""
    if len(text) <= _INLINE_CHARS:
        return frontend.encode(text, add_special_tokens=add_special_tokens)
    return await frontend.aside(
        lambda: frontend.encode(text, add_special_tokens=add_special_tokens), len(text)
    )


async def chat_prompt(
    frontend: Frontend,
    template: ChatTemplate | None,
    body: ChatBody | TokenizeBody,
    refuse: Refuse = refuse_strictly,
    *,
    tools: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """Token ids of a conversation; `tools` as the template is to show them. Fields of messages that nobody would read go
    to `refuse`.

    Raises:
        RequestError: no template, or messages or arguments that it cannot take.
        ContextLengthError: a conversation that cannot fit.
    """
    messages = body.messages or []
    num_chars = check_messages(messages, refuse)
    kwargs = body.chat_template_kwargs
    if template is None:
        pooling = frontend.client.ready.pooling
        if pooling is not None:
            raise no_generation(pooling)
        raise RequestError(
            "this model has no chat template.",
            param="messages",
            code="no_chat_template",
            fix="Use /v1/completions, or start the server with --chat-template.",
        )
    kwargs = _known_kwargs(kwargs, template, refuse)
    continues = bool(body.continue_final_message)
    generates = body.add_generation_prompt
    arguments: dict[str, Any] = {
        "add_generation_prompt": not continues if generates is None else generates,
        "continue_final_message": continues,
        "kwargs": kwargs,
        "tools": list(tools) or None,
    }
    documents = body.documents if isinstance(body, ChatBody) else None
    if documents and "documents" not in template.variables:
        refuse(
            RequestError(
                "documents is set, and this model's chat template does not read documents.",
                param="documents",
                code="unsupported_field",
                fix="Put them into a message.",
            )
        )
    elif documents:
        arguments["documents"] = documents
        num_chars += sum(len(text) for one in documents for text in one.values())
    if num_chars <= _INLINE_CHARS and not kwargs and not tools:
        text = template.render(messages, **arguments)
    else:
        text = await frontend.aside(
            lambda: template.render(messages, **arguments), num_chars, has_template=True
        )
    return await encode(frontend, text, add_special_tokens=bool(body.add_special_tokens))


def echoed_text(body: ChatBody) -> str:
    """The text of the last message where it is the assistant's own, which is who answers; else nothing."""
    last = body.messages[-1]
    content = last.get("content")
    if last.get("role") != "assistant" or content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content)


def check_messages(messages: Sequence[dict[str, Any]], refuse: Refuse = refuse_strictly) -> int:
    """Refuse fields of messages that nobody would read, and nesting without bound. Returns their characters.

    Raises:
        RequestError: with the message and the field.
    """
    num_chars = 0
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        for name, value in list(message.items()):
            if name in MESSAGE_FIELDS:
                continue
            del message[name]
            short = name[:40]
            if name not in MESSAGE_NEUTRAL:
                refuse(
                    RequestError(
                        f"unknown field {short!r} in {where}.{did_you_mean(short, MESSAGE_FIELDS)}",
                        param=f"{where}.{short}",
                        code="unknown_field",
                    )
                )
            elif value is not None and value not in MESSAGE_NEUTRAL[name]:
                refuse(
                    RequestError(
                        f"{where}.{name} is not supported yet.",
                        param=f"{where}.{name}",
                        code="unsupported_field",
                    )
                )
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise RequestError(f"{where}.role is {role!r}; expected a name.", param=f"{where}.role")
        num_chars += _check_content(message.get("content"), f"{where}.content")
        check_depth(message.get("tool_calls"), _MAX_TOOL_CALL_DEPTH, f"{where}.tool_calls")
    return num_chars


def _check_content(content: object, where: str) -> int:
    if content is None or isinstance(content, str):
        return len(content or "")
    if not isinstance(content, list) or len(content) > MAX_CONTENT_PARTS:
        raise RequestError(
            f"{where} is neither a string nor a list of at most {MAX_CONTENT_PARTS} parts.",
            param=where,
        )
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return sum(len(text) for text in texts if isinstance(text, str))


def _known_kwargs(
    kwargs: Mapping[str, Any] | None, template: ChatTemplate, refuse: Refuse
) -> dict[str, Any] | None:
    """The arguments that the template reads; others go to `refuse`."""
    if kwargs is None:
        return None
    check_depth(dict(kwargs), MAX_KWARGS_DEPTH, "chat_template_kwargs")
    for name in kwargs:
        if name not in template.variables:
            short = name[:40]
            refuse(
                RequestError(
                    f"chat_template_kwargs sets {short!r}, which this model's template does not read."
                    + did_you_mean(short, template.variables),
                    param=f"chat_template_kwargs.{short}",
                    code="unknown_field",
                )
            )
    return {name: value for name, value in kwargs.items() if name in template.variables}
