"""What sampling keeps of each row, laid out so that compiled kernels read it in place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROW = np.dtype(
    [
        ("top_p", np.float64),
        ("top_k", np.int64),
        ("seed", np.int64),
        ("index", np.int64),
        ("temperature", np.float32),
        ("log_min_p", np.float32),
    ]
)
"""Parameters of one row: the layout of SampleRow in csrc/cpu/sample.h. A temperature of 0 is greedy; a top_k of V or more and a log_min_p of -inf are no limit."""

RowArray = npt.NDArray[np.void]


class RowMasks(NamedTuple):
    """Which tokens entries may choose. Shape letters: M masks, W words of 32 tokens, N entries."""

    words_MW: npt.NDArray[np.uint32]
    """Bit t % 32 of word t // 32 is set where token t is allowed."""
    of_N: npt.NDArray[np.int64]
    """Which mask each entry has; -1, where all tokens are allowed."""
