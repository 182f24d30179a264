"""`x-timing`: where the time of a call went, beside its answer, for callers who ask by a header of that name.

A whole answer has it as a header, a stream as a comment before its last event, which readers of events pass over. Parts are
those of `meter/why.py` as far as the call itself knows them, in milliseconds; they sum to `total`. What steps were in
between is a question for /v1/requests/{id}.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Scope, Send

from octavo.meter.why import Why, explain
from octavo.server.running import Running

HEADER = "x-timing"


def wants_timing(scope: Scope) -> bool:
    """Whether a call asks for it."""
    return Headers(scope=scope).get(HEADER, "0").strip().lower() not in ("", "0", "false", "no")


def timing_of(running: Running) -> str:
    """As far as the call has come: `auth;dur=0.1, ..., total;dur=12.5`, as in the header Server-Timing."""
    request_id, stamps = running.marks.stamps(running.requests, running.generations)
    return written(explain(request_id, stamps))


def written(why: Why) -> str:
    """Parts in milliseconds, the total last."""
    shown = [f"{part.name};dur={part.seconds * 1000:.3f}" for part in why.parts]
    return ", ".join([*shown, f"total;dur={why.total_s * 1000:.3f}"])


class TimingSender:
    """Wraps an ASGI `send`."""

    def __init__(self, send: Send, running: Running) -> None:
        self._send = send
        self._running = running
        self._is_stream = False

    async def __call__(self, message: Message) -> None:
        """Pass on, with the timing where it belongs."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
            if not self._is_stream:
                headers[HEADER] = timing_of(self._running)
        elif self._is_stream and not message.get("more_body", False):
            told = f": {HEADER} {timing_of(self._running)}\n\n".encode()
            message = {**message, "body": told + message.get("body", b"")}
        await self._send(message)
