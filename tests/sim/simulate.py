"""A simulated engine: the real scheduler and cache, and a runner that knows what each position must hold.

The fake model's token at a position is a function of the prompt's tag, the choice index and the position, as with
counter-based sampling; so whatever the scheduler does, a request's output is known beforehand. The fake KV cache
stores in every slot which token at which position of which scope was computed there and checks, for each slice, that
all that attention would read is right: a wrong, freed or foreign block is found at once. Beside it run the epochs of the
real engine, which must not complain.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
import pytest
from msgspec.structs import replace

from octavo.cache.groups import KVCache, window_blocks
from octavo.core.errors import OverloadError
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.plan import Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import (
    Advanced,
    Chosen,
    Event,
    Failed,
    Finished,
    SliceResult,
    StepResult,
    TokenOut,
)
from octavo.core.sequence import Sequence
from octavo.engine.epochs import BlockEpochs
from octavo.scheduler import cohort, invariants
from octavo.scheduler.limits import MAX_PREEMPTIONS, PREFILL_SHARE, Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from overcommit import overcommit

T = TypeVar("T")
cohort_file = cohort.__file__

EOS = 1
MAX_BLOCKS = 20
"""Of the longest sequence."""
MAX_ROWS = 12
EVERY = 5
"""One workload of so many runs twice."""
CHECK_EVERY = 40
"""Steps, where sequences are watched: to check is to look at them."""


@dataclass
class Row:
    """What a rank knows of a running sequence."""

    request: Request
    token_ids: list[int]
    tables: list[list[int]]


def token_at(request: Request, position: int) -> int:
    """The token that the fake model samples for a position; EOS about once in 250."""
    value = random.Random(f"{request.seed}:{request.index}:{position}").random()
    return EOS if value < 0.004 else 2 + int(value * 1000)


def expected_output(request: Request) -> list[int]:
    """What the request must produce, whatever happens around it."""
    output: list[int] = []
    while len(output) < request.max_tokens:
        output.append(token_at(request, request.num_prompt + len(output)))
        if output[-1] == EOS:
            break
    return output


@dataclass
class FakeRunner:
    """Executes plans against a fake cache that remembers what is where."""

    groups: tuple[KVGroup, ...]
    rows: dict[int, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.slots: list[dict[int, tuple[str, int, tuple[int, ...]]]] = [{} for _ in self.groups]
        self.epochs = BlockEpochs(self.groups, MAX_ROWS, 2 * MAX_BLOCKS)
        self.tables_GRB = np.zeros((len(self.groups), MAX_ROWS, 2 * MAX_BLOCKS), np.int32)

    def run(self, plan: StepPlan) -> StepResult:
        for row in plan.ended:
            self.rows.pop(row, None)
        for start in plan.starts:
            tables = [list(table) for table in start.blocks]
            assert start.row not in self.rows, "row given out twice"
            self.rows[start.row] = Row(start.request, list(start.token_ids), tables)
            self.tables_GRB[:, start.row] = 0
            self.epochs.clear(start.row)
            self._give(start.row, [0] * len(tables), start.blocks, start.epochs)
        for piece in plan.slices:
            lengths = [len(table) for table in self.rows[piece.row].tables]
            self._give(piece.row, lengths, piece.new_blocks, piece.new_epochs)
            self._store(piece)
        if plan.slices:
            row_S = np.array([piece.row for piece in plan.slices])
            start_S = np.array([piece.start for piece in plan.slices])
            tables_GSB = [table_RB[row_S] for table_RB in self.tables_GRB]
            self.epochs.check(tables_GSB, self.tables_GRB, row_S, start_S)  # no false alarm
        slices: Chosen | tuple[SliceResult, ...]
        slices = tuple(self._result(piece) for piece in plan.slices)
        if slices and all(each.token_ids for each in slices):  # as the engine's runner says it
            rows = [each.row for each in slices]
            slices = Chosen(rows, [each.token_ids[0] for each in slices])
        elapsed = 0.01 + 0.0002 * plan.num_tokens
        return StepResult(step=plan.step, slices=slices, elapsed_s=elapsed)

    def _give(
        self,
        row: int,
        lengths: list[int],
        blocks: tuple[tuple[int, ...], ...],
        epochs: tuple[tuple[int, ...], ...],
    ) -> None:
        for group, (new, given) in enumerate(zip(blocks, epochs, strict=True)):
            at = lengths[group]
            self.tables_GRB[group, row, at : at + len(new)] = new
            self.epochs.give(group, row, at, new, given)

    def _store(self, piece: Slice) -> None:
        row = self.rows[piece.row]
        for index, new in enumerate(piece.new_blocks):
            row.tables[index].extend(new)
        for index, table in enumerate(row.tables):
            for position in range(piece.start, piece.start + piece.count):
                block = table[position // BLOCK_SIZE]
                assert block != 0, "token goes to the null block"
                self.slots[index][block * BLOCK_SIZE + position % BLOCK_SIZE] = self._content(
                    row, position
                )

    @staticmethod
    def _content(row: Row, position: int) -> tuple[str, int, tuple[int, ...]]:
        block_start = position // BLOCK_SIZE * BLOCK_SIZE
        head = row.token_ids[0], row.token_ids[position]
        return (row.request.cache_scope, position, (*head, row.token_ids[block_start]))

    def _result(self, piece: Slice) -> SliceResult:
        row = self.rows[piece.row]
        end = piece.start + piece.count
        for index, (group, table) in enumerate(zip(self.groups, row.tables, strict=True)):
            window = group.spec.window or end
            for position in range(max(0, piece.start - window + 1), end):
                slot = table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                assert self.slots[index].get(slot) == self._content(row, position), (
                    "foreign or stale KV read"
                )
        if not piece.sample:
            return SliceResult(row=piece.row)
        assert end == len(row.token_ids)
        token = token_at(row.request, end)
        row.token_ids.append(token)
        return SliceResult(row=piece.row, token_ids=(token,))


@dataclass
class Outcome:
    """What a workload came to."""

    steps: int
    finished: int
    aborted: int
    late: int
    preemptions: int
    alike: int
    """Steps whose results were taken for all sequences at once."""
    cached_tokens: int


def make_groups(rng: random.Random, chunk: int) -> tuple[KVGroup, ...]:
    """Full, window, or both; pools that hold between one and a few of the longest sequences."""
    full = KVSpec(num_kv_heads=1, head_dim=8)
    window = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=rng.choice([5, 16, 33, 64]))
    specs = rng.choice([[full], [full], [full, window], [window]])
    groups = [KVGroup(spec=spec, layers=(i,)) for i, spec in enumerate(specs)]
    return tuple(
        replace(group, num_blocks=1 + most + rng.choice([0, 4, 20]))
        for group in groups
        for most in [min(MAX_BLOCKS, window_blocks(group, chunk))]
    )


def make_request(rng: random.Random, number: int, max_model_len: int) -> Request:
    """A request that may share its prefix with others of its kind and scope."""
    length = rng.choice([1, 3, 15, 16, 17, 32, rng.randint(1, max_model_len // 2)])
    kind = rng.randrange(3)
    prefix = [10_000 + kind] + [10_100 + kind * 1000 + i for i in range(max_model_len)]
    shared = rng.choice([length, rng.randint(0, length)])
    ids = prefix[:shared] + [rng.randint(20_000, 30_000) for _ in range(length - shared)]
    max_tokens = rng.choice([1, 2, rng.randint(1, max_model_len - length)])
    request = Request(
        id=f"r{number}",
        token_ids=tuple(ids),
        params=SamplingParams(
            max_tokens=max_tokens, prompt_logprobs=0 if rng.random() < 0.05 else None
        ),
        max_tokens=max_tokens,
        seed=rng.getrandbits(40),
        arrived=float(number),
        eos_token_ids=(EOS,),
        priority=rng.choice([0, 0, 1, -1]),
        tenant=rng.choice(["", "b", "c"]),
        weight=rng.choice([1.0, 1.0, 3.0]),
        deadline=number + rng.randint(0, 900) if rng.random() < 0.03 else None,
        cache_scope=rng.choice(["", "a"]),
    )
    if rng.random() < 0.9:
        return request
    output = expected_output(request)
    had = rng.choice([len(output), rng.randint(0, len(output))])
    return replace(request, resumed=tuple(output[:had]), restarts=1)


class OneByOne(Scheduler):
    """The scheduler without what it does for all sequences at once."""

    def _schedule_cohort(self) -> None:
        return None


class Watched(Sequence):
    """A sequence that nobody may look at while it does not know its own tokens; but for the cohort, who tells it."""

    __slots__ = ()
    of: ClassVar[dict[int, Scheduler]] = {}
    """By `id`: who owns it."""

    def check(self) -> None:
        together = Watched.of[id(self)]._cohort
        if (
            together is None
            or not together.is_behind
            or sys._getframe(2).f_code.co_filename == cohort_file
        ):
            return
        for at, each in enumerate(together.sequences):
            known = Sequence.num_computed.__get__(each)  # type: ignore[attr-defined]
            assert each is not self or known == together._start_S[at], f"{self.request.id} lags"


def _watch(name: str) -> property:
    slot = getattr(Sequence, name)

    def read(self: Watched) -> object:
        self.check()
        return slot.__get__(self)

    return property(read, slot.__set__)


for _name in ("token_ids", "num_computed", "last_token_at"):
    setattr(Watched, _name, _watch(_name))


@dataclass
class Flight:
    """A step whose results are not told yet."""

    plan: StepPlan
    result: StepResult
    sequences: dict[Scheduler, list[Sequence]]

    def drop(self, ended: tuple[int, ...]) -> None:
        """Rows that changed hands since have no token, as with the engine's runner."""
        slices = self.result.slices
        if any(each.row in ended for each in slices):
            kept = [SliceResult(row=s.row) if s.row in ended else s for s in slices]
            self.result = replace(self.result, slices=tuple(kept))


