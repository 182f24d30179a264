"""Sampling by the compiled kernel. Shape letters: N entries, V vocabulary, R rows that have parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.kernels.cpu.extension import address, native
from octavo.kernels.sampling import ROW, RowArray, RowMasks

IntArray = npt.NDArray[np.int64]


def sample(
    logits_NV: torch.Tensor,
    params_R: RowArray,
    rows_N: IntArray,
    positions_N: IntArray,
    *,
    masks: RowMasks | None = None,
    num_threads: int = 1,
    isa: str = "",
) -> IntArray:
    """One token id per entry, int64 [N]: -1 where the logits hold NaN or +inf, or are all -inf.

    Args:
        logits_NV: float32, C-contiguous.
        params_R: of dtype `ROW`.
        rows_N: which of them each entry has; below R, which is not checked.
        positions_N: of the new tokens; with seed and index, what the random number depends on.
        masks: what is not allowed counts as -inf.
        num_threads: at most so many.
        isa: forces an instruction set; the empty string takes the best.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    num_rows, vocab_size = logits_NV.shape
    token_ids_N = np.empty(num_rows, np.int64)
    native.sample(
        address("logits", logits_NV, (num_rows, vocab_size)),
        _place("params", params_R, params_R.shape, ROW),
        _place("rows", rows_N, (num_rows,), np.int64),
        _place("positions", positions_N, (num_rows,), np.int64),
        _place("token_ids", token_ids_N, (num_rows,), np.int64),
        num_rows,
        vocab_size,
        *_mask_places(masks, num_rows, vocab_size),
        num_threads,
        isa,
    )
    return token_ids_N


def _mask_places(masks: RowMasks | None, num_rows: int, vocab_size: int) -> tuple[int, int, int]:
    if masks is None:
        return 0, 0, 0
    num_masks = len(masks.words_MW)
    shape = (num_masks, -(-vocab_size // 32))
    words = _place("masks", masks.words_MW, shape, np.uint32)
    return words, _place("masks.of_N", masks.of_N, (num_rows,), np.int64), num_masks


def _place(name: str, values: npt.NDArray[Any], shape: tuple[int, ...], dtype: Any) -> int:
    """Where an array's data lie, as `address` says it of tensors."""
    if values.dtype != dtype or values.shape != shape or not values.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} {list(shape)}, contiguous; "
            f"given {values.dtype} {list(values.shape)}, strides {values.strides}."
        )
    place: int = values.__array_interface__["data"][0]
    return place
