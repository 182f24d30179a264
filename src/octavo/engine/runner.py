"""Runs a plan on one rank: pack, forward, sample. Knows tensors; does not know who waits or why.

A slice whose logits are not finite, or whose constraints leave no token, fails alone; the others stand. What a plan says
once (`update`) is apart from what is computed of its slices (`run`): that may be done again for any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

import numpy as np
import numpy.typing as npt
import torch

from octavo.cache.blocks import NULL_BLOCK
from octavo.cache.pool import KVPool
from octavo.core.batch import ForwardBatch
from octavo.core.errors import EngineError
from octavo.core.log import get_logger
from octavo.core.plan import Decodes, SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import Chosen, SliceResult, TokenLogprobs
from octavo.decoding.grammar.rows import Taken
from octavo.decoding.logprobs import token_logprobs
from octavo.decoding.sampler import NOT_FINITE, SampledTokens, Sampler
from octavo.decoding.state import SamplerState, greedy_batch
from octavo.engine.device import Device, Host
from octavo.engine.faults import Fault, Faults
from octavo.engine.flight import LastTokens, Pending
from octavo.engine.graphs import RecordedSteps, StepGraphs
from octavo.engine.prepare import IntArray, Rows, Spans, probe_batch
from octavo.engine.pulse import Pulse, WatchedCaches
from octavo.engine.staging import Staging
from octavo.layers.attention import Parts
from octavo.models.base import Model

logger = get_logger(__name__)
_NOTHING = Taken()
_HOST = torch.device("cpu")
_PROMPT_LOGITS_ROWS = 64
"""Prompt positions whose logits are made at once: 64 x 150k float32 are 37 MiB."""


class Runner:
    """Owner of the rows, the sampler's state and the KV pool of one rank."""

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        rows: Rows,
        state: SamplerState,
        graphs: StepGraphs | None = None,
        pulse: Pulse | None = None,
        device: Device | None = None,
    ) -> None:
        """`device` is the pool's; None: the host."""
        self.model = model
        self.pool = pool
        self.rows = rows
        self.state = state
        self.graphs = graphs or RecordedSteps("not asked for")
        self.pulse = pulse or Pulse()
        self.caches = WatchedCaches(pool, self.pulse)
        self.sampler = Sampler()
        self.device = pool.device
        self._order = device or Host()
        self._staging = None if pool.device.type == "cpu" else Staging(self._order)
        self._last_tokens = LastTokens(len(rows.births_R), self._order)
        self.faults = Faults()
        self.phase = ""
        self._prompt_logprobs: dict[int, list[TokenLogprobs]] = {}

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says once. A sequence that cannot begin is in `faults`."""
        self.rows.take_over(plan, self.faults, begin=self._begin, end=self._end)
        self.pool.update(plan)

    def _end(self, row: int) -> None:
        self.state.remove(row)
        self._prompt_logprobs.pop(row, None)

    def _begin(self, start: SequenceStart) -> None:
        self.state.add(start.row, start.request, start.token_ids)
        is_fresh = len(start.token_ids) == start.request.num_prompt
        if start.request.params.prompt_logprobs is not None and is_fresh:
            self._prompt_logprobs[start.row] = []

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice]) -> Sequence[SliceResult]:
        """Compute slices of the plan last taken over; those in `faults` afterwards have no result.

        Raises:
            ForeignBlocks: some rows' tables hold blocks that are not theirs.
            Exception: whatever a kernel raises. As with the other, nothing is kept: any of the slices may be run again.
        """
        return self._landed(self._begun(slices, is_ahead=False))

    @torch.inference_mode()
    def launch(self, slices: Sequence[Slice], *, is_ahead: bool = False) -> Pending:
        """Tell the device to compute slices; `take` has the results. With `is_ahead` the tokens are not waited for, where
        nothing but the next step's inputs depends on them, and rows may have tokens that `take` has not seen yet.

        Raises:
            ForeignBlocks: as `run`.
            Exception: as `run`.
        """
        return self._begun(slices, is_ahead=is_ahead)

    def _begun(self, slices: Sequence[Slice], *, is_ahead: bool) -> Pending:
        try:
            return self._launch(slices, is_ahead=is_ahead)
        except BaseException as error:
            self.state.grammars.settle()  # masks of this run must not be computed beside those of the next
            if self._order.is_exceeded(error):
                raise _beyond_plan(len(slices), error) from error
            raise

    def _launch(self, slices: Sequence[Slice], *, is_ahead: bool) -> Pending:
        self.phase = "prepare"
        spans = Spans.of(slices)
        last_N, rows_N = spans.query_starts[1:] - 1, spans.row_S
        positions_N = spans.start_S + spans.count_S
        if not isinstance(slices, Decodes) and not all([piece.sample for piece in slices]):
            at_N = np.flatnonzero([piece.sample for piece in slices])
            last_N, rows_N, positions_N = last_N[at_N], rows_N[at_N], positions_N[at_N]
        self.state.grammars.begin(rows_N)
        batch, rows_on_device = self._pack(spans, last_N, rows_N, is_ahead=is_ahead)
        self.phase = "forward"
        hidden_TD = self.graphs.run(self, batch)
        self.pulse.tick()
        # Where every token wants its logits, as in most steps, nothing has to be picked.
        wanted_ND = (
            hidden_TD if len(last_N) == hidden_TD.shape[0] else hidden_TD[batch.logits_rows_N]
        )
        sampled, on_host_N = None, None
        if rows_on_device is not None and self.state.is_plain and not self._prompt_logprobs:
            on_host_N = self._sample_ahead(wanted_ND, rows_N, positions_N, rows_on_device)
        else:
            sampled = self._sample(wanted_ND, rows_N, positions_N)
        return Pending(
            slices=slices,
            rows_N=rows_N,
            births_N=self.rows.births_R[rows_N] if is_ahead else None,
            sampled=sampled,
            on_host_N=on_host_N,
            mark=self._order.mark(),
            prompts=self._prompts(hidden_TD, slices, spans) if self._prompt_logprobs else {},
        )

    @torch.inference_mode()
    def take(self, pending: Pending) -> Sequence[SliceResult]:
        """Results of slices that were launched, in the order of launches. What was a row's that has changed hands since, or
        was given up, is dropped: such a slice has no token.

        Raises:
            Exception: the device did not get through. Nothing is kept.
        """
        return self._landed(pending)

    def _landed(self, pending: Pending) -> Sequence[SliceResult]:
        self.phase = "forward"
        self.graphs.go_on(self)  # in place of waiting
        sampled, rows_N = pending.read(), pending.rows_N
        # From here on tokens are kept, and what throws is one row's.
        self.phase = "take"
        for row, found in pending.prompts.items():
            self._prompt_logprobs[row] += found
            if any(isnan(entry.logprobs[0]) for entry in found):
                self.faults[row] = Fault("prompt_logprobs", NOT_FINITE)
        is_whole = True
        if pending.births_N is not None:
            is_same_N = self.rows.births_R[rows_N] == pending.births_N
            is_whole = bool(is_same_N.all())
            if not is_whole:
                sampled = _only(sampled, is_same_N)
        self._keep(rows_N, sampled, is_whole=is_whole)
        taken = self._take(rows_N, sampled)
        is_kept = None if is_whole else is_same_N.tolist()
        return self._results(pending.slices, sampled, taken, is_kept)

    def drop(self, pending: Pending) -> None:
        """Forget slices that were launched, when the device is done with them. They may be run again."""
        pending.mark.synchronize()

    def _pack(
        self, spans: Spans, last_N: IntArray, rows_N: IntArray, *, is_ahead: bool
    ) -> tuple[ForwardBatch, torch.Tensor | None]:
        """The step's tensors, and with `is_ahead` `rows_N`, where the model runs."""
        batch = self.rows.pack(spans, last_N, _HOST)
        is_unknown_S = self.rows.unknown(spans) if is_ahead else None
        # As in most steps: every token is the last of its row, and no row's is known.
        is_each = is_unknown_S is not None and spans.is_single and bool(is_unknown_S.all())
        is_each &= len(rows_N) == len(spans.row_S)
        if is_unknown_S is not None and not is_each:
            self.rows.mark_unknown(batch, spans, is_unknown_S)
        more: tuple[torch.Tensor, ...] = (torch.from_numpy(rows_N),) if is_ahead else ()
        if self._staging is not None:
            batch, more = self._staging.carry(batch, *more)
        if is_each:
            self._last_tokens.give(more[0], batch.token_ids_T)
        elif is_unknown_S is not None:
            self._last_tokens.fill_in(batch.token_ids_T)
        return batch, more[0] if more else None

    @torch.inference_mode()
    def probe(self) -> None:
        """Compute and choose one token that is nobody's: whether the model, the kernels and the device work at all.

        Raises:
            Exception: they do not.
        """
        self._order.mark().synchronize()  # whatever is wrong with what runs shows here
        hidden_1D = self.forward(probe_batch(len(self.pool.groups), self.device))
        self.pool.clear(NULL_BLOCK)
        self.sampler.chooser_for(self.device).choose(
            self.model.logits(hidden_1D).float(), greedy_batch()
        )

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """The model over the pool."""
        return self.model.forward(batch, self.caches)

    def parts(self, batch: ForwardBatch) -> Parts:
        """As `forward`, in parts."""
        return self.model.parts(batch, self.caches)

    @torch.inference_mode()
    def rest(self) -> bool:
        """There is nothing to compute: prepare for later steps, for some milliseconds; whether there is more to prepare."""
        return self.graphs.go_on(self, is_idle=True)

    def _sample(
        self, hidden_ND: torch.Tensor, rows_N: IntArray, positions_N: IntArray
    ) -> SampledTokens:
        if not len(rows_N):
            return SampledTokens(token_ids=(), logprobs=(), bad_rows={})
        self.phase = "logits"
        logits_NV = self.model.logits(hidden_ND)
        self.phase = "sample"
        return self.sampler.sample(logits_NV, rows_N, self.state, positions_N)

    def _sample_ahead(
        self,
        hidden_ND: torch.Tensor,
        rows_N: IntArray,
        positions_N: IntArray,
        rows_on_device: torch.Tensor,
    ) -> torch.Tensor:
        """The tokens on their way to the host, int64 [N]."""
        if not len(rows_N):
            return torch.empty(0, dtype=torch.int64)
        self.phase = "logits"
        logits_NV = self.model.logits(hidden_ND)
        self.phase = "sample"
        tokens_N = self.sampler.choose_ahead(logits_NV, rows_N, self.state, positions_N)
        return self._last_tokens.put(rows_on_device, tokens_N)

    def _keep(self, rows_N: IntArray, sampled: SampledTokens, *, is_whole: bool) -> None:
        """Take note of the tokens, and of rows that have none by the model's fault."""
        is_each = is_whole and not sampled.bad_rows and not sampled.ended
        self.rows.append_tokens(rows_N, np.array(sampled.token_ids, np.int64), is_each=is_each)
        self.state.append(rows_N, sampled.token_ids)
        for n, error in sampled.bad_rows.items():
            if error.status >= 500:
                self.faults[int(rows_N[n])] = Fault("sample", error)
                self.rows.births_R[rows_N[n]] += 1  # what was launched on top of it is nobody's

    def _take(self, rows_N: IntArray, sampled: SampledTokens) -> dict[int, Taken]:
        """Tell grammars of the new tokens: entry -> what follows from its token, where anything does."""
        grammars = self.state.grammars
        if not grammars.is_in_use:
            return {}
        taken = {n: Taken(is_finished=True) for n in sampled.ended}
        for n, found in grammars.take(rows_N, sampled.token_ids, self.faults.guard).items():
            taken[n] = found
            if found.forced:
                row = int(rows_N[n])
                self.rows.append_forced(row, found.forced)
                self.state.extend(row, found.forced)
        return taken

    def _prompts(
        self, hidden_TD: torch.Tensor, slices: Sequence[Slice], spans: Spans
    ) -> dict[int, list[TokenLogprobs]]:
        """Row -> log-probabilities of its prompt positions in this step, for the rows that want them."""
        self.phase = "prompt_logprobs"
        found: dict[int, list[TokenLogprobs]] = {}
        for piece, first in zip(slices, spans.query_starts[:-1].tolist(), strict=True):
            if piece.row not in self._prompt_logprobs:
                continue
            request = self.rows.requests[piece.row]
            count = min(piece.start + piece.count, request.num_prompt - 1) - piece.start
            entries = found[piece.row] = []
            for offset in range(0, count, _PROMPT_LOGITS_ROWS):
                self.pulse.tick()
                size = min(_PROMPT_LOGITS_ROWS, count - offset)
                logits_NV = self.model.logits(hidden_TD[first + offset : first + offset + size])
                entries += _targets(request, piece.start + offset, logits_NV)
        return found

    def _results(
        self,
        slices: Sequence[Slice],
        sampled: SampledTokens,
        taken: dict[int, Taken],
        is_kept: list[bool] | None = None,
    ) -> Sequence[SliceResult]:
        """In the order of the slices; the sampled entries are those that sample, in that order. `is_kept`: whose rows are
        theirs still; None: all.
        """
        is_plain = not (sampled.bad_rows or sampled.has_logprobs or self._prompt_logprobs or taken)
        if is_plain and is_kept is None and len(slices) == len(sampled.token_ids):
            rows = slices.rows if isinstance(slices, Decodes) else [piece.row for piece in slices]
            return Chosen(rows, sampled.token_ids)
        results: list[SliceResult] = []
        entry = 0
        for piece in slices:
            if not piece.sample:
                results.append(SliceResult(row=piece.row))
                continue
            more = taken.get(entry, _NOTHING)
            error = sampled.bad_rows.get(entry, more.error)
            if error is not None:
                results.append(SliceResult(row=piece.row, error=error))
            else:
                token_id, logprobs = sampled.token_ids[entry], sampled.logprobs[entry]
                is_its_own = is_kept is None or is_kept[entry]
                prompt = self._end_prompt_logprobs(piece.row) if is_its_own else None
                results.append(
                    SliceResult(
                        row=piece.row,
                        token_ids=() if token_id < 0 else (token_id, *more.forced),
                        logprobs=None if logprobs is None else (logprobs,),
                        prompt_logprobs=prompt,
                        is_finished=more.is_finished,
                    )
                )
            entry += 1
        return tuple(results)

    def _end_prompt_logprobs(self, row: int) -> tuple[TokenLogprobs, ...] | None:
        """Those of a prompt that is whole now; told once."""
        if not self._prompt_logprobs:
            return None
        found = self._prompt_logprobs.pop(row, None)
        return None if found is None else tuple(found)


