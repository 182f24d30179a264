"""Answers as server-sent events, and the watch that ends the work of a caller who has left.

Knows ASGI messages and bytes; does not know what is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from octavo.core.errors import OctavoError
from octavo.server.errors import error_json
from octavo.server.limits import ClientGone

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(payload: bytes, name: str = "") -> bytes:
    """One event, maybe with a name. JSON holds no raw line break, so one data line is enough."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + payload + b"\n\n"


def error_event(error: OctavoError) -> bytes:
    """An error in the middle of a stream."""
    return event(error_json(error))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do `work` while the caller is there; the moment it leaves, cancel the work and wait for its end.

    Raises:
        ClientGone: the caller left first.
    """
    job = asyncio.create_task(work)
    watch = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((job, watch), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        return job.result()
    finally:
        job.cancel()
        watch.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """ASGI response: each item of `frames` is sent as it comes.

    Headers go out with the first frame, so an error before it is a plain error answer. One after it is sent as an
    event, as `on_error` writes it; then `last_words` (usage) and `done` follow, so that a reader always sees the end.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        last_words: Callable[[], bytes] = bytes,
        *,
        on_error: Callable[[OctavoError], bytes] = error_event,
        done: bytes = DONE,
    ) -> None:
        self._frames = frames
        self._last_words = last_words
        self._on_error = on_error
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the caller leaves."""
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        is_started = False
        async with aclosing(self._frames) as frames:
            try:
                async for frame in frames:
                    if not is_started:
                        is_started = True
                        await _start(send)
                    await _more(send, frame)
            except OctavoError as error:
                if not is_started:
                    raise
                await _more(send, self._on_error(error))
        if not is_started:
            await _start(send)
        end = self._last_words() + self._done
        await send({"type": "http.response.body", "body": end, "more_body": False})


async def _start(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})


async def _more(send: Send, frame: bytes) -> None:
    await send({"type": "http.response.body", "body": frame, "more_body": True})
