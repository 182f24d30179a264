"""`--lenient`: answers say which fields of the call were ignored. One place for every endpoint, whatever its shape.

Works on the bytes of an answer: a member `warnings` is put at the end of the JSON object, or of a stream's first event.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

_EVENT = b"data: {"


class Warned(msgspec.Struct, frozen=True, kw_only=True):
    """A field that was ignored."""

    param: str
    code: str
    """unknown_field or unsupported_field."""
    message: str


class WarningSender:
    """Passes one answer on, with the warnings in it. Refusals go as they are."""

    def __init__(self, send: Send, warnings: Sequence[Warned]) -> None:
        self._send = send
        self._member = b'"warnings":' + msgspec.json.encode(list(warnings)) + b"}"
        self._is_done = False
        self._start: Message | None = None
        """Held back until the length of a JSON body is known."""

    async def __call__(self, message: Message) -> None:
        """The next ASGI message."""
        if self._is_done:
            await self._send(message)
        elif message["type"] == "http.response.start":
            kind = MutableHeaders(scope=message).get("content-type", "")
            if message["status"] == 200 and kind.startswith("application/json"):
                self._start = message
                return
            self._is_done = not kind.startswith("text/event-stream")
            await self._send(message)
        elif self._start is not None:
            await self._whole(message["body"], self._start)
        else:
            await self._send({**message, "body": self._in_first_event(message.get("body", b""))})

    async def _whole(self, body: bytes, start: Message) -> None:
        self._is_done = True
        if body.endswith(b"}"):
            body = self._spliced(body)
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _in_first_event(self, frame: bytes) -> bytes:
        at = frame.find(_EVENT)
        if at < 0:
            return frame
        self._is_done = True
        end = frame.index(b"\n", at)
        return frame[:at] + self._spliced(frame[at:end]) + frame[end:]

    def _spliced(self, json: bytes) -> bytes:
        comma = b"" if json.endswith(b"{}") else b","
        return json[:-1] + comma + self._member
