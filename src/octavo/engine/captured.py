"""Steps of one token per sequence as a device's captured graphs: one per bucket of sizes, padded up to it.

A step of a size is run eagerly the first time, on the buffers of its bucket, so that what kernels make on first use is
made; when the size comes again it is captured, which the device does not notice: it is still at work on the eager step.
From then on it is replayed. No step waits for more than one capture, captures rest in between for many times what the last
one took, and none is made beyond the memory that the plan has for them.

Padding rows are token 0 at position 0 of nobody: they write to the null block, read it, and nobody reads them. Shape
letters: R rows of the largest bucket, T tokens of the step, B blocks of the longest table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.core.log import get_logger
from octavo.engine.buckets import bucket_of, sizes
from octavo.engine.device import Device, Replayable
from octavo.engine.graphs import Forward

logger = get_logger(__name__)

_REST = 20.0
"""Times what a capture took, in which there is no other: streams that run lose a twentieth of their pace to them, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What captured steps have to hold, and may take."""

    max_num_seqs: int
    max_model_len: int
    num_blocks: tuple[int, ...]
    """Per KV group."""
    num_bytes: int
    """Most that captures may take."""


class KeptPlans:
    """Attention plans of one bucket's steps: made once, filled for each step. What a batch of a captured step carries."""

    def __init__(self, size: int, room: Room) -> None:
        self._size = size
        self._room = room
        self._batch: ForwardBatch | None = None
        self._made: dict[tuple[int, int], tuple[Any, Any]] = {}

    def plan(self, backend: Any, group: int, spec: KVSpec) -> Any:
        """The backend's plan for a KV group, filled for the step at hand."""
        key = (id(backend), group)
        if key not in self._made:
            assert self._batch is not None, "filled before the model runs"
            tables_SB = self._batch.groups[group].block_tables_SB
            held = self._room.num_blocks[group] * BLOCK_SIZE + self._size
            plan = backend.reserve(tables_SB, max_len=self._room.max_model_len, max_tokens=held)
            backend.fill(plan, self._batch, group)
            self._made[key] = (backend, plan)
        return self._made[key][1]

    def fill(self, batch: ForwardBatch) -> None:
        """Write a step, padded, into the plans that there are."""
        self._batch = batch
        for (_, group), (backend, plan) in self._made.items():
            backend.fill(plan, batch, group)


@dataclass(slots=True, eq=False)
class _Step:
    """One bucket."""

    plans: KeptPlans
    num_runs: int = 0
    graph: Replayable | None = None
    hidden_TD: torch.Tensor | None = None


class CapturedSteps:
    """As `StepGraphs`. Owner: the runner of one rank."""

    def __init__(
        self,
        device: Device,
        room: Room,
        refusal: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refusal`: why nothing is captured; None to try."""
        self.refusal = refusal
        self.num_bytes = 0
        """What captures have taken."""
        self._device = device
        self._room = room
        self._sizes = sizes(room.max_num_seqs)
        self._steps: dict[int, _Step] = {}
        self._inputs: _Inputs | None = None
        self._clock = clock
        self._not_before = clock()

    def run(self, forward: Forward, batch: ForwardBatch) -> torch.Tensor:
        """`forward(batch)`, replayed where it was captured. The result is good until the next call."""
        count = batch.num_slices
        is_alike = batch.num_tokens == count <= self._sizes[-1] and batch.type_ids_T is None
        size = bucket_of(count, self._sizes) if is_alike else 0
        step = self._steps.get(size)
        if not is_alike or (self.refusal is not None and (step is None or step.graph is None)):
            return forward(batch)
        if step is None:
            step = self._steps[size] = _Step(KeptPlans(size, self._room))
        if self._inputs is None:
            self._inputs = _Inputs(self._room, self._device.torch_device)
        padded = self._inputs.load(batch, size, step.plans)
        if step.graph is not None and step.hidden_TD is not None:
            try:
                step.graph.replay()
            except BaseException:
                del self._steps[size]  # who knows what its buffers hold
                raise
            return step.hidden_TD[:count]
        hidden_TD = forward(padded)
        step.num_runs += 1
        if step.num_runs > 1 and self._clock() >= self._not_before:
            begun = self._clock()
            self._capture(step, forward, padded, size)
            ended = self._clock()
            self._not_before = ended + _REST * (ended - begun)
        return hidden_TD[:count]

    def _capture(self, step: _Step, forward: Forward, padded: ForwardBatch, size: int) -> None:
        def compute() -> None:
            step.hidden_TD = forward(padded)

        try:
            step.graph = self._device.capture(compute)
        except RuntimeError as error:  # the step itself was run; this one and later ones stay eager
            step.hidden_TD = None
            self.refusal = f"capturing a step of {size} sequences failed: {error}"
            logger.warning("steps are not captured: %s", self.refusal)
            return
        self.num_bytes += step.graph.num_bytes
        logger.debug("captured steps of up to %d sequences, %d bytes", size, step.graph.num_bytes)
        if self.num_bytes >= self._room.num_bytes:
            self.refusal = f"captured steps take {self.num_bytes} bytes of {self._room.num_bytes}"
            logger.warning("no more steps are captured: %s", self.refusal)


class _Inputs:
    """The buffers that captured steps read; all buckets have the same ones."""

    def __init__(self, room: Room, device: torch.device) -> None:
        rows, width = room.max_num_seqs, -(-room.max_model_len // BLOCK_SIZE)
        groups = range(len(room.num_blocks))

        def numbers() -> torch.Tensor:
            return torch.zeros(rows, dtype=torch.int64, device=device)

        self._token_ids_R, self._positions_R = numbers(), numbers()
        self._slots_GR = [numbers() for _ in groups]
        self._tables_GRB = [
            torch.zeros(rows, width, dtype=torch.int32, device=device) for _ in groups
        ]
        self._all_R = torch.arange(rows, device=device)

    def load(self, batch: ForwardBatch, size: int, plans: KeptPlans) -> ForwardBatch:
        """Write a step into them: the batch of its bucket, with padding rows behind its own."""
        count = batch.num_slices
        pairs = [(self._token_ids_R, batch.token_ids_T), (self._positions_R, batch.positions_T)]
        pairs += zip(self._slots_GR, [group.slots_T for group in batch.groups], strict=True)
        for kept_R, now_T in pairs:
            kept_R[:count].copy_(now_T)
        for tables_RB, group in zip(self._tables_GRB, batch.groups, strict=True):
            # What earlier steps left behind a row's own blocks lies beyond its context.
            tables_RB[:count, : group.block_tables_SB.shape[1]].copy_(group.block_tables_SB)
        if size > count:
            for kept in (*(kept_R for kept_R, _ in pairs), *self._tables_GRB):
                kept[count:size].zero_()
        padded = ForwardBatch(
            token_ids_T=self._token_ids_R[:size],
            positions_T=self._positions_R[:size],
            query_starts=tuple(range(size + 1)),
            context_lens=(*batch.context_lens, *(1,) * (size - count)),
            groups=tuple(
                GroupBatch(slots_T=slots_R[:size], block_tables_SB=tables_RB[:size])
                for slots_R, tables_RB in zip(self._slots_GR, self._tables_GRB, strict=True)
            ),
            logits_rows_N=self._all_R[:size],
            plans=plans,
        )
        plans.fill(padded)
        return padded
