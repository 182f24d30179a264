"""Who chooses the tokens of a step: plain torch, here, the compiled kernel on a CPU (`chooser_cpu.py`), or Triton kernels
on a GPU (`chooser_triton.py`). All give the same tokens.

Shape letters: N entries of the step, n entries of one kind, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.registry import Registry
from octavo.decoding.blocks import block_maxima, row_argmax
from octavo.decoding.draw import draw_cut, draw_whole, draws_of, num_first_look
from octavo.decoding.state import SamplingBatch
from octavo.kernels.dispatch import Op, OpCase
from octavo.kernels.sampling import RowMasks

_CHUNK_VALUES = 1 << 20
"""Logits of random rows handled at once, so that their temporaries stay in the cache."""


class Chooser(Protocol):
    """One way to choose tokens."""

    def choose(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> npt.NDArray[np.int64]:
        """Token ids [N] from float32 logits after edits, under the masks of the batch; -1 where the largest of what they
        leave is not finite.
        """


@runtime_checkable
class AheadChooser(Protocol):
    """One that can leave the tokens where the logits are."""

    def chosen(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> torch.Tensor:
        """As `Chooser.choose`, int64 [N] on the logits' device; the host does not wait for it."""


class TorchChooser:
    """Greedy, whole-vocabulary and truncated rows, each kind where it occurs."""

    def __init__(self, num_prefilter: int = 128) -> None:
        """`num_prefilter`: logits that a first look at a truncated row sorts; changes no result."""
        self.num_prefilter = num_prefilter

    def choose(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> npt.NDArray[np.int64]:
        """As `Chooser.choose`."""
        token_ids_N: npt.NDArray[np.int64] = self.chosen(logits_NV, batch).cpu().numpy()
        return token_ids_N

    def chosen(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> torch.Tensor:
        """The same, where the logits are: int64 [N]. The host does not wait for the device."""
        if batch.masks is not None and batch.masks.choices is not None:
            logits_NV = masked(logits_NV, batch.masks.choices)
        chosen_N = self._choose(logits_NV, batch)
        return torch.where(finite_rows(logits_NV), chosen_N, -1)

    def _choose(self, logits_NV: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        params_N = batch.params_R[batch.rows_N]
        is_greedy_N = params_N["temperature"] == 0
        if is_greedy_N.all():
            return row_argmax(logits_NV)
        chosen_N = torch.zeros(len(logits_NV), dtype=torch.int64, device=logits_NV.device)
        is_cut_N = (params_N["top_k"] < logits_NV.shape[1]) | (params_N["top_p"] < 1.0)
        size = max(1, _CHUNK_VALUES // logits_NV.shape[1])
        for entries in _chunks(np.flatnonzero(is_greedy_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device, non_blocking=True)
            chosen_N[rows_n] = row_argmax(logits_NV.index_select(0, rows_n))
        for entries in _chunks(np.flatnonzero(~is_greedy_N & ~is_cut_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device, non_blocking=True)
            draws = draws_of(params_N[entries], batch.positions_N[entries], logits_NV)
            chosen_N[rows_n] = draw_whole(logits_NV.index_select(0, rows_n), draws)
        for entries in _chunks(np.flatnonzero(~is_greedy_N & is_cut_N), size):
            rows_n = torch.from_numpy(entries).to(logits_NV.device, non_blocking=True)
            draws = draws_of(params_N[entries], batch.positions_N[entries], logits_NV)
            num_first = num_first_look(params_N["top_k"][entries], self.num_prefilter)
            chosen_N[rows_n] = draw_cut(logits_NV.index_select(0, rows_n), draws, num_first)
        return chosen_N


class _Torch:
    """Takes every case."""

    def refuses(self, case: OpCase, /) -> str | None:
        return None

    def __call__(self, case: OpCase, /) -> Chooser:
        return TorchChooser()


TORCH = _Torch()
SAMPLE: Op[OpCase, Chooser] = Op(
    "sample",
    Registry(
        "sampling kernel",
        {
            "cpu": "octavo.decoding.chooser_cpu:CPU",
            "triton": "octavo.decoding.chooser_triton:TRITON",
            "torch": "octavo.decoding.chooser:TORCH",
        },
    ),
)


def masked(logits_NV: torch.Tensor, masks: RowMasks) -> torch.Tensor:
    """Logits as they are where an entry's mask allows, else -inf."""
    at_n = np.flatnonzero(masks.of_N >= 0)
    words_nW = masks.words_MW[masks.of_N[at_n]]
    bits_nV = np.unpackbits(words_nW.view(np.uint8), axis=1, bitorder="little")
    is_allowed_nV = torch.from_numpy(bits_nV[:, : logits_NV.shape[1]].view(np.bool_))
    rows = torch.from_numpy(at_n).to(logits_NV.device, non_blocking=True)
    kept_nV = logits_NV.index_select(0, rows).masked_fill_(
        ~is_allowed_nV.to(logits_NV.device, non_blocking=True), -torch.inf
    )
    return logits_NV.index_copy(0, rows, kept_nV)


def finite_rows(logits_NV: torch.Tensor) -> torch.Tensor:
    """Rows without NaN and +inf and not all -inf, as bool [N]: their largest logit is finite."""
    return torch.isfinite(block_maxima(logits_NV).amax(1))


def _chunks(entries: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
