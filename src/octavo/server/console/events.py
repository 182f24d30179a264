"""GET /console/events: what the console draws, as server-sent events, some ten a second, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.core.errors import RequestError
from octavo.core.log import get_logger
from octavo.server.call import Call
from octavo.server.limits import ClientGone
from octavo.server.stream import EventStream, event

logger = get_logger(__name__)

MAX_FRAMES = 1_000_000
SLOW_S = 10.0
"""A reader that takes nothing for so long is dropped."""


async def events(call: Call) -> ASGIApp:
    """A stream without an end, or of `frames` events.

    Raises:
        RequestError: another query.
    """
    state = call.state
    count = _frames(call.scope["query_string"])
    frames = state.console.watch(count, lambda: state.is_draining or state.is_leaving)
    return _Timely(EventStream(_framed(frames), done=b""), call.id)


async def _framed(frames: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(frames):
        async for frame in frames:
            yield event(frame)


def _frames(query: bytes) -> int | None:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=8)
    if not given:
        return None
    (name, value), *more = given
    if name == "frames" and not more and value.isascii() and value.isdigit() and len(value) <= 7:
        count = int(value)
        if 1 <= count <= MAX_FRAMES:
            return count
    raise RequestError(
        f"the query is {query[:80].decode('latin-1')!r}; expected frames=1 to {MAX_FRAMES}, or none.",
        param="frames",
    )


class _Timely:
    """A response whose reader is gone when it takes nothing any more: it would hold the server's last words for ever."""

    def __init__(self, response: ASGIApp, call_id: str) -> None:
        self._response = response
        self._id = call_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, each message in time."""

        async def timely(message: Message) -> None:
            try:
                await asyncio.wait_for(send(message), SLOW_S)
            except TimeoutError:
                logger.warning("request %s: a console took nothing for %g s", self._id, SLOW_S)
                raise ClientGone from None

        await self._response(scope, receive, timely)
