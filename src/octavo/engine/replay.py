"""The real scheduler, driven by a step log: as it went, and as it would have gone.

`Replay.follow` tells a scheduler what the recorded one was told, in the same order, and compares each plan with the
recorded one: from the start of a process on they are the same, because a scheduler knows nothing else. `Replay.simulate`
goes on by itself from there: requests come when they came and are as long as they were, and a step takes what the line
that the recorded steps were fitted to says. So what differs between two simulations is what they were asked to change.

No texts and no tokens are needed: blocks are known by name, and a token is as good as another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from octavo.cache.groups import KVCache
from octavo.core.errors import ErrorInfo
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.params import PoolingParams, SamplingParams
from octavo.core.plan import Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import PooledValues, SliceResult, StepResult
from octavo.core.sequence import UNKNOWN, Sequence
from octavo.core.steptime import StepTime
from octavo.meter.frames import (
    DIGEST_BYTES,
    Arrived,
    Ended,
    Forgot,
    Frame,
    Line,
    Named,
    Planned,
    Ran,
)
from octavo.meter.stepfile import Run, columns
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from octavo.scheduler.steptime import context_of

_END = 1
_TOKEN = 2
_NOTHING = PooledValues((0,), b"")


class Difference(NamedTuple):
    """The first step whose plan is not the recorded one."""

    step: int
    recorded: str
    replayed: str


class NamedCache(KVCache):
    """Blocks are named by the record instead of by their tokens; what it does not name is like nothing else."""

    names: dict[str, bytes]

    def _extend_names(self, sequence: Sequence, num_tokens: int) -> None:
        known = self.names.get(sequence.id, b"")
        for index in range(len(sequence.hashes), num_tokens // BLOCK_SIZE):
            digest = known[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            sequence.hashes.append(digest or f"{sequence.id}:{index}".encode())


_Slices = list[tuple[str, int, int, tuple[int, ...]]]


class _Flight(NamedTuple):
    """A step that was planned and has no results yet."""

    plan: StepPlan
    sequences: list[Sequence]
    """Slice by slice."""
    slices: _Slices
    """As the record has them."""
    is_ahead: bool
    """Whether the scheduler may have been told more since."""


@dataclass
class Times:
    """Of one request in a simulation, on the run's clock; None: not within it."""

    first_token: float | None = None
    ended: float | None = None


@dataclass
class Simulated:
    """What a simulation came to."""

    times: dict[str, Times] = field(default_factory=dict)
    num_steps: int = 0
    now: float = 0.0


