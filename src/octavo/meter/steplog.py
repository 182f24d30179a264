"""The append-only step log: who was in each step, for how many tokens, how long it took, why others waited.

Kept as a ring in memory, and as one on disk (`stepfile.py`) where a folder is named. Knows plans and results; what the
scheduler's reasons were it is told.
"""

from __future__ import annotations

import functools
import itertools
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec

from octavo.core.plan import Decodes, Slice, StepPlan
from octavo.core.result import Chosen, StepResult
from octavo.meter.frames import Frame

_MOST_PENDING = 64
_EVERY_S = 0.1
"""Steps that are added and not taken down yet: so many, and for so long, at most."""


class SliceRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request's share of a step."""

    id: str
    start: int
    """First position computed."""
    num_tokens: int
    """Tokens through the model, drafts included."""
    num_sampled: int
    """Tokens accepted."""
    failed: bool = False
    blocks: tuple[int, ...] = ()
    """Of KV group 0: blocks appended since the sequence's last slice; at its start all of them, shared ones first."""


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step. The token counts of its slices sum to `num_tokens`.

    In an unbroken log `at` + `elapsed_s` + the next `gap_s` is the next `at`: steps and gaps sum to the time of the clock.
    """

    step: int
    """Counts from 1 in each engine process."""
    at: float
    """Unix time of its start, by a clock that is set once per process and never stepped."""
    elapsed_s: float
    gap_s: float
    """Before it, since the last step's end (or the log's begin): idle, or the loop's own work."""
    num_tokens: int
    slices: tuple[SliceRecord, ...]
    started: tuple[str, ...] = ()
    """Requests whose first slice this is, since their (last) admission."""
    ended: tuple[str, ...] = ()
    """Requests that left since the last step: finished, failed, cancelled or preempted."""
    waiting: tuple[tuple[str, int], ...] = ()
    """Why those who wait did not run, and how many each; the reasons are those of `core/waits.py`."""
    heads: tuple[tuple[str, str], ...] = ()
    """Of those, who was looked at and had a reason of their own: id and reason. All others have the last of `waiting`."""
    num_blocks: int = 0
    """Usable KV blocks, over all groups."""
    num_free_blocks: int = 0
    """Of those, held by nobody while the step ran."""


class Waits(NamedTuple):
    """Why those who wait did not run, as `StepRecord` has it."""

    reasons: tuple[tuple[str, int], ...] = ()
    heads: tuple[tuple[str, str], ...] = ()


NO_WAITS = Waits()


class KeptStep(NamedTuple):
    """A step as the ring keeps it: numbers in arrays, because thousands of steps of hundreds of slices as objects would
    take a hundred megabytes and have the garbage collector walk over them.
    """

    step: int
    at: float
    elapsed_s: float
    gap_s: float
    ids: tuple[str, ...]
    starts: array[int]
    num_tokens: array[int]
    num_sampled: array[int]
    """-1 for a slice that failed."""
    blocks: dict[int, tuple[int, ...]]
    """By index of the slice, where there are any."""
    started: tuple[str, ...]
    ended: tuple[str, ...]
    waits: Waits
    num_blocks: int
    num_free_blocks: int

    def record(self) -> StepRecord:
        """As read back from a file."""
        columns = (self.ids, self.starts, self.num_tokens, self.num_sampled)
        return StepRecord(
            step=self.step,
            at=self.at,
            elapsed_s=self.elapsed_s,
            gap_s=self.gap_s,
            num_tokens=sum(self.num_tokens),
            slices=tuple(
                SliceRecord(
                    id=id_,
                    start=start,
                    num_tokens=count,
                    num_sampled=max(0, sampled),
                    failed=sampled < 0,
                    blocks=self.blocks.get(index, ()),
                )
                for index, (id_, start, count, sampled) in enumerate(zip(*columns, strict=True))
            ),
            started=self.started,
            ended=self.ended,
            waiting=self.waits.reasons,
            heads=self.waits.heads,
            num_blocks=self.num_blocks,
            num_free_blocks=self.num_free_blocks,
        )


class _Told(NamedTuple):
    """A step as it was added."""

    plan: StepPlan
    result: StepResult
    planned: float
    begun: float
    gap_s: float
    waits: Waits
    num_blocks: int
    num_free_blocks: int


class Tail(NamedTuple):
    """Steps after a position in the log."""

    records: tuple[StepRecord, ...]
    position: int
    """To ask from next time."""
    num_lost: int
    """Steps in between that the ring no longer had."""


class Sink(Protocol):
    """Where steps go beside the ring (`stepfile.StepFile`)."""

    epoch: float
    """What to add to the log's clock to get Unix time."""

    def step(self, kept: KeptStep, planned: float, begun: float) -> None:
        """Take a step."""
        ...

    def put(self, frame: Frame) -> None:
        """Take what is said between steps."""
        ...

    def flush(self) -> None:
        """Write what is held back."""
        ...

    def close(self) -> None:
        """Write the rest."""
        ...


@functools.lru_cache
def _ones(count: int) -> array[int]:
    return array("i", [1]) * count


def _num_sampled(result: StepResult, count: int) -> array[int]:
    if isinstance(result.slices, Chosen):
        return _ones(len(result.slices))
    sampled = [-1 if each.error is not None else len(each.token_ids) for each in result.slices]
    return array("i", sampled or [0] * count)