def _beyond_plan(num_slices: int, error: BaseException) -> EngineError:
    """A step found no memory, which the plan should have had for it. Halves of it may fit."""
    wrong = EngineError(
        f"E-GPU-09: a step of {num_slices} slices needs more of the GPU's memory than was planned: {error}",
        fix="This is a defect worth reporting; meanwhile start with a lower --gpu-memory-utilization or fewer "
        "--max-num-batched-tokens.",
    )
    logger.error("%s %s", wrong.message, wrong.fix)
    return wrong


def _only(sampled: SampledTokens, is_kept_N: npt.NDArray[np.bool_]) -> SampledTokens:
    """Without what the others have."""
    kept = is_kept_N.tolist()
    return replace(
        sampled,
        token_ids=tuple(
            token_id if keep else -1 for token_id, keep in zip(sampled.token_ids, kept, strict=True)
        ),
        bad_rows={n: error for n, error in sampled.bad_rows.items() if kept[n]},
    )


def _targets(request: Request, start: int, logits_NV: torch.Tensor) -> list[TokenLogprobs]:
    """Log-probabilities of the prompt tokens after positions start .. start + N."""
    count = logits_NV.shape[0]
    targets = request.token_ids[start + 1 : start + 1 + count]
    top = [request.params.prompt_logprobs] * count
    return [entry for entry in token_logprobs(logits_NV, targets, top) if entry is not None]
