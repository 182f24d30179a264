"""What sampling keeps per running row between steps, and the rows of one step drawn from it.

Small numbers live in host arrays indexed by row; `RowEdits` exist only for rows that ask for an
edit. Nothing here is as large as the vocabulary and nothing is on a device.

Shape letters: R rows (max_num_seqs), N entries wanted in this step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from octavo.core.request import Request
from octavo.decoding.grammar.rows import GrammarRows, StepMasks
from octavo.decoding.penalties import RowEdits, needs_edits
from octavo.kernels.sampling import ROW, RowArray

NO_TOP_K = 1 << 40
"""Stands for "no limit" as a top_k: above any vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """Sampling parameters of one step's entries, on the host. Built by `SamplerState.batch`."""

    params_R: RowArray
    """Of dtype `ROW`, all rows; `NO_TOP_K` where there is no limit."""
    rows_N: npt.NDArray[np.int64]
    positions_N: npt.NDArray[np.int64]
    """Tokens before the one to be sampled: its absolute position."""
    num_logprobs: dict[int, int]
    """n -> how many alternatives to report, of the entries that want log-probabilities."""
    edits: tuple[tuple[int, RowEdits], ...]
    """(n, edits) of the entries whose logits need editing."""
    masks: StepMasks | None = None
    """Of the entries that have a grammar; None when none has."""


def greedy_batch(num_entries: int = 1) -> SamplingBatch:
    """Entries of nobody's that take the most likely token."""
    return _nobodys((1.0, NO_TOP_K, 0, 0, 0.0, -math.inf), num_entries)


def random_batch(num_entries: int) -> SamplingBatch:
    """Entries of nobody's that draw from the most likely tokens."""
    return _nobodys((0.9, NO_TOP_K, 0, 0, 1.0, -math.inf), num_entries)


def _nobodys(row: tuple[float, ...], num_entries: int) -> SamplingBatch:
    return SamplingBatch(
        params_R=np.array([row], ROW),
        rows_N=np.zeros(num_entries, np.int64),
        positions_N=np.ones(num_entries, np.int64),
        num_logprobs={},
        edits=(),
    )


class SamplerState:
    """Sampling state of the running rows. Owner: the runner of one rank.

    A row is added when its sequence starts, told of every token put out, and removed when the
    sequence leaves.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.grammars = GrammarRows(max_num_seqs, vocab_size)
        self._params_R = np.zeros(max_num_seqs, ROW)
        self._num_logprobs: dict[int, int] = {}
        self._edits: dict[int, RowEdits] = {}

    @property
    def is_plain(self) -> bool:
        """Whether no row's next choice depends on its tokens so far, or says more than a token."""
        return not (self._edits or self._num_logprobs or self.grammars.is_in_use)

    def add(self, row: int, request: Request, token_ids: Sequence[int]) -> None:
        """Learn a sequence: its request and its tokens (prompt, and output after a preemption)."""
        params = request.params
        # A top_k of 1 leaves one token: it is the greedy choice, and ties go to the lowest id.
        is_greedy = params.is_greedy or params.top_k == 1
        self._params_R[row] = (
            params.top_p,
            params.top_k if params.top_k > 0 else NO_TOP_K,
            request.seed,
            request.index,
            0.0 if is_greedy else params.temperature,
            math.log(params.min_p) if params.min_p > 0 else -math.inf,
        )
        self.remove(row)
        if params.logprobs is not None:
            self._num_logprobs[row] = params.logprobs
        if needs_edits(request):
            self._edits[row] = RowEdits(request, token_ids, self.vocab_size)
        self.grammars.start(row, request, token_ids[request.num_prompt :])

    def append(self, rows: Sequence[int] | npt.NDArray[np.int64], token_ids: Sequence[int]) -> None:
        """Take note of the tokens that some rows' sequences put out, one each; -1 is none."""
        if not self._edits:
            return
        for row, token_id in zip(np.asarray(rows).tolist(), token_ids, strict=True):
            edits = self._edits.get(row)
            if edits is not None and token_id >= 0:
                edits.append(token_id)

    def extend(self, row: int, token_ids: Sequence[int]) -> None:
        """Take note of tokens of one row that were not chosen."""
        edits = self._edits.get(row)
        if edits is not None:
            for token_id in token_ids:
                edits.append(token_id)

    def remove(self, row: int) -> None:
        """Forget a row."""
        self._num_logprobs.pop(row, None)
        self._edits.pop(row, None)
        self.grammars.remove(row)

    def batch(
        self,
        rows: Sequence[int] | npt.NDArray[np.int64],
        positions: Sequence[int] | npt.NDArray[np.int64],
    ) -> SamplingBatch:
        """Parameters of `rows`, in that order; `positions[n]` is where entry n's token will be."""
        rows_N = np.asarray(rows, np.int64)
        num_logprobs, edits = self._num_logprobs, self._edits
        wants, edited = {}, []
        if num_logprobs or edits:
            for n, row in enumerate(rows_N.tolist()):
                if row in num_logprobs:
                    wants[n] = num_logprobs[row]
                if row in edits and edits[row].is_active:
                    edited.append((n, edits[row]))
        return SamplingBatch(
            params_R=self._params_R,
            rows_N=rows_N,
            positions_N=np.asarray(positions, np.int64),
            num_logprobs=wants,
            edits=tuple(edited),
            masks=self.grammars.masks(rows_N),
        )
