"""Runs plans of a pooling model on one rank: pack, forward, pool. The other `Runner` makes tokens of the same plans.

A request whose pooling fails, or whose answer is not finite, fails alone; the others stand. As of the other, `run` may be
called again for any slices after it threw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from octavo.cache.blocks import NULL_BLOCK
from octavo.cache.pool import KVPool
from octavo.core.errors import ErrorInfo, RequestError
from octavo.core.params import PoolingParams
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.pooling import PER_TOKEN
from octavo.core.result import PooledValues, SliceResult
from octavo.engine.faults import Fault, Faults
from octavo.engine.prepare import Rows, Spans, probe_batch
from octavo.engine.pulse import Pulse, WatchedCaches
from octavo.layers.pooler import Gathered, Pooler
from octavo.models.base import Trunk


class PoolingRunner:
    """Owner of the rows, of what was gathered of their prompts, and of the KV pool of one rank."""

    def __init__(
        self,
        model: Trunk,
        pooler: Pooler,
        pool: KVPool,
        rows: Rows,
        pulse: Pulse | None = None,
    ) -> None:
        self.model = model
        self.pooler = pooler
        self.pool = pool
        self.rows = rows
        self.pulse = pulse or Pulse()
        self.caches = WatchedCaches(pool, self.pulse)
        self.faults = Faults()
        self.phase = ""
        self._gathered: dict[int, Gathered] = {}

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says once. A prompt that cannot begin is in `faults`."""
        self.rows.take_over(plan, self.faults, begin=self._begin, end=self._end)
        self.pool.update(plan)

    def _end(self, row: int) -> None:
        self._gathered.pop(row, None)

    def _begin(self, start: SequenceStart) -> None:
        params = start.request.pooling
        if params is not None:
            self._gathered[start.row] = self.pooler.gather(params)

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice]) -> Sequence[SliceResult]:
        """Compute slices of the plan last taken over; those in `faults` afterwards have no result.

        Raises:
            ForeignBlocks: some rows' tables hold blocks that are not theirs.
            Exception: whatever a kernel raises. As with the other, nothing is kept: any of the slices may be run again.
        """
        self.phase = "prepare"
        spans = Spans.of(slices)
        batch = self.rows.pack(spans, spans.query_starts[1:] - 1, self.pool.device)
        self.phase = "forward"
        hidden_TD = self.model.forward(batch, self.caches)
        self.pulse.tick()
        self.phase = "pool"
        gathered = {
            piece.row: self._gathered[piece.row].copy()
            for piece in slices
            if piece.row in self._gathered
        }
        results = self._results(slices, gathered, hidden_TD, batch.query_starts)
        self._gathered.update(gathered)
        for piece, result in zip(slices, results, strict=True):
            if result.error is not None and result.error.status >= 500:
                self.faults[piece.row] = Fault("pool", result.error)
        return results

    @torch.inference_mode()
    def probe(self) -> None:
        """Compute one token that is nobody's: whether the model, the kernels and the device work at all.

        Raises:
            Exception: they do not.
        """
        self.model.forward(probe_batch(len(self.pool.groups), self.pool.device), self.pool)
        self.pool.clear(NULL_BLOCK)

    def _results(
        self,
        slices: Sequence[Slice],
        gathered_by_row: dict[int, Gathered],
        hidden_TD: torch.Tensor,
        starts: tuple[int, ...],
    ) -> Sequence[SliceResult]:
        results = [SliceResult(row=piece.row) for piece in slices]
        whole: dict[PoolingParams, list[tuple[int, torch.Tensor]]] = {}
        for i, piece in enumerate(slices):
            request = self.rows.requests[piece.row]
            if request.pooling is None:
                results[i] = SliceResult(row=piece.row, error=_GENERATES_NOTHING)
                continue
            gathered = gathered_by_row[piece.row]
            gathered.add(hidden_TD[starts[i] : starts[i + 1]], piece.start)
            if not piece.sample:
                continue
            try:
                hidden_ND = gathered.result(request.num_prompt)
            except RequestError as error:
                results[i] = SliceResult(row=piece.row, error=error.info())
            else:
                whole.setdefault(request.pooling, []).append((i, hidden_ND))
        for params, entries in whole.items():
            for i, result in self._finish(params, entries, slices):
                results[i] = result
        return tuple(results)

    def _finish(
        self,
        params: PoolingParams,
        entries: list[tuple[int, torch.Tensor]],
        slices: Sequence[Slice],
    ) -> Iterator[tuple[int, SliceResult]]:
        """Answers to prompts that are whole and ask for the same: together where that changes no bits."""
        per_token = params.task in PER_TOKEN
        if self.pooler.finishes_together and not per_token:
            rows_ND = torch.cat([hidden_ND for _, hidden_ND in entries])
            answers_NO = self.pooler.finish(rows_ND, params)
            answers = [answers_NO[i : i + 1] for i in range(len(entries))]
        else:
            answers = [self.pooler.finish(hidden_ND, params) for _, hidden_ND in entries]
        for (i, _), values_NO in zip(entries, answers, strict=True):
            row = slices[i].row
            data = values_NO.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
            if not np.isfinite(data).all():
                yield i, SliceResult(row=row, error=_NOT_FINITE)
                continue
            shape = data.shape if per_token else data.shape[1:]
            yield i, SliceResult(row=row, pooled=PooledValues(shape=shape, data=data.tobytes()))


_GENERATES_NOTHING = ErrorInfo(
    code="no_generation", message="this model pools prompts and generates no text.", status=400
)
_NOT_FINITE = ErrorInfo(
    code="not_finite",
    message="the model's answer holds NaN or infinity.",
    status=500,
    fix="A prompt that the weights cannot take, or weights too large for the dtype; try --dtype float32.",
)
