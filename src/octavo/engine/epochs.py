"""Whether a row still owns the blocks of its table: every handing out of a block has a number, its epoch. No torch.

Two accounts are kept apart. A table entry goes with the epoch under which its row was given the block; each block goes
with the last epoch that any plan has told. They agree while the block is the row's, and differ once it was handed out
anew, or when the entry is not the block that the row was given. The check reads what is handed to the kernels, eight
bytes for each block of which they will read sixteen tokens in every layer.

Shape letters: G KV groups, R rows, B blocks of the longest table, S slices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from octavo.core.errors import EngineError
from octavo.core.kvspec import BLOCK_SIZE, KVGroup

IntArray = npt.NDArray[np.int64]


class ForeignBlocks(EngineError):
    """Rows whose tables hold blocks that were freed or never theirs. Nothing was read or written yet."""

    default_code = "kv_epoch"

    def __init__(self, rows: dict[int, str]) -> None:
        """`rows`: row -> what is wrong, in words."""
        super().__init__("; ".join(f"row {row}: {what}" for row, what in rows.items()))
        self.rows = rows


class BlockEpochs:
    """Owner: the rows, whose tables these epochs lie beside."""

    def __init__(self, groups: tuple[KVGroup, ...], max_num_seqs: int, max_blocks: int) -> None:
        self._windows = tuple(group.spec.window for group in groups)
        self._given_GRB = np.zeros((len(groups), max_num_seqs, max_blocks), np.int64)
        self._last_GB = tuple(np.zeros(max(1, group.num_blocks), np.int64) for group in groups)

    def clear(self, row: int) -> None:
        """The row begins with an empty table, null to its end."""
        self._given_GRB[:, row] = 0

    def give(
        self, group: int, row: int, at: int, blocks: Sequence[int], epochs: Sequence[int]
    ) -> None:
        """The row's table goes on with these blocks from index `at` on. An old epoch takes no block back."""
        last_B = self._last_GB[group]
        if len(blocks) == 1:  # as in `Rows`
            self._given_GRB[group, row, at] = epochs[0]
            last_B[blocks[0]] = max(last_B[blocks[0]], epochs[0])
            return
        self._given_GRB[group, row, at : at + len(blocks)] = epochs
        last_B[list(blocks)] = np.maximum(last_B[list(blocks)], epochs)

    def give_each(
        self, group: int, at: tuple[IntArray, IntArray], blocks_P: IntArray, epochs_P: IntArray
    ) -> None:
        """`give` of one block to each of some rows; `at`: rows and indices. No block twice."""
        last_B = self._last_GB[group]
        self._given_GRB[group][at] = epochs_P
        last_B[blocks_P] = np.maximum(last_B[blocks_P], epochs_P)

    def given(self, row_S: IntArray, width: int) -> list[IntArray]:
        """Beside the first `width` entries of these rows' tables: the epochs under which they were given."""
        return [given_RB[row_S, :width] for given_RB in self._given_GRB]

    def check(
        self,
        tables_GSB: list[npt.NDArray[np.int32]],
        tables_GRB: npt.NDArray[np.int32],
        row_S: IntArray,
        start_S: IntArray,
        given_GSB: list[IntArray] | None = None,
    ) -> None:
        """Compare the tables of a step, about to be read. `given_GSB`: what `given` says of them, where that is at hand.

        Entries that a window has passed are freed while they stand; they become null here, once they are met.

        Raises:
            ForeignBlocks: rows that would read what is not theirs.
        """
        wrong: dict[int, str] = {}
        given_GSB = given_GSB or self.given(row_S, tables_GSB[0].shape[1] if tables_GSB else 0)
        for group, (tables_SB, given_SB) in enumerate(zip(tables_GSB, given_GSB, strict=True)):
            given_RB, last_B = self._given_GRB[group], self._last_GB[group]
            differs_SB = last_B.take(tables_SB, mode="clip") != given_SB
            if not np.count_nonzero(
                differs_SB
            ):  # half the time of any() where there is little to look at
                continue
            for s, index in np.argwhere(differs_SB).tolist():
                row, window = int(row_S[s]), self._windows[group]
                if window is not None and index < max(0, start_S[s] - window + 1) // BLOCK_SIZE:
                    tables_SB[s, index] = tables_GRB[group, row, index] = 0
                    given_RB[row, index] = given_SB[s, index] = 0
                    continue
                block = int(tables_SB[s, index])
                now = last_B.take(block, mode="clip")
                wrong.setdefault(
                    row,
                    f"block {block} of group {group}, entry {index} of its table, was given under epoch "
                    f"{given_RB[row, index]} and has epoch {now}",
                )
        if wrong:
            raise ForeignBlocks(wrong)