@dataclass
class Twins:
    """A scheduler, and perhaps one that goes through its sequences one by one: told the same, they must say the same."""

    one: Scheduler
    other: OneByOne | None
    is_watched: bool
    """Whether the first one's sequences are, and are left alone between most steps."""
    is_ahead: bool = False
    """Whether a step is planned before the one before it has results."""

    def add(self, request: Request) -> list[Event]:
        events = self._ask(lambda scheduler: scheduler.add(request))
        sequence = self.one.places.by_id.get(request.id)
        if self.is_watched and sequence is not None:
            Watched.of[id(sequence)] = self.one
            sequence.__class__ = Watched
        return events

    def expire(self, now: float) -> list[Event]:
        return self._ask(lambda scheduler: scheduler.expire(now))

    def cancel(self, name: str) -> list[Event]:
        return self._ask(lambda scheduler: scheduler.cancel(name))

    def schedule(self, now: float) -> StepPlan | None:
        return self._ask(lambda scheduler: scheduler.schedule(now))

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> Ordered[Event]:
        return self._ask(lambda scheduler: scheduler.apply(plan, result, now))

    def planned(self, plan: StepPlan) -> dict[Scheduler, list[Sequence]]:
        """Of each, who is in the plan."""
        both = [self.one] if self.other is None else [self.one, self.other]
        return {scheduler: scheduler.planned(plan) for scheduler in both}

    def foresee(self, flight: Flight) -> None:
        self._ask(lambda scheduler: scheduler.foresee(flight.plan, flight.sequences[scheduler]))

    def land(self, flight: Flight, now: float) -> Ordered[Event]:
        plan, result, told = flight.plan, flight.result, flight.sequences
        return self._ask(lambda scheduler: scheduler.apply(plan, result, now, told[scheduler]))

    def _ask(self, ask: Callable[[Scheduler], T]) -> T:
        said = ask(self.one)
        if self.other is not None:
            assert said == ask(self.other)
            assert self.one.stats() == self.other.stats()
        return said


