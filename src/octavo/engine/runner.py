"""Runs a plan on one rank: pack, forward, sample. Knows tensors; does not know who waits or why.

A slice whose logits are not finite, or whose constraints leave no token, fails alone; the others stand.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from octavo.cache.pool import KVPool
from octavo.core.plan import Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import SliceResult, StepResult, TokenLogprobs
from octavo.decoding.logprobs import token_logprobs
from octavo.decoding.sampler import SampledTokens, Sampler
from octavo.decoding.state import SamplerState
from octavo.engine.prepare import Rows, pack
from octavo.models.base import Model

_PROMPT_LOGITS_ROWS = 64
"""Prompt positions whose logits are made at once: 64 x 150k float32 are 37 MiB."""


class _Wanted(NamedTuple):
    """Logits rows of a step: of the slices that sample, and of prompt positions with logprobs."""

    sample_rows: list[int]
    sampling: list[Slice]
    prompt: list[tuple[Slice, int, int]]
    """(slice, first logits row, count)."""


class Runner:
    """Owner of the rows, the sampler's state and the KV pool of one rank."""

    def __init__(self, model: Model, pool: KVPool, rows: Rows, state: SamplerState) -> None:
        self.model = model
        self.pool = pool
        self.rows = rows
        self.state = state
        self.sampler = Sampler()
        self._device = pool.layer(0)[0].device
        self._prompt_logprobs: dict[int, list[TokenLogprobs]] = {}

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Execute one plan.

        Raises:
            Exception: whatever a kernel raises; then no slice has a result and no token was appended.
        """
        begun = time.perf_counter()
        self._update(plan)
        if not plan.slices:
            return StepResult(step=plan.step, slices=(), elapsed_s=time.perf_counter() - begun)
        wanted = self._wanted(plan)
        batch = pack(self.rows, plan.slices, np.asarray(wanted.sample_rows, np.int64), self._device)
        hidden_TD = self.model.forward(batch, self.pool)
        sampled = self._sample(hidden_TD[batch.logits_rows_N], wanted.sampling)
        self._take_prompt_logprobs(hidden_TD, wanted.prompt)
        results = self._results(plan, wanted, sampled)
        return StepResult(step=plan.step, slices=results, elapsed_s=time.perf_counter() - begun)

    def _update(self, plan: StepPlan) -> None:
        for row in plan.ended:
            self.state.remove(row)
            self._prompt_logprobs.pop(row, None)
        self.rows.update(plan)
        for start in plan.starts:
            self.state.add(start.row, start.request, start.token_ids)
            is_fresh = len(start.token_ids) == start.request.num_prompt
            if start.request.params.prompt_logprobs is not None and is_fresh:
                self._prompt_logprobs[start.row] = []
        for copy in plan.copies:
            self.pool.copy(copy)

    def _wanted(self, plan: StepPlan) -> _Wanted:
        wanted = _Wanted([], [], [])
        first = 0
        for piece in plan.slices:
            if piece.sample:
                wanted.sample_rows.append(first + piece.count - 1)
                wanted.sampling.append(piece)
            if piece.row in self._prompt_logprobs:
                last = min(piece.start + piece.count, self.rows.requests[piece.row].num_prompt - 1)
                if last > piece.start:
                    wanted.prompt.append((piece, first, last - piece.start))
            first += piece.count
        return wanted

    def _sample(self, hidden_ND: torch.Tensor, sampling: list[Slice]) -> SampledTokens:
        if not sampling:
            return SampledTokens(token_ids=(), logprobs=(), bad_rows={})
        logits_NV = self.model.logits(hidden_ND)
        rows = [piece.row for piece in sampling]
        positions = [piece.start + piece.count for piece in sampling]
        sampled = self.sampler.sample(logits_NV, rows, self.state, positions)
        for entry, (row, token_id) in enumerate(zip(rows, sampled.token_ids, strict=True)):
            if entry not in sampled.bad_rows:
                self.rows.append_token(row, token_id)
                self.state.append(row, token_id)
        return sampled

    def _take_prompt_logprobs(
        self, hidden_TD: torch.Tensor, prompt: list[tuple[Slice, int, int]]
    ) -> None:
        for piece, first, count in prompt:
            request = self.rows.requests[piece.row]
            for offset in range(0, count, _PROMPT_LOGITS_ROWS):
                size = min(_PROMPT_LOGITS_ROWS, count - offset)
                logits_NV = self.model.logits(hidden_TD[first + offset : first + offset + size])
                self._prompt_logprobs[piece.row] += _targets(
                    request, piece.start + offset, logits_NV
                )

    def _results(
        self, plan: StepPlan, wanted: _Wanted, sampled: SampledTokens
    ) -> tuple[SliceResult, ...]:
        entry_of = {piece.row: entry for entry, piece in enumerate(wanted.sampling)}
        return tuple(self._result(piece, entry_of.get(piece.row), sampled) for piece in plan.slices)

    def _result(self, piece: Slice, entry: int | None, sampled: SampledTokens) -> SliceResult:
        if entry is None:
            return SliceResult(row=piece.row)
        if entry in sampled.bad_rows:
            return SliceResult(row=piece.row, error=sampled.bad_rows[entry])
        logprobs = sampled.logprobs[entry]
        prompt_logprobs = self._prompt_logprobs.pop(piece.row, None)
        return SliceResult(
            row=piece.row,
            token_ids=(sampled.token_ids[entry],),
            logprobs=None if logprobs is None else (logprobs,),
            prompt_logprobs=None if prompt_logprobs is None else tuple(prompt_logprobs),
        )


def _targets(request: Request, start: int, logits_NV: torch.Tensor) -> list[TokenLogprobs]:
    """Log-probabilities of the prompt tokens after positions start .. start + N."""
    count = logits_NV.shape[0]
    targets = request.token_ids[start + 1 : start + 1 + count]
    top = [request.params.prompt_logprobs] * count
    return [entry for entry in token_logprobs(logits_NV, targets, top) if entry is not None]
