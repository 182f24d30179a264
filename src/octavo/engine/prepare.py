"""The rows: what a rank keeps of every running sequence, and the only place that packs tensors for a step.

Tokens and block tables live in preallocated host arrays, one row per running sequence; a plan's changes are written
into them and a step's tensors are gathered from them, so that the cost of a step does not grow with context lengths.
Tables are checked for blocks that are no longer their row's (`epochs.py`) where they are packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVGroup
from octavo.core.plan import Decodes, NewBlocks, SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.engine.epochs import BlockEpochs
from octavo.engine.faults import Faults

IntArray = npt.NDArray[np.int64]

_BLOCK_BITS = BLOCK_SIZE.bit_length() - 1
"""A power of two, so that thousands of positions need no division."""


class Spans(NamedTuple):
    """The slices of a step as columns."""

    row_S: IntArray
    start_S: IntArray
    count_S: IntArray
    query_starts: IntArray
    """[S + 1]."""

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Spans:
        """Lists of numbers first: numpy reads those several times faster than objects."""
        if isinstance(slices, Decodes):
            return cls(slices.row_S, slices.start_S, *_ones(len(slices)))
        row_S = np.array([piece.row for piece in slices], np.int64)
        start_S = np.array([piece.start for piece in slices], np.int64)
        counts = [piece.count for piece in slices]
        count_S = np.array(counts, np.int64)
        query_starts = np.array(list(accumulate(counts, initial=0)), np.int64)
        return cls(row_S, start_S, count_S, query_starts)

    @property
    def is_single(self) -> bool:
        """Whether each slice has one token, as in most steps."""
        return int(self.query_starts[-1]) == len(self.row_S)


@functools.lru_cache
def _ones(count: int) -> tuple[IntArray, IntArray]:
    """Counts and query starts of slices of one token each."""
    return np.ones(count, np.int64), np.arange(count + 1)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The inputs of a step of one token per slice. Kept and written again, so that such a step can be recorded."""

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    slots_GT: tuple[torch.Tensor, ...]
    query_starts: tuple[int, ...]
    logits_rows_N: torch.Tensor


class _Packed(NamedTuple):
    """Tables that were gathered, and are written as their rows get blocks. None once any row's may have changed otherwise."""

    row_S: IntArray
    width: int
    tables_GSB: list[npt.NDArray[np.int32]]
    given_GSB: list[IntArray]
    """Beside them: epochs."""
    there_GSB: list[torch.Tensor] | None
    """The tables where the model runs, once they were found to be their rows'; on the CPU the same memory."""