def run_workload(seed: int) -> Outcome:
    """Random limits, pools, arrivals and cancellations; every step checked, and of some workloads compared with what a
    scheduler says that goes through its sequences one by one. Raises AssertionError with the seed.
    """
    rng = random.Random(seed)
    max_model_len = MAX_BLOCKS * BLOCK_SIZE
    max_num_seqs = rng.choice([1, 4, 8, MAX_ROWS])
    chunks = rng.random() < 0.8
    most = [max_num_seqs + 1, max_num_seqs + 16, 64, 512] if chunks else [max_model_len, 512]
    limits = Limits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=rng.choice(most),
        enable_chunked_prefill=chunks,
        max_num_waiting=rng.choice([4096, 4096, 3]),
        max_model_len=max_model_len,
        prefill_share=rng.choice([PREFILL_SHARE, 1.0]),
        max_itl_s=rng.choice([None, None, 0.02, 1e-4]),
    )
    groups = make_groups(rng, limits.max_num_batched_tokens)
    cache = KVCache(groups, enable_prefix_caching=rng.random() < 0.8)
    policy = POLICIES.load(rng.choice(list(POLICIES)))
    scheduler = Scheduler(limits, cache, policy())
    twins = Twins(scheduler, None, is_watched=seed % 2 == 0, is_ahead=seed % 3 == 1)
    Watched.of.clear()
    if seed % EVERY == 0:
        again = KVCache(groups, enable_prefix_caching=cache.enable_prefix_caching)
        twins.other = OneByOne(limits, again, policy())
    if rng.random() < 0.5:
        overcommit(scheduler)
        if twins.other is not None:
            overcommit(twins.other)
    pending = [make_request(rng, i, max_model_len) for i in range(rng.randint(1, 24))]
    return _drive(rng, twins, FakeRunner(groups), pending, f"seed {seed}")