class StepLog:
    """Ring of the last `capacity` steps. Owner: the engine loop, the only caller of `add`.

    Plans name rows, not requests; the log follows `starts` and `ended` to know who sits in which row.
    """

    def __init__(
        self,
        capacity: int = 4096,
        sink: Sink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records: deque[KeptStep] = deque(maxlen=capacity)
        self._rows: dict[int, str] = {}
        self._ids: tuple[tuple[int, ...], tuple[str, ...]] = ((), ())
        """Rows of a step in which all decode, and who was in them."""
        self._last_end = clock()
        self._epoch = time.time() - self._last_end if sink is None else sink.epoch
        self._pending: list[_Told | Frame] = []
        self._settled_at = self._last_end
        self.num_added = 0
        """Steps since the start, those that the ring has forgotten among them."""
        self._sink = sink

    def add(
        self,
        plan: StepPlan,
        result: StepResult,
        begun: float | None = None,
        *,
        planned: float | None = None,
        waits: Waits = NO_WAITS,
        num_blocks: int = 0,
        num_free_blocks: int = 0,
    ) -> None:
        """Append one step that was planned at `planned` and run from `begun` on (on the log's clock; None: at the end of
        the last one). What was launched while the step before it ran begins with that one's end.

        A result without slices counts as one in which nobody got a token.
        """
        begun = self._last_end if begun is None else max(begun, self._last_end)
        gap_s, self._last_end = begun - self._last_end, begun + result.elapsed_s
        self.num_added += 1
        planned = begun if planned is None else planned
        self._pending.append(
            _Told(plan, result, planned, begun, gap_s, waits, num_blocks, num_free_blocks)
        )
        if len(self._pending) >= _MOST_PENDING or begun - self._settled_at >= _EVERY_S:
            self.settle()

    def note(self, frame: Frame) -> None:
        """Say something in its place among the steps, where they are written at all."""
        if self._sink is not None:
            self._pending.append(frame)

    def settle(self) -> None:
        """Take down what was added: together, because that is cheaper than between any two steps."""
        self._settled_at = self._last_end
        pending, self._pending = self._pending, []
        for told in pending:
            if not isinstance(told, _Told):
                assert self._sink is not None, "nothing is noted without one"
                self._sink.put(told)
                continue
            kept = self._kept(told)
            self._records.append(kept)
            if self._sink is not None:
                self._sink.step(kept, told.planned, told.begun)

    def _kept(self, told: _Told) -> KeptStep:
        plan, result = told.plan, told.result
        names, slices = self._rows, plan.slices
        ended = tuple([names.pop(row) for row in plan.ended if row in names])
        for start in plan.starts:
            names[start.row] = start.request.id
        growth = plan.growth
        if growth is not None:
            new = zip(growth.blocks_GP[0].tolist(), strict=True)
            blocks: dict[int, tuple[int, ...]] = dict(zip(growth.indices, new, strict=True))
        else:
            grown = plan.grown.items()
            blocks = {i: piece.new_blocks[0] for i, piece in grown if piece.new_blocks}
        if plan.starts:
            tables = {start.row: start.blocks[0] for start in plan.starts if start.blocks}
            blocks |= {i: tables[each.row] for i, each in enumerate(slices) if each.row in tables}
        ids, starts, counts = self._columns(slices)
        return KeptStep(
            step=plan.step,
            at=self._epoch + told.begun,
            elapsed_s=result.elapsed_s,
            gap_s=told.gap_s,
            ids=ids,
            starts=starts,
            num_tokens=counts,
            num_sampled=_num_sampled(result, len(slices)),
            blocks=blocks,
            started=tuple([start.request.id for start in plan.starts]),
            ended=ended,
            waits=told.waits,
            num_blocks=told.num_blocks,
            num_free_blocks=told.num_free_blocks,
        )

    def _columns(self, slices: Sequence[Slice]) -> tuple[tuple[str, ...], array[int], array[int]]:
        """Names, starts and counts."""
        names = self._rows
        if not isinstance(slices, Decodes):
            ids = tuple([names.get(piece.row, "") for piece in slices])
            counts = array("i", [piece.count + len(piece.draft) for piece in slices])
            return ids, array("i", [piece.start for piece in slices]), counts
        if self._ids[0] is not slices.rows:
            self._ids = (slices.rows, tuple([names.get(row, "") for row in slices.rows]))
        return self._ids[1], array("i", slices.start_S.tolist()), _ones(len(slices))

    def flush(self) -> None:
        """Write what is held back, before a while in which nothing may happen."""
        self.settle()
        if self._sink is not None:
            self._sink.flush()

    def tail(self, count: int) -> list[StepRecord]:
        """The last `count` steps, oldest first."""
        self.settle()
        if count <= 0:
            return []
        return [kept.record() for kept in list(self._records)[-count:]]

    def since(self, position: int, most: int) -> Tail:
        """At most `most` steps after the first `position` ones, oldest first, and how many of them are forgotten."""
        self.settle()
        first = max(position, self.num_added - len(self._records))
        at = first - (self.num_added - len(self._records))
        kept = list(itertools.islice(self._records, at, at + max(0, most)))
        records = tuple([each.record() for each in kept])
        return Tail(records, first + len(records), first - position)

    def __len__(self) -> int:
        self.settle()
        return len(self._records)

    def close(self) -> None:
        """Write the rest."""
        self.settle()
        if self._sink is not None:
            self._sink.close()
