"""Open requests, whichever engine process they are in: what each caller has been told, and what to ask of the next one.

A request is open until its Finished or Failed lies in its queue. When an engine ends, what is open goes to the next one
with the tokens that its caller has: sampling is counter-based and rows do not depend on each other, so the rest comes out
as it would have. Knows no process and no socket.

A request that was in the steps of an engine when it ended, and of the next one when that ended, and said nothing in
between, is suspected. Suspects run one at a time, beside nothing but what has been heard of since the start. The one
under which the next engine ends fails, alone. Ends that came from outside, as `kill -9`, are no evidence: they come at any
time, and no request may fail of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec.structs import replace

from octavo.core.errors import ErrorInfo
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished, TokenOut

SUSPECT_AFTER = 2
GUILTY_AFTER = 3
"""Engines that ended under a request that said nothing, the first `SUSPECT_AFTER` in company and the last with it alone."""


Stage = Literal["waiting", "running", "elsewhere"]
"""Of a request, as the client knows it; elsewhere: not handed over yet, or ended and perhaps not read yet."""


class Lost(NamedTuple):
    """What was open when an engine ended."""

    num_running: int
    num_waiting: int
    failed: tuple[Request, ...]
    """Who were taken to be the cause."""


class Stream:
    """One open request. Owner: `Streams`; its caller reads `queue` alone."""

    def __init__(self, request: Request, restarts: int) -> None:
        self.request = request
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue()
        """What the engine says of it; None: its caller ends it."""
        self.is_sent = False
        """Whether the present engine has it."""
        self.is_running = False
        """Whether it has been in a step of the present engine."""
        self.restarts = restarts
        self.deaths = 0
        """Engines that ended with it in their steps since it last said anything."""
        self._token_ids: list[int] = []
        self._num_cached = 0
        self._admitted: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether its caller has some of the answer."""
        return bool(self._token_ids)

    @property
    def num_tokens(self) -> int:
        """What an engine that knows nothing of it has to compute before it says more."""
        return self.request.num_prompt + len(self._token_ids)

    @property
    def is_suspected(self) -> bool:
        """Whether it may be what engines end from."""
        return self.deaths >= SUSPECT_AFTER

    def submission(self) -> Request:
        """What to ask of an engine now."""
        if not self.restarts:
            return self.request
        return replace(self.request, resumed=tuple(self._token_ids), restarts=self.restarts)

    def run(self, at: float) -> None:
        """Its first step in the present engine begins."""
        self.is_running = True
        if self._admitted is None:
            self._admitted = at

    def take(self, event: Event, now: float) -> None:
        """Hand on what the engine says, as if there had been one engine only."""
        self.deaths = 0
        if isinstance(event, TokenOut):
            if not self._token_ids:
                self._first_token, self._num_cached = now, event.num_cached
                if self.restarts and event.admitted is not None:
                    event = replace(event, admitted=self._admitted)
            elif event.num_cached or event.admitted is not None:
                # Said again, by an engine that sent its own first tokens.
                event = replace(event, num_cached=0, admitted=None)
            self._last_token = now
            self._token_ids.extend(event.token_ids)
        elif isinstance(event, Finished) and self.restarts:
            event = self._whole(event)
        self.queue.put_nowait(event)

    def expired(self, now: float) -> ErrorInfo:
        """Why it is ended, as an engine would have said it."""
        request = self.request
        late = max(0.0, now - (request.deadline or now))
        return ErrorInfo(
            code="deadline_exceeded",
            message=f"the request's deadline passed {late:.3f} s ago, while it waited for an engine, "
            f"{now - request.arrived:.3f} s after it arrived; {len(self._token_ids)} of at most "
            f"{request.max_tokens} output tokens were made.",
            status=504,
            fix="Allow more time, or try again when the engine is back.",
        )

    def _whole(self, event: Finished) -> Finished:
        """An end with the times and counts of the whole request."""
        timing = event.timing
        return replace(
            event,
            num_cached=self._num_cached if self._token_ids else event.num_cached,
            timing=replace(
                timing,
                admitted=self._admitted if self._admitted is not None else timing.admitted,
                first_token=self._first_token or timing.first_token,
                last_token=timing.last_token or self._last_token,
            ),
        )