class Rows:
    """Host-side state of the running sequences. Owner: the runner."""

    def __init__(self, max_num_seqs: int, max_model_len: int, groups: tuple[KVGroup, ...]) -> None:
        max_blocks = -(-max_model_len // BLOCK_SIZE)
        self.tokens_RL = np.zeros((max_num_seqs, max_model_len + 1), np.int64)
        self.num_tokens_R = np.zeros(max_num_seqs, np.int64)
        self.tables_GRB = np.zeros((len(groups), max_num_seqs, max_blocks), np.int32)
        self.num_blocks_GR = np.zeros((len(groups), max_num_seqs), np.int64)
        self.pair_starts_R = np.zeros(max_num_seqs, np.int64)
        self.births_R = np.zeros(max_num_seqs, np.int64)
        """How often a row has changed hands, or was given up: what was begun for an earlier owner is nobody's."""
        self.requests: dict[int, Request] = {}
        self._epochs = BlockEpochs(groups, max_num_seqs, max_blocks)
        self._token_ids_R = np.zeros(max_num_seqs, np.int64)
        self._positions_R = np.zeros(max_num_seqs, np.int64)
        self._slots_GR = np.zeros((len(groups), max_num_seqs), np.int64)
        self._inputs: dict[int, _Inputs] = {}
        self._pairs: set[int] = set()
        self._packed: _Packed | None = None

    def take_over(
        self,
        plan: StepPlan,
        faults: Faults,
        *,
        begin: Callable[[SequenceStart], None],
        end: Callable[[int], None],
    ) -> None:
        """Take over what a plan says once of rows: those that ended, those that begin, new blocks.

        `begin` and `end` are what the runner keeps of a row beside this. One that cannot begin is in `faults`.
        """

        def start(one: SequenceStart) -> None:
            self.start(one)
            begin(one)

        for row in plan.ended:
            end(row)
            self.end(row)
        for one in plan.starts:
            faults.guard(one.row, "start", start, one)
        growth, slices = plan.growth, plan.slices
        is_done = (
            isinstance(slices, Decodes)
            and growth is not None
            and self._extend_each(slices.row_S, growth)
        )
        if is_done:
            return
        for piece in plan.grown.values():
            faults.guard(piece.row, "start", self.extend, piece)

    def end(self, row: int) -> None:
        """The row is free."""
        self.requests.pop(row, None)
        self.births_R[row] += 1
        self._pairs.discard(row)
        self.changed()

    def changed(self) -> None:
        """Some table is not what it was when it was last looked at."""
        self._packed = None

    def start(self, start: SequenceStart) -> None:
        """Take over a new sequence."""
        row, count = start.row, len(start.token_ids)
        self.requests[row] = start.request
        self.births_R[row] += 1
        self.tokens_RL[row, :count] = start.token_ids
        self.num_tokens_R[row] = count
        self.pair_starts_R[row] = start.request.pair_start
        if start.request.pair_start:
            self._pairs.add(row)
        self.num_blocks_GR[:, row] = 0
        self.tables_GRB[:, row] = 0
        self._epochs.clear(row)
        self._append_blocks(row, start.blocks, start.epochs)

    def extend(self, piece: Slice) -> None:
        """Take over the blocks that a sequence was given since its last slice."""
        self._append_blocks(piece.row, piece.new_blocks, piece.new_epochs)

    def _extend_each(self, row_S: IntArray, growth: NewBlocks) -> bool:
        """`extend` for slices with one new block in each group. False, with nothing done, where some table is full."""
        row_P, packed = growth.row_P, self._packed
        have_GP = self.num_blocks_GR[:, row_P]
        most = int(have_GP.max())
        if most >= self.tables_GRB.shape[2]:
            return False
        if packed is not None and (packed.row_S is not row_S or most >= packed.width):
            self._packed = packed = None
        told = zip(have_GP, growth.blocks_GP, growth.epochs_GP, strict=True)
        for group, (have_P, new_P, given_P) in enumerate(told):
            self.tables_GRB[group][row_P, have_P] = new_P
            self._epochs.give_each(group, (row_P, have_P), new_P, given_P)
            if packed is not None:
                at = growth.indices, have_P
                packed.tables_GSB[group][at], packed.given_GSB[group][at] = new_P, given_P
        self.num_blocks_GR[:, row_P] += 1
        if packed is not None:
            self._packed = packed._replace(there_GSB=None)
        return True

    def _append_blocks(
        self, row: int, blocks: tuple[tuple[int, ...], ...], epochs: tuple[tuple[int, ...], ...]
    ) -> None:
        self.changed()
        for group, (new, given) in enumerate(zip(blocks, epochs, strict=True)):
            if new:
                have = int(self.num_blocks_GR[group, row])
                if len(new) == 1:  # of a row that decodes; as a slice it takes three times as long
                    self.tables_GRB[group, row, have] = new[0]
                else:
                    self.tables_GRB[group, row, have : have + len(new)] = new
                self._epochs.give(group, row, have, new, given)
                self.num_blocks_GR[group, row] += len(new)

    def token_ids(self, row: int) -> tuple[int, ...]:
        """All known tokens of a row."""
        return tuple(self.tokens_RL[row, : self.num_tokens_R[row]].tolist())

    def append_tokens(
        self, rows_N: IntArray, token_ids_N: IntArray, *, is_each: bool = False
    ) -> None:
        """Write sampled tokens behind the rows' known tokens, one each; -1 is none, of which there are none with `is_each`."""
        if not is_each and token_ids_N.size and token_ids_N.min() < 0:
            rows_N, token_ids_N = rows_N[token_ids_N >= 0], token_ids_N[token_ids_N >= 0]
        self.tokens_RL[rows_N, self.num_tokens_R[rows_N]] = token_ids_N
        self.num_tokens_R[rows_N] += 1

    def append_forced(self, row: int, token_ids: tuple[int, ...]) -> None:
        """Write tokens that were not sampled behind a row's known tokens."""
        have = self.num_tokens_R[row]
        self.tokens_RL[row, have : have + len(token_ids)] = token_ids
        self.num_tokens_R[row] += len(token_ids)

    def is_known(self, piece: Slice) -> bool:
        """Whether all tokens of a slice are known here."""
        return bool(piece.start + piece.count <= self.num_tokens_R[piece.row])

    def unknown(self, spans: Spans) -> npt.NDArray[np.bool_] | None:
        """Of which slices the last token, and that alone, was sampled and is not known here yet [S]; None: of none."""
        is_unknown_S = spans.start_S + spans.count_S > self.num_tokens_R[spans.row_S]
        return is_unknown_S if is_unknown_S.any() else None

    def mark_unknown(
        self, batch: ForwardBatch, spans: Spans, is_unknown_S: npt.NDArray[np.bool_]
    ) -> None:
        """Write -1 - row in place of tokens that are not known here yet, as a batch on the CPU is packed."""
        last_S = spans.query_starts[1:][is_unknown_S] - 1
        batch.token_ids_T[torch.from_numpy(last_S)] = torch.from_numpy(
            -1 - spans.row_S[is_unknown_S]
        )

    def pack(self, spans: Spans, logits_rows_N: IntArray, device: torch.device) -> ForwardBatch:
        """One step as tensors. `logits_rows_N` [N]: indices into the step's tokens whose logits are wanted.

        On the CPU, the tensors of a step of one token per slice are the same ones for every step of as many slices.

        Raises:
            ForeignBlocks: rows that would read blocks which are not theirs.
        """
        if spans.is_single and len(logits_rows_N) == len(spans.row_S):
            return self._pack_single(spans, device)
        query_starts = spans.query_starts
        offset_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1], spans.count_S)
        row_T = np.repeat(spans.row_S, spans.count_S)
        position_T = np.repeat(spans.start_S, spans.count_S) + offset_T
        slots_GT = tuple(_tensor(slots_T, device) for slots_T in self._slots(row_T, position_T))
        context_lens = tuple((spans.start_S + spans.count_S).tolist())
        return ForwardBatch(
            token_ids_T=_tensor(self.tokens_RL[row_T, position_T], device),
            positions_T=_tensor(position_T, device),
            query_starts=tuple(query_starts.tolist()),
            context_lens=context_lens,
            groups=self._groups(spans, context_lens, slots_GT, device),
            logits_rows_N=_tensor(logits_rows_N, device),
            type_ids_T=self._type_ids(spans.row_S, row_T, position_T, device),
        )

    def _pack_single(self, spans: Spans, device: torch.device) -> ForwardBatch:
        n = len(spans.row_S)
        self._token_ids_R[:n] = self.tokens_RL[spans.row_S, spans.start_S]
        self._positions_R[:n] = spans.start_S
        for slots_R, slots_T in zip(
            self._slots_GR, self._slots(spans.row_S, spans.start_S), strict=True
        ):
            slots_R[:n] = slots_T
        inputs = self._inputs.get(n) or self._single_inputs(n, device)
        context_lens = tuple((spans.start_S + 1).tolist())
        return ForwardBatch(
            token_ids_T=inputs.token_ids_T,
            positions_T=inputs.positions_T,
            query_starts=inputs.query_starts,
            context_lens=context_lens,
            groups=self._groups(spans, context_lens, inputs.slots_GT, device),
            logits_rows_N=inputs.logits_rows_N,
            type_ids_T=self._type_ids(spans.row_S, spans.row_S, spans.start_S, device),
        )

    def _single_inputs(self, n: int, device: torch.device) -> _Inputs:
        inputs = _Inputs(
            token_ids_T=_tensor(self._token_ids_R[:n], device),
            positions_T=_tensor(self._positions_R[:n], device),
            slots_GT=tuple(_tensor(slots_R[:n], device) for slots_R in self._slots_GR),
            query_starts=tuple(range(n + 1)),
            logits_rows_N=_tensor(np.arange(n), device),
        )
        if device.type == "cpu":  # elsewhere they are copies
            self._inputs[n] = inputs
        return inputs

    def _slots(self, row_T: IntArray, position_T: IntArray) -> list[IntArray]:
        """Where keys and values go, int64 [T] per group."""
        at_T, used_T = position_T >> _BLOCK_BITS, position_T & (BLOCK_SIZE - 1)
        return [
            (table_RB[row_T, at_T].astype(np.int64) << _BLOCK_BITS) + used_T
            for table_RB in self.tables_GRB
        ]

    def _groups(
        self,
        spans: Spans,
        context_lens: tuple[int, ...],
        slots_GT: tuple[torch.Tensor, ...],
        device: torch.device,
    ) -> tuple[GroupBatch, ...]:
        width = -(-max(context_lens) // BLOCK_SIZE)
        packed = self._packed
        if packed is None or packed.row_S is not spans.row_S or packed.width != width:
            packed = None
        there_GSB = None if packed is None else packed.there_GSB
        if there_GSB is None:
            self._packed = None
            packed = packed or self._gathered(spans.row_S, width)
            there_GSB = self._check(packed, spans, device)
            self._packed = packed._replace(there_GSB=there_GSB)
        return tuple(
            [
                GroupBatch(slots_T=slots_T, block_tables_SB=tables_SB)
                for slots_T, tables_SB in zip(slots_GT, there_GSB, strict=True)
            ]
        )

    def _gathered(self, row_S: IntArray, width: int) -> _Packed:
        tables_GSB = [np.ascontiguousarray(table_RB[row_S, :width]) for table_RB in self.tables_GRB]
        return _Packed(row_S, width, tables_GSB, self._epochs.given(row_S, width), None)

    def _check(self, packed: _Packed, spans: Spans, device: torch.device) -> list[torch.Tensor]:
        """The tables as they may be read."""
        tables_GSB, given_GSB = packed.tables_GSB, packed.given_GSB
        self._epochs.check(tables_GSB, self.tables_GRB, spans.row_S, spans.start_S, given_GSB)
        return [_tensor(tables_SB, device) for tables_SB in tables_GSB]

    def _type_ids(
        self, row_S: IntArray, row_T: IntArray, position_T: IntArray, device: torch.device
    ) -> torch.Tensor | None:
        if not self._pairs or not self.pair_starts_R[row_S].any():
            return None
        start_T = self.pair_starts_R[row_T]
        return _tensor(((start_T > 0) & (position_T >= start_T)).astype(np.int64), device)


def probe_batch(num_groups: int, device: torch.device) -> ForwardBatch:
    """One token of nobody's at the start of the null block."""
    zero = np.zeros(1, np.int64)
    group = GroupBatch(
        slots_T=_tensor(zero, device),
        block_tables_SB=_tensor(np.zeros((1, 1), np.int32), device),
    )
    return ForwardBatch(
        token_ids_T=_tensor(zero, device),
        positions_T=_tensor(zero, device),
        query_starts=(0, 1),
        context_lens=(1,),
        groups=(group,) * num_groups,
        logits_rows_N=_tensor(zero, device),
    )


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)
