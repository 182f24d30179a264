"""The engine process as seen from outside: start it, stream events from it, know its state. asyncio, no torch.

One client owns one engine process. The socket lies in a private folder (0700) and is 0600; the process dies with its
client. When the engine dies, every open stream ends with the cause and new requests are refused with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import EngineDeadError, ErrorInfo, from_info
from octavo.core.log import get_logger
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event, Failed, Finished, RequestTiming, TokenOut
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.child import EngineProcess
from octavo.engine.ipc import (
    Cancel,
    Events,
    Fatal,
    FromEngine,
    Loading,
    Ready,
    ResetPrefixCache,
    Shutdown,
    StartEngine,
    Submit,
    ToEngine,
    UseVocabulary,
    decode_from_engine,
    frame,
    read_frame,
)

logger = get_logger(__name__)

State = Literal["loading", "ready", "draining", "dead"]


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about the engine, for health endpoints."""

    state: State
    phase: str = ""
    fraction: float = 0.0
    reason: str = ""
    seconds_since_progress: float = 0.0
    """Since the last frame from the engine; grows while it is idle, too."""


class EngineClient:
    """Owner of an engine process. All methods belong to one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.stats = EngineStats()
        self.fatal: ErrorInfo | None = None
        self._ready: Ready | None = None
        self._knows_vocabulary = False
        self._ready_event = asyncio.Event()
        self._state: State = "loading"
        self._loading = Loading(phase="process", fraction=0.0)
        self._progress_at = time.monotonic()
        self._streams: dict[str, asyncio.Queue[Event | None]] = {}
        """None tells a stream that its caller ends it."""
        self._process: EngineProcess | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._outbox: list[bytes] = []
        self._reader_task: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process, before there is an event loop: it loads libraries until `start` connects to it."""
        assert self._process is None, "an engine is launched once"
        self._process = EngineProcess()

    def abandon(self) -> None:
        """End a process that was launched and never connected to."""
        if self._process is not None:
            self._process.abandon()

    async def start(self) -> None:
        """Start the process unless it was launched; returns when it is connected. Loading goes on; see `wait_ready`."""
        if self._process is None:
            self.launch()
        process = self._process
        assert process is not None
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()  # one engine per client; anyone else is turned away
            else:
                connected.set_result((reader, writer))

        server = await asyncio.start_unix_server(on_connect, sock=process.listener)
        exited = asyncio.create_task(process.wait())
        either: set[asyncio.Future[Any]] = {connected, exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        server.close()
        if not connected.done():
            connected.cancel()
            self._die(f"the engine process ended with code {exited.result()} before it connected")
            return
        exited.cancel()
        reader, self._writer = connected.result()
        self._send(StartEngine(config=self.config, asked_at=process.started_at))
        self._reader_task = asyncio.create_task(self._read(reader))

    async def wait_ready(self) -> Ready:
        """Wait until the engine takes requests.

        Raises:
            OperatorError: it could not start; the cause.
            EngineDeadError: it died on the way.
        """
        await self._ready_event.wait()
        return self.ready

    async def close(self) -> None:
        """Abort what runs and end the process: asked first, killed after two seconds."""
        if self._state != "dead":
            self._state = "draining"
            self._send(Shutdown())
        if self._process is not None and not self._process.has_ended:
            try:
                await asyncio.wait_for(self._process.wait(), 2.0)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._reader_task is not None:
            await self._reader_task
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        if self._process is not None:
            self._process.remove()

    async def __aenter__(self) -> EngineClient:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> Ready:
        """What was started.

        Raises:
            OperatorError: it could not start.
            EngineDeadError: it is loading, closing or dead.
        """
        if self._ready is not None and self._state == "ready":
            return self._ready
        if self.fatal is not None:
            raise from_info(self.fatal if self._ready is None else _unavailable(self.fatal))
        status = self.status()
        raise EngineDeadError(
            f"the engine is {status.state}{': ' if status.phase else ''}{status.phase}.",
            fix="Try again later.",
            retry_after_s=1.0,
        )

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        return None if self._process is None else self._process.pid

    def status(self) -> EngineStatus:
        """What state it is in and why."""
        return EngineStatus(
            state=self._state,
            phase=self._loading.phase if self._state == "loading" else "",
            fraction=self._loading.fraction if self._state == "loading" else 1.0,
            reason=self.fatal.one_line() if self.fatal is not None else "",
            seconds_since_progress=time.monotonic() - self._progress_at,
        )

    # -- requests --------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Submit, then yield events up to and including one Finished or Failed. Closing it early cancels.

        Raises:
            EngineDeadError: the engine cannot take requests.
        """
        self.ready  # noqa: B018  # raises unless ready
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        assert request.id not in self._streams, "request ids are unique"
        self._streams[request.id] = queue
        ended = False
        num_output = 0
        try:
            self._send(Submit(request))
            while not ended:
                event = await queue.get()
                if event is None:
                    yield aborted(request, num_output)
                    return
                if isinstance(event, TokenOut):
                    num_output += len(event.token_ids)
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            self._streams.pop(request.id, None)
            if not ended:
                self._send(Cancel((request.id,)))

    def cancel(self, request_id: str) -> None:
        """End a request at once, whatever the engine is doing: its events end with a Finished that says abort. Unknown
        ids are ignored.
        """
        queue = self._streams.get(request_id)
        if queue is not None:
            queue.put_nowait(None)

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tell the engine, once, what grammars are built for; before the first request with a grammar."""
        if not self._knows_vocabulary:
            self._knows_vocabulary = True
            self._send(UseVocabulary(vocabulary))

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes that nobody is using."""
        self._send(ResetPrefixCache())

    # -- wire ------------------------------------------------------------------------------------------------------

    def _send(self, message: ToEngine) -> None:
        """Queue a frame; those of one turn of the event loop go out together, so a batch starts as one."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(frame(message))

    def _flush(self) -> None:
        frames, self._outbox = b"".join(self._outbox), []
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Read frames until the engine is gone, then say why."""
        reason = ""
        try:
            while True:
                self._handle(decode_from_engine(await read_frame(reader)))
        except (asyncio.IncompleteReadError, ConnectionError):
            assert self._process is not None
            code = await self._process.wait()
            reason = f"the engine process ended with code {code}"
        except Exception as error:  # edge of the task: without it every stream would hang
            logger.exception("the connection to the engine broke")
            reason = f"the connection to the engine broke: {error}"
        self._die(reason)

    def _handle(self, message: FromEngine) -> None:
        self._progress_at = time.monotonic()
        match message:
            case Events(events, stats):
                self.stats = stats
                for event in events:
                    queue = self._streams.get(event.id)
                    if queue is not None:
                        queue.put_nowait(event)
            case Loading():
                self._loading = message
            case Ready():
                self._ready = message
                if self._state == "loading":  # it may have been told to stop meanwhile
                    self._state = "ready"
                self._ready_event.set()
            case Fatal(error):
                self.fatal = error

    def _die(self, reason: str) -> None:
        expected = self._state == "draining"
        self._state = "dead"
        if self.fatal is None and not expected:
            self.fatal = ErrorInfo(
                code="E-ENGINE-02",
                message=f"{reason}.",
                status=503,
                fix="The engine's own log lines are above; out of memory shows as code -9.",
            )
            logger.error("%s", self.fatal.one_line())
        info = self.fatal or ErrorInfo(
            code="engine_unavailable", message="the engine is shutting down.", status=503
        )
        for request_id, queue in self._streams.items():
            queue.put_nowait(Failed(id=request_id, error=_unavailable(info)))
        self._ready_event.set()


def aborted(request: Request, num_output: int = 0) -> Finished:
    """The end of a request whose caller ends it."""
    return Finished(
        id=request.id,
        reason="abort",
        stop_token=None,
        num_prompt=request.num_prompt,
        num_output=num_output,
        num_cached=0,
        num_preemptions=0,
        timing=RequestTiming(
            arrived=request.arrived, admitted=None, first_token=None, last_token=None
        ),
    )


def _unavailable(cause: ErrorInfo) -> ErrorInfo:
    """Why the engine ended, as what a request is told of it."""
    return msgspec.structs.replace(cause, code="engine_unavailable", status=503)
