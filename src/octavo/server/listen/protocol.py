"""uvicorn's HTTP/1.1 with a cap on what comes before a body, and calls that end with their connection. Knows no route."""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
ADMIN_KEY = "octavo.admin"
"""In the scope of calls that came through the admin socket."""


class Protocol(HttpToolsProtocol):
    """One connection. The parser below keeps a header until it ends, however long that takes."""

    _is_in_head = True
    _head_bytes = 0
    _cycles: tuple[RequestResponseCycle, ...] = ()
    """Calls that are not answered yet; more than one where they were sent without waiting."""

    def data_received(self, data: bytes) -> None:
        """Parse; hang up when the head goes on and on."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        # Looked at afterwards: what completes a head may bring a long body with it.
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The headers are longer than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        """Its headers are over."""
        self._is_in_head = False
        super().on_headers_complete()
        if self.cycle is not None:
            open_ones = (one for one in self._cycles if not one.response_complete)
            self._cycles = (*open_ones, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone: so are all its calls, not only the last."""
        self.pipeline.clear()
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def on_message_complete(self) -> None:
        """Its body is over; the next head follows."""
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_complete()


class AdminProtocol(Protocol):
    """A connection to the admin socket. No header and no path makes a call one: only the listener does."""

    def on_message_begin(self) -> None:
        """A call begins."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[ADMIN_KEY] = True
