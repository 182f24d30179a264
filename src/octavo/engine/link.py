"""The engine's end of the Unix socket: non-blocking both ways, asleep when there is nothing to do."""

from __future__ import annotations

import contextlib
import select
import socket

from octavo.engine.ipc import (
    Abbreviation,
    FrameBuffer,
    FromEngine,
    ToEngine,
    decode_to_engine,
    frame,
)

_CHUNK = 1 << 18


class SocketLink:
    """Frames over a connected stream socket. Owner: the engine's thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._sock, select.POLLIN)
        self._bell, self._ringer = socket.socketpair()
        for end in (self._bell, self._ringer):
            end.setblocking(False)
        self._poller.register(self._bell, select.POLLIN)
        self._buffer = FrameBuffer()
        self._unsent = bytearray()
        self._abbreviation = Abbreviation()

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, sleeps until there is at least one, or somebody wakes it.

        Raises:
            ConnectionError: the client closed the connection.
            EngineError: the client sent what is no message.
        """
        messages: list[ToEngine] = []
        while not messages:
            readable = self._poll(None if wait else 0)
            if readable:
                data = self._sock.recv(_CHUNK)
                if not data:
                    raise ConnectionError("the client closed the connection")
                messages = [decode_to_engine(body) for body in self._buffer.feed(data)]
            if not wait or self._was_woken():
                break
        return messages

    def wake(self) -> None:
        """End the sleep in `receive`, or the next one. From any thread."""
        with contextlib.suppress(BlockingIOError):  # so many have rung already
            self._ringer.send(b"!")

    def _was_woken(self) -> bool:
        try:
            return bool(self._bell.recv(_CHUNK))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Nobody wakes it any more. The socket is its owner's."""
        self._bell.close()
        self._ringer.close()

    def send(self, message: FromEngine) -> None:
        """Queue a message and send what the socket takes; the rest goes out with later calls."""
        self._unsent += frame(self._abbreviation.shorten(message))
        self._flush()

    def flush(self) -> None:
        """Send everything, waiting for the reader."""
        while self._unsent:
            select.select([], [self._sock], [])
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def _poll(self, timeout: float | None) -> bool:
        """Wait for something to read or to be woken, sending what is unsent as the socket allows."""
        while True:
            wanted = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            self._poller.modify(self._sock, wanted)
            found = dict(self._poller.poll(timeout))
            state = found.get(self._sock.fileno(), 0)
            if state & select.POLLOUT:
                self._flush()
            # A hang-up or an error shows when it is read.
            readable = bool(state & ~select.POLLOUT)
            if readable or timeout == 0 or self._bell.fileno() in found:
                return readable