class Streams:
    """All open requests, in the order in which they came. Owner: the supervisor."""

    def __init__(self) -> None:
        self._open: dict[str, Stream] = {}
        self._held: dict[str, Stream] = {}
        self._tested: Stream | None = None

    def __len__(self) -> int:
        return len(self._open)

    def stage(self, request_id: str) -> Stage:
        """Where a request stands."""
        stream = self._open.get(request_id)
        if stream is None:
            return "elsewhere"
        return "running" if stream.is_running else "waiting"

    @property
    def num_begun(self) -> int:
        """Open requests whose callers have some of the answer."""
        return sum(stream.has_begun for stream in self._open.values())

    @property
    def num_tokens(self) -> int:
        """Of all open requests, those that the next engine has to compute before it says more."""
        return sum(stream.num_tokens for stream in self._open.values())

    @property
    def has_held(self) -> bool:
        """Whether requests are to be sent yet."""
        return bool(self._held)

    def open(self, request: Request, *, is_late: bool) -> Stream:
        """A new request; `is_late`: accepted while there is no engine."""
        assert request.id not in self._open, "request ids are unique"
        stream = Stream(request, int(is_late))
        self._open[request.id] = self._held[request.id] = stream
        return stream

    def close(self, request_id: str) -> bool:
        """Forget a request; whether the engine has it and has to be told."""
        stream = self._open.pop(request_id, None)
        self._held.pop(request_id, None)
        if stream is not None and stream is self._tested:
            self._tested = None
        return stream is not None and stream.is_sent

    def abort(self, request_id: str) -> None:
        """Its caller ends a request: its queue ends with None. Unknown ids are ignored."""
        stream = self._open.get(request_id)
        if stream is not None:
            stream.queue.put_nowait(None)

    @property
    def deadlines(self) -> list[tuple[float, str]]:
        """When what is to be sent yet is worth nothing any more, and its id."""
        return [
            (stream.request.deadline, request_id)
            for request_id, stream in self._held.items()
            if stream.request.deadline is not None
        ]

    def expire(self, request_id: str, now: float) -> None:
        """End a request whose deadline has passed if it is to be sent yet; an engine that has it ends it itself."""
        stream = self._held.pop(request_id, None)
        if stream is not None:
            del self._open[request_id]
            stream.queue.put_nowait(Failed(id=request_id, error=stream.expired(now)))

    def due(self) -> list[Request]:
        """What to send to the engine now, in order; a suspect comes alone, and the others wait until it is heard of."""
        if self._tested is not None:
            return []
        chosen = list(self._held.values())
        self._tested = next((stream for stream in chosen if stream.is_suspected), None)
        if self._tested is not None:
            chosen = [self._tested]
        for stream in chosen:
            del self._held[stream.request.id]
            stream.is_sent = True
        return [stream.submission() for stream in chosen]

    def start(self, ids: Sequence[str], at: float) -> None:
        """The engine takes these into its steps."""
        for request_id in ids:
            stream = self._open.get(request_id)
            if stream is not None:
                stream.run(at)

    def take(self, events: Sequence[Event], now: float) -> bool:
        """Hand events on to whom they concern; whether anyone was answered by them."""
        is_answer = False
        for event in events:
            stream = self._open.get(event.id)
            if stream is None:
                continue
            stream.take(event, now)
            if stream is self._tested:
                self._tested = None
            if isinstance(event, Finished | Failed):
                del self._open[event.id]
            is_answer = is_answer or not isinstance(event, Failed)
        return is_answer

    def lose(self, *, is_no_evidence: bool = False) -> Lost:
        """The engine has ended: everything open waits for the next one. `is_no_evidence`: no request is to be suspected."""
        tested, self._tested = self._tested, None
        num_running = 0
        for stream in self._open.values():
            stream.restarts += 1
            num_running += stream.is_running
            # What builds a grammar is in no step yet, and native code runs for it.
            is_in_hand = stream.is_running or (stream.is_sent and stream.request.grammar != "")
            stream.deaths += is_in_hand and not is_no_evidence
            stream.is_sent = stream.is_running = False
        failed: tuple[Request, ...] = ()
        if tested is not None and not is_no_evidence and tested.deaths >= GUILTY_AFTER:
            failed = (tested.request,)
            del self._open[tested.request.id]
            tested.queue.put_nowait(Failed(id=tested.request.id, error=_fault(tested.deaths)))
        self._held = dict(self._open)
        return Lost(num_running, len(self._open) + len(failed) - num_running, failed)

    def fail(self, error: ErrorInfo) -> None:
        """There will be no other engine."""
        for request_id, stream in self._open.items():
            stream.queue.put_nowait(Failed(id=request_id, error=error))
        self._open.clear()
        self._held.clear()
        self._tested = None


def _fault(deaths: int) -> ErrorInfo:
    return ErrorInfo(
        code="request_fault",
        message=f"{deaths} engine processes in a row ended while they ran this request, the last with "
        "nothing else to suspect.",
        status=500,
        fix="Do not send it again as it is; the engine's last log lines say what it ended from.",
    )
