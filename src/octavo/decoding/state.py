"""What sampling keeps per running row between steps, and the rows of one step drawn from it.

Small numbers live in host arrays indexed by row; `RowEdits` exist only for rows that ask for an
edit. Nothing here is as large as the vocabulary and nothing is on a device: the sampler uploads one
small tensor per step.

Shape letters: R rows (max_num_seqs), N entries wanted in this step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.request import Request
from octavo.decoding.penalties import RowEdits, needs_edits

NO_TOP_K = 1 << 40
"""Stands for "no limit" in `top_k_N`: above any vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """Sampling parameters of one step's entries, on the host. Built by `SamplerState.batch`."""

    is_greedy_N: npt.NDArray[np.bool_]
    temperature_N: npt.NDArray[np.float64]
    top_k_N: npt.NDArray[np.int64]
    """`NO_TOP_K` where there is no limit."""
    top_p_N: npt.NDArray[np.float64]
    min_p_N: npt.NDArray[np.float64]
    seed_N: npt.NDArray[np.int64]
    index_N: npt.NDArray[np.int64]
    position_N: npt.NDArray[np.int64]
    """Tokens before the one to be sampled: its absolute position."""
    num_logprobs: tuple[int | None, ...]
    """[N]: how many alternatives to report; None for no logprobs at all."""
    edits: tuple[tuple[int, RowEdits], ...]
    """(n, edits) of the entries whose logits need editing."""


class SamplerState:
    """Sampling state of the running rows. Owner: the runner of one rank.

    A row is added when its sequence starts, told of every token put out, and removed when the
    sequence leaves.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._is_greedy_R = np.ones(max_num_seqs, np.bool_)
        self._temperature_R = np.ones(max_num_seqs, np.float64)
        self._top_k_R = np.full(max_num_seqs, NO_TOP_K, np.int64)
        self._top_p_R = np.ones(max_num_seqs, np.float64)
        self._min_p_R = np.zeros(max_num_seqs, np.float64)
        self._seed_R = np.zeros(max_num_seqs, np.int64)
        self._index_R = np.zeros(max_num_seqs, np.int64)
        self._num_logprobs: list[int | None] = [None] * max_num_seqs
        self._edits: dict[int, RowEdits] = {}

    def add(self, row: int, request: Request, token_ids: Sequence[int]) -> None:
        """Learn a sequence: its request and its tokens (prompt, and output after a preemption)."""
        params = request.params
        # A top_k of 1 leaves one token: it is the greedy choice, and ties go to the lowest id.
        self._is_greedy_R[row] = params.is_greedy or params.top_k == 1
        self._temperature_R[row] = params.temperature
        self._top_k_R[row] = params.top_k if params.top_k > 0 else NO_TOP_K
        self._top_p_R[row] = params.top_p
        self._min_p_R[row] = params.min_p
        self._seed_R[row] = request.seed
        self._index_R[row] = request.index
        self._num_logprobs[row] = params.logprobs
        self._edits.pop(row, None)
        if needs_edits(request):
            self._edits[row] = RowEdits(request, token_ids, self.vocab_size)

    def append(self, row: int, token_id: int) -> None:
        """Take note of a token that the row's sequence put out."""
        edits = self._edits.get(row)
        if edits is not None:
            edits.append(token_id)

    def remove(self, row: int) -> None:
        """Forget a row."""
        self._edits.pop(row, None)

    def batch(self, rows: Sequence[int], positions: Sequence[int]) -> SamplingBatch:
        """Parameters of `rows`, in that order; `positions[n]` is where entry n's token will be."""
        rows_N = np.asarray(rows, np.int64)
        edits = ((n, self._edits.get(row)) for n, row in enumerate(rows))
        return SamplingBatch(
            is_greedy_N=self._is_greedy_R[rows_N],
            temperature_N=self._temperature_R[rows_N],
            top_k_N=self._top_k_R[rows_N],
            top_p_N=self._top_p_R[rows_N],
            min_p_N=self._min_p_R[rows_N],
            seed_N=self._seed_R[rows_N],
            index_N=self._index_R[rows_N],
            position_N=np.asarray(positions, np.int64),
            num_logprobs=tuple(self._num_logprobs[row] for row in rows),
            edits=tuple((n, edit) for n, edit in edits if edit is not None and edit.is_active),
        )
