"""Caps on what a call may send: bytes, time, fields, list lengths, nesting. Reads bodies; knows no endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Receive

from octavo.core.errors import RequestError
from octavo.server.errors import BodyTimeoutError, MediaTypeError, TooLargeError

MAX_BODY_BYTES = 16 << 20
MAX_HELD_BYTES = 16 * MAX_BODY_BYTES
"""Of bodies of calls under way, over all callers: what is parsed and rendered of them takes a few times as much."""
BODY_TIMEOUT_S = 60.0
MAX_WAIT_MS = 7 * 24 * 3600 * 1000
"""Longest deadline: a week."""
MAX_PROMPTS = 1024
MAX_INPUTS = 2048
"""Texts of one call for embeddings, scores or classes."""
MAX_CHOICES = 2048
"""Prompts times n of one call."""
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 1024
MAX_NAME_CHARS = 256
MAX_DESCRIPTION_CHARS = 16 << 10
MAX_TOOLS = 256
MAX_STRUCTURES = 256
MAX_TOOL_DEPTH = 32
MAX_PROMPT_TOKENS = 1 << 19
"""Of all prompts of a call together, where they come as ids."""
MAX_MESSAGE_FIELDS = 32
MAX_DOCUMENTS = 256
MAX_DOCUMENT_CHARS = 1 << 20
MAX_KWARGS = 64
MAX_KWARGS_BYTES = 64 << 10
MAX_KWARGS_DEPTH = 8

FIELD_BYTES = 128 << 10
"""Most JSON bytes of a field that `BIG_FIELD_BYTES` does not name: looked at before the field is decoded."""
BIG_FIELD_BYTES: Mapping[str, int] = {
    "prompt": MAX_BODY_BYTES,
    "suffix": MAX_BODY_BYTES,
    "messages": MAX_BODY_BYTES,
    "input": MAX_BODY_BYTES,
    "instructions": MAX_BODY_BYTES,
    "system": MAX_BODY_BYTES,
    "tokens": MAX_BODY_BYTES,
    "tools": 1 << 20,
    "text_1": MAX_BODY_BYTES,
    "text_2": MAX_BODY_BYTES,
    "query": MAX_BODY_BYTES,
    "queries": MAX_BODY_BYTES,
    "documents": MAX_BODY_BYTES,
    "allowed_token_ids": 4 << 20,
    "response_format": 2 << 20,
    "structured_outputs": 2 << 20,
    "chat_template_kwargs": MAX_KWARGS_BYTES,
}


MAX_DEPTHS: Mapping[str, int] = {
    "prompt": 3,
    "messages": 40,
    "chat_template_kwargs": MAX_KWARGS_DEPTH,
    "tools": MAX_TOOL_DEPTH + 4,
    "tool_choice": 4,
    "response_format": 140,
    "structured_outputs": 140,
    "input": 40,
    "documents": 4,
    "text": 140,
    "system": 8,
    "output_config": 140,
}
"""Levels of nesting of top-level fields in which JSON of any shape may stand; every such field has its row."""


class ClientGone(Exception):
    """The caller closed the connection; nobody is left to answer."""


async def read_body(
    receive: Receive, headers: Mapping[str, str], hold: Callable[[int], None] = lambda size: None
) -> bytes:
    """The whole JSON body of a call. `hold` is told of each part, before it is kept, and may refuse it.

    Raises:
        MediaTypeError: not application/json, or compressed.
        TooLargeError: more than MAX_BODY_BYTES, announced or sent.
        BodyTimeoutError: not complete after BODY_TIMEOUT_S.
        ClientGone: the caller left before it was complete.
    """
    # Asking for application/json keeps web pages from posting here without a CORS preflight.
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise MediaTypeError(
            f"content-type is {kind!r}; expected 'application/json'.",
            fix="With curl: -H 'Content-Type: application/json'.",
        )
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError("the body is compressed; expected plain JSON.")
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large(announced)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _collect(receive, hold)
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body was not complete after {BODY_TIMEOUT_S:g} s.") from error


async def _collect(receive: Receive, hold: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _too_large(f"at least {size}")
        hold(len(part))
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(given: str) -> TooLargeError:
    return TooLargeError(f"the body has {given} bytes; expected at most {MAX_BODY_BYTES}.")


def check_depth(value: object, most: int, param: str) -> None:
    """Refuse JSON values nested deeper than `most` levels.

    Raises:
        RequestError: with `param`.
    """
    level = [value]
    for _ in range(most):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise RequestError(f"{param} is nested deeper than {most} levels.", param=param)