class Replay:
    """One run, up to where it was followed."""

    def __init__(self, run: Run) -> None:
        machine = run.head.machine
        self.cache = NamedCache(machine.groups, enable_prefix_caching=machine.enable_prefix_caching)
        self.cache.names = {}
        limits = msgspec.convert(machine.limits, Limits)
        self.scheduler = Scheduler(limits, self.cache, POLICIES.load(machine.policy)())
        self.line = StepTime()
        """What a step is predicted to take, as last recorded."""
        self.num_steps = 0
        self.difference: Difference | None = None
        self._frames = run.frames
        self._at = 0
        self._ending: dict[str, Ended] = {}
        self._last: list[tuple[int, int, int]] = []
        self._flights: deque[_Flight] = deque()
        self._ids: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._ends: dict[int, Ended] = {}
        for frame in run.frames:
            if isinstance(frame, Arrived):
                self._ids[frame.number] = frame.id
                self._numbers[frame.id] = frame.number
            elif isinstance(frame, Ended):
                self._ends[frame.number] = frame
            elif isinstance(frame, Named):
                name = self._ids.get(frame.number)
                if name is not None:
                    self.cache.names[name] = self.cache.names.get(name, b"") + frame.digests

    # -- as it went ------------------------------------------------------------------------------------------------

    def follow(self, until: str | None = None) -> Difference | None:
        """Tell the scheduler what it was told, up to the end of the record or, with `until`, before that request comes.

        Returns:
            The first plan that is another than the recorded one, where it stops; None when all are the same.
        """
        while self._at < len(self._frames) and self.difference is None:
            frame = self._frames[self._at]
            if isinstance(frame, Arrived) and frame.id == until:
                break
            self._at += 1
            self._tell(frame)
        return self.difference

    def _tell(self, frame: Frame) -> None:
        scheduler = self.scheduler
        match frame:
            case Arrived():
                scheduler.add(self._request(frame))
            case Ended(number=number, how="cancel", reason=reason):
                scheduler.cancel(self._ids[number], reason)  # type: ignore[arg-type]  # as it was called
            case Ended(how="expired", now=now):
                scheduler.expire(now)
            case Forgot():
                self.cache.forget_prefixes()
            case Line(step_time=line):
                self.line = line
            case Planned():
                self._planned(frame)
            case Ran():
                self._ran(frame)
            case _:
                pass

    def _planned(self, frame: Planned) -> None:
        """Ask for a plan while the step before it runs, as the recorded scheduler was asked."""
        if self._flights:
            before = self._flights[-1]
            self.scheduler.foresee(before.plan, before.sequences)
        flight = self._plan(frame.now, is_ahead=True)
        if flight is not None:
            self._flights.append(flight)
        if (0 if flight is None else flight.plan.step) != frame.step:
            replayed = "no plan" if flight is None else f"a plan of step {flight.plan.step}"
            self.difference = Difference(frame.step, f"a plan of step {frame.step}", replayed)

    def _plan(self, now: float, *, is_ahead: bool) -> _Flight | None:
        plan = self.scheduler.schedule(now)
        if plan is None:
            return None
        return _Flight(plan, self.scheduler.planned(plan), self._slices(plan), is_ahead)

    def _ran(self, ran: Ran) -> None:
        flight = self._flights.popleft() if self._flights else None
        flight = flight or self._plan(ran.planned, is_ahead=False)
        self._last = columns(ran, self._last)
        blocks = dict(ran.blocks)
        recorded = [
            (self._ids[number], start, count, blocks.get(index, ()))
            for index, (number, start, count) in enumerate(self._last)
        ]
        if flight is None or recorded != flight.slices or flight.plan.step != ran.step:
            replayed = [] if flight is None else flight.slices
            self.difference = Difference(ran.step, str(recorded), str(replayed))
            return
        plan, sequences = flight.plan, flight.sequences
        self.num_steps += 1
        self._ending = self._ends_of_step()
        sampled = [1] * len(plan.slices) if ran.sampled is None else ran.sampled
        each = zip(plan.slices, sequences, sampled, strict=True)
        results = tuple([self._result(*told) for told in each])
        result = StepResult(step=plan.step, slices=results, elapsed_s=ran.elapsed_s)
        self._apply(flight, result, ran.begun + ran.elapsed_s)

    def _apply(self, flight: _Flight, result: StepResult, now: float) -> None:
        late = flight.sequences if flight.is_ahead else None
        self.scheduler.apply(flight.plan, result, now, late)

    def _slices(self, plan: StepPlan) -> _Slices:
        tables = {start.row: start.blocks[0] for start in plan.starts if start.blocks}
        return [
            (
                self.scheduler.places.by_row[piece.row].id,
                piece.start,
                piece.count,
                tables.get(piece.row) or (piece.new_blocks[0] if piece.new_blocks else ()),
            )
            for piece in plan.slices
        ]

    def _result(self, piece: Slice, sequence: Sequence, num_sampled: int) -> SliceResult:
        """As it was: so many tokens, and the end where it ended in this step."""
        end = self._ending.get(sequence.id)
        if num_sampled < 0:
            status = 500 if end is None or end.is_fault else 400
            error = ErrorInfo(code="replayed", message="as recorded.", status=status)
            return SliceResult(row=piece.row, error=error)
        if sequence.request.pooling is not None:
            return SliceResult(row=piece.row, pooled=_NOTHING if piece.sample else None)
        if end is not None:
            num_sampled = end.num_output - _num_known(sequence)
        is_over = end is not None and end.reason == "stop"
        return SliceResult(row=piece.row, token_ids=(_TOKEN,) * num_sampled, is_finished=is_over)

    def _ends_of_step(self) -> dict[str, Ended]:
        """Those that the record has of the step that was read last."""
        found: dict[str, Ended] = {}
        for at in range(self._at, len(self._frames)):
            frame = self._frames[at]
            if isinstance(frame, Ran):
                break
            if isinstance(frame, Ended) and frame.how == "step":
                found[self._ids[frame.number]] = frame
        return found

    def _request(self, frame: Arrived) -> Request:
        end = self._ends.get(frame.number)
        resumed = [_TOKEN] * frame.num_resumed
        if end is not None and end.how == "add" and end.reason == "stop" and resumed:
            resumed[-1] = _END
        is_whole = frame.is_whole
        return Request(
            id=frame.id,
            token_ids=(_TOKEN,) * frame.num_prompt,
            params=SamplingParams(prompt_logprobs=0 if is_whole and not frame.is_pooling else None),
            max_tokens=frame.max_tokens,
            seed=0,
            arrived=frame.at,
            index=frame.index,
            eos_token_ids=(_END,),
            priority=frame.priority,
            tenant=frame.tenant,
            weight=frame.weight,
            adapter=frame.adapter,
            deadline=frame.deadline,
            resumed=tuple(resumed),
            restarts=frame.restarts,
            pooling=PoolingParams(skip_reading_prefix_cache=is_whole) if frame.is_pooling else None,
        )

    # -- as it would have gone -------------------------------------------------------------------------------------

    def simulate(
        self, until: str, *, without: Collection[str] = (), most_steps: int = 200_000
    ) -> Simulated:
        """Go on until request `until` has its first token, or has ended, as if those `without` had never come."""
        line = self._line_ahead()
        todo = deque(self._frames[self._at :])
        found = Simulated(now=self._now(todo))
        scheduler = self.scheduler
        for name in without:
            scheduler.cancel(name)
        while self._flights:
            self._simulate_results(self._flights.popleft(), line, found)
        while found.num_steps < most_steps:
            self._let_come(todo, found, set(without))
            times = found.times.get(until)
            if times is not None and (times.first_token or times.ended):
                break
            if not self._simulate_step(line, found) and not self._skip(todo, found):
                break
        return found

    def _line_ahead(self) -> StepTime:
        """The last line of the record: what was learned later is no worse."""
        lines = [frame.step_time for frame in self._frames if isinstance(frame, Line)]
        return lines[-1] if lines else self.line

    def _now(self, todo: deque[Frame]) -> float:
        for frame in reversed(self._frames[: self._at]):
            if isinstance(frame, Ran):
                return frame.begun + frame.elapsed_s
        return next((frame.at for frame in todo if isinstance(frame, Arrived)), 0.0)

    def _let_come(self, todo: deque[Frame], found: Simulated, without: set[str]) -> None:
        """Everything that is to happen by now, but steps: those are the simulation's own."""
        while todo:
            frame = todo[0]
            if isinstance(frame, Arrived):
                if frame.at > found.now:
                    return
                if frame.id not in without:
                    self.scheduler.add(self._request(frame))
                    found.times[frame.id] = Times()
            elif isinstance(frame, Ended) and frame.how == "cancel":
                if frame.now > found.now:
                    return
                self.scheduler.cancel(self._ids[frame.number])
            elif isinstance(frame, Forgot):
                self.cache.forget_prefixes()
            todo.popleft()

    def _skip(self, todo: deque[Frame], found: Simulated) -> bool:
        """Nothing runs: on to what comes next."""
        for frame in todo:
            at = frame.at if isinstance(frame, Arrived) else None
            at = frame.now if isinstance(frame, Ended) and frame.how == "cancel" else at
            if at is not None and at > found.now:
                found.now = at
                return True
        return False

    def _simulate_step(self, line: StepTime, found: Simulated) -> bool:
        scheduler = self.scheduler
        for event in scheduler.expire(found.now):
            found.times.setdefault(event.id, Times()).ended = found.now
        flight = self._plan(found.now, is_ahead=False)
        if flight is not None:
            self._simulate_results(flight, line, found)
        return flight is not None

    def _simulate_results(self, flight: _Flight, line: StepTime, found: Simulated) -> None:
        plan, scheduler = flight.plan, self.scheduler
        elapsed = max(1e-6, line.predict(plan.num_tokens, context_of(plan)))
        found.now += elapsed
        found.num_steps += 1
        pairs = list(zip(plan.slices, flight.sequences, strict=True))
        results = tuple([self._made_up(piece, sequence) for piece, sequence in pairs])
        for name in [sequence.id for piece, sequence in pairs if piece.sample]:
            times = found.times.setdefault(name, Times())
            times.first_token = times.first_token or found.now
        before = set(scheduler.by_id)
        result = StepResult(step=plan.step, slices=results, elapsed_s=elapsed)
        self._apply(flight, result, found.now)
        for name in before - scheduler.by_id.keys():
            found.times.setdefault(name, Times()).ended = found.now

    def _made_up(self, piece: Slice, sequence: Sequence) -> SliceResult:
        """One token where one is sampled, until the request is as long as it was."""
        if sequence.request.pooling is not None:
            return SliceResult(row=piece.row, pooled=_NOTHING if piece.sample else None)
        if not piece.sample:
            return SliceResult(row=piece.row)
        end = self._end_of(sequence.id)
        is_over = end is not None and _num_known(sequence) + 1 >= end.num_output
        return SliceResult(row=piece.row, token_ids=(_TOKEN,), is_finished=is_over)

    def _end_of(self, request_id: str) -> Ended | None:
        number = self._numbers.get(request_id)
        return None if number is None else self._ends.get(number)


def _num_known(sequence: Sequence) -> int:
    """Output tokens, without one that a step under way is to bring."""
    return sequence.num_output - (sequence.token_ids[-1] == UNKNOWN)