def _drive(
    rng: random.Random, twins: Twins, runner: FakeRunner, pending: list[Request], label: str
) -> Outcome:
    scheduler = twins.one
    requests = {request.id: request for request in pending}
    output = {request.id: list(request.resumed) for request in pending}
    ends: dict[str, Finished | Failed] = {}
    free_at_first = scheduler.cache.num_free
    steps = alike = 0
    flight: Flight | None = None
    while pending or scheduler.has_work or flight is not None:
        events: list[Event] = []
        while pending and rng.random() < 0.5:
            is_full = scheduler.accounts.num_waiting >= scheduler.limits.max_num_waiting
            if is_full and not pending[0].restarts:
                with pytest.raises(OverloadError):
                    twins.add(pending[0])
                break
            events += twins.add(pending.pop(0))
        events += twins.expire(float(steps))
        known = scheduler.places.by_id
        if rng.random() < 0.004 and known:
            events += twins.cancel(rng.choice(sorted(known)))
        if flight is not None:
            twins.foresee(flight)
        plan = twins.schedule(float(steps))
        is_idle = plan is None and flight is None
        assert not is_idle or not scheduler.has_work, f"{label}: work, but no plan"
        if plan is not None and not twins.is_watched:
            wrong = invariants.check_plan(scheduler, plan) + invariants.check(scheduler)
            assert not wrong, f"{label}: {wrong}"
        if twins.is_ahead:
            before, flight = flight, None
            if plan is not None:
                sequences = twins.planned(plan)
                flight = Flight(plan, runner.run(plan), sequences)
            if before is not None:
                before.drop(() if plan is None else plan.ended)
                said = twins.land(before, float(steps))
                events += said
                alike += isinstance(said, Advanced)
        elif plan is not None:
            said = twins.apply(plan, runner.run(plan), float(steps))
            events += said
            alike += isinstance(said, Advanced)
        if not twins.is_watched or steps % CHECK_EVERY == 0:
            wrong = invariants.check(scheduler)
            assert not wrong, f"{label}: {wrong}"
        for event in events:
            assert event.id not in ends, f"{label}: {event}"
            if isinstance(event, Failed):
                late = event.error.code == "deadline_exceeded"
                assert late and requests[event.id].deadline < steps, f"{label}: {event}"
            if isinstance(event, TokenOut):
                output[event.id].extend(event.token_ids)
            else:
                ends[event.id] = event
        steps += 1
        assert steps < 60_000, f"{label}: starved: {sorted(scheduler.by_id)}"
    return _verdict(label, requests, output, ends, scheduler, free_at_first, steps, alike)


def _verdict(label, requests, output, ends, scheduler, free_at_first, steps, alike) -> Outcome:  # type: ignore[no-untyped-def]
    assert set(ends) == set(requests), f"{label}: not every request ended"
    assert scheduler.cache.num_free == free_at_first, (
        f"{label}: pool did not return to its first count"
    )
    for name, end in ends.items():
        expected = expected_output(requests[name])
        got = output[name]
        if isinstance(end, Failed):
            assert got == expected[: len(got)], f"{label}: {name} output"
            continue
        assert got == (expected if end.reason != "abort" else expected[: len(got)]), (
            f"{label}: {name} output"
        )
        assert end.num_output == len(got)
        assert end.num_preemptions <= MAX_PREEMPTIONS, (
            f"{label}: {name} preempted {end.num_preemptions} times"
        )
    whole = [end for end in ends.values() if isinstance(end, Finished)]
    aborted = sum(end.reason == "abort" for end in whole)
    assert scheduler.accounts.queued_tokens == 0 and not scheduler.accounts.live, label
    return Outcome(
        steps=steps,
        finished=len(whole) - aborted,
        aborted=aborted,
        late=len(ends) - len(whole),
        preemptions=scheduler.counters.num_preemptions,
        alike=alike,
        cached_tokens=sum(end.num_cached for end in whole),
    )
