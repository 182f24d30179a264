"""How logits become tokens: check, edit (`penalties.py`), choose (`blocks.py`, `draw.py`), report.

Work that no row asks for is not done: a step of greedy rows is one argmax, a step without
truncation has no sort. Each row's token depends on that row's logits, parameters and position
alone; see `draw.py` for how.

Shape letters: N entries of the step, n entries of one kind, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.errors import ErrorInfo
from octavo.core.result import TokenLogprobs
from octavo.decoding.blocks import block_maxima, row_argmax
from octavo.decoding.draw import draw_cut, draw_whole, draws_of, num_first_look
from octavo.decoding.logprobs import token_logprobs
from octavo.decoding.penalties import apply_edits
from octavo.decoding.state import SamplerState, SamplingBatch

_CHUNK_VALUES = 1 << 20
"""Logits of random rows handled at once, so that their temporaries stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What one call chose, entry by entry."""

    token_ids: tuple[int, ...]
    """[N]: -1, no token, for entries in `bad_rows`."""
    logprobs: tuple[TokenLogprobs | None, ...]
    """[N]: where asked, and not in `bad_rows`."""
    bad_rows: dict[int, ErrorInfo]
    """Entry n (not the row's number) -> why it has no token."""


class Sampler:
    """Chooses tokens. Holds no state: what a row needs is in `SamplerState`."""

    def __init__(self, *, num_prefilter: int = 128) -> None:
        """`num_prefilter`: logits that a first look at a truncated row sorts; changes no result."""
        self.num_prefilter = num_prefilter

    def sample(
        self,
        logits_NV: torch.Tensor,
        rows: Sequence[int],
        state: SamplerState,
        positions: Sequence[int],
    ) -> SampledTokens:
        """One token per entry.

        Args:
            logits_NV: raw logits, any float dtype [N, V]; left as they are.
            rows: [N], the row of each entry, each row at most once.
            state: told of every earlier token of those rows. It is not told of the new ones here.
            positions: [N], number of tokens before the new one.
        """
        if not rows:
            return SampledTokens(token_ids=(), logprobs=(), bad_rows={})
        batch = state.batch(rows, positions)
        raw_NV = logits_NV.float()
        edited_NV = raw_NV
        if batch.edits:
            edited_NV = raw_NV.clone(memory_format=torch.contiguous_format)
            apply_edits(edited_NV, batch.edits)
        token_ids_N = self._choose(edited_NV, batch)
        is_sound_N = finite_rows(raw_NV)
        has_choice_N = finite_rows(edited_NV) if batch.edits else is_sound_N
        report = torch.stack([token_ids_N, is_sound_N.long(), has_choice_N.long()]).tolist()
        token_ids, is_sound, has_choice = report
        bad_rows = _failures(is_sound, has_choice)
        num_top = [None if n in bad_rows else top for n, top in enumerate(batch.num_logprobs)]
        return SampledTokens(
            token_ids=tuple(-1 if n in bad_rows else id_ for n, id_ in enumerate(token_ids)),
            logprobs=tuple(token_logprobs(raw_NV, token_ids, num_top)),
            bad_rows=bad_rows,
        )

    def _choose(self, logits_NV: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        """int64 [N]: greedy, whole-vocabulary and truncated rows, each kind where it occurs."""
        if batch.is_greedy_N.all():
            return row_argmax(logits_NV)
        chosen_N = torch.zeros(len(logits_NV), dtype=torch.int64, device=logits_NV.device)
        is_cut_N = (batch.top_k_N < logits_NV.shape[1]) | (batch.top_p_N < 1.0)
        size = max(1, _CHUNK_VALUES // logits_NV.shape[1])
        for entries in _chunks(np.flatnonzero(batch.is_greedy_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device)
            chosen_N[rows_n] = row_argmax(logits_NV.index_select(0, rows_n))
        for entries in _chunks(np.flatnonzero(~batch.is_greedy_N & ~is_cut_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device)
            draws = draws_of(batch, entries, logits_NV)
            chosen_N[rows_n] = draw_whole(logits_NV.index_select(0, rows_n), draws)
        for entries in _chunks(np.flatnonzero(~batch.is_greedy_N & is_cut_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device)
            draws = draws_of(batch, entries, logits_NV)
            num_first = num_first_look(batch.top_k_N[entries], self.num_prefilter)
            chosen_N[rows_n] = draw_cut(logits_NV.index_select(0, rows_n), draws, num_first)
        return chosen_N


def finite_rows(logits_NV: torch.Tensor) -> torch.Tensor:
    """Rows without NaN and +inf and not all -inf, as bool [N]: their largest logit is finite."""
    return torch.isfinite(block_maxima(logits_NV).amax(1))


def _chunks(entries: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]


def _failures(is_sound: Sequence[int], has_choice: Sequence[int]) -> dict[int, ErrorInfo]:
    failures: dict[int, ErrorInfo] = {}
    for n, (sound, choice) in enumerate(zip(is_sound, has_choice, strict=True)):
        if not sound:
            failures[n] = ErrorInfo(
                code="non_finite_logits",
                message="the model put out NaN or infinite logits for this request",
                status=500,
            )
        elif not choice:
            failures[n] = ErrorInfo(
                code="no_token_allowed",
                message="allowed_token_ids, bad_words and min_tokens together leave no token",
                status=400,
                fix="Allow more tokens or ban fewer.",
            )
    return failures
