"""Runs plans of a pooling model on one rank: pack, forward, pool. The other `Runner` makes tokens of the same plans.

A request whose pooling fails, or whose answer is not finite, fails alone; the others stand.
"""

from __future__ import annotations

import time

import torch

from octavo.cache.pool import KVPool
from octavo.core.errors import ErrorInfo, RequestError
from octavo.core.params import PoolingParams
from octavo.core.plan import Slice, StepPlan
from octavo.core.result import PooledValues, SliceResult, StepResult
from octavo.engine.prepare import Rows, Spans
from octavo.layers.pooler import Gathered, Pooler
from octavo.models.base import Trunk


class PoolingRunner:
    """Owner of the rows, of what was gathered of their prompts, and of the KV pool of one rank."""

    def __init__(self, model: Trunk, pooler: Pooler, pool: KVPool, rows: Rows) -> None:
        self.model = model
        self.pooler = pooler
        self.pool = pool
        self.rows = rows
        self._gathered: dict[int, Gathered] = {}

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Execute one plan.

        Raises:
            Exception: whatever a kernel raises; then no slice has a result.
        """
        begun = time.perf_counter()
        self._update(plan)
        results: tuple[SliceResult, ...] = ()
        if plan.slices:
            spans = Spans.of(plan.slices)
            batch = self.rows.pack(spans, spans.query_starts[1:] - 1, self.pool.device)
            hidden_TD = self.model.forward(batch, self.pool)
            starts = batch.query_starts
            results = tuple(
                self._pool(piece, hidden_TD[starts[i] : starts[i + 1]])
                for i, piece in enumerate(plan.slices)
            )
        return StepResult(step=plan.step, slices=results, elapsed_s=time.perf_counter() - begun)

    def _update(self, plan: StepPlan) -> None:
        for row in plan.ended:
            self._gathered.pop(row, None)
        self.rows.update(plan)
        for start in plan.starts:
            params = start.request.pooling
            if params is not None:
                self._gathered[start.row] = self.pooler.gather(params)
        for copy in plan.copies:
            self.pool.copy(copy)

    def _pool(self, piece: Slice, hidden_CD: torch.Tensor) -> SliceResult:
        """Gather a slice's hidden states; at the prompt's end, the answer."""
        request = self.rows.requests[piece.row]
        if request.pooling is None:
            return SliceResult(row=piece.row, error=_GENERATES_NOTHING)
        gathered = self._gathered[piece.row]
        gathered.add(hidden_CD, piece.start)
        if not piece.sample:
            return SliceResult(row=piece.row)
        try:
            values_NO = self._answer(gathered, request.num_prompt, request.pooling)
        except RequestError as error:
            return SliceResult(row=piece.row, error=error.info())
        if not bool(values_NO.isfinite().all()):
            return SliceResult(row=piece.row, error=_NOT_FINITE)
        return SliceResult(row=piece.row, pooled=_values(values_NO, gathered))

    def _answer(self, gathered: Gathered, num_prompt: int, params: PoolingParams) -> torch.Tensor:
        return self.pooler.finish(gathered.result(num_prompt), params)


def _values(values_NO: torch.Tensor, gathered: Gathered) -> PooledValues:
    per_token = gathered.kind == "none"
    shape = tuple(values_NO.shape) if per_token else (values_NO.shape[1],)
    data = values_NO.to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return PooledValues(shape=shape, data=data.tobytes())


_GENERATES_NOTHING = ErrorInfo(
    code="no_generation", message="this model pools prompts and generates no text.", status=400
)
_NOT_FINITE = ErrorInfo(
    code="not_finite",
    message="the model's answer holds NaN or infinity.",
    status=500,
    fix="A prompt that the weights cannot take, or weights too large for the dtype; try --dtype float32.",
)
