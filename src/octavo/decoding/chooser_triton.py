"""Tokens on a GPU by Triton kernels: nothing is read back before it is asked for.

`launch` does a whole step: what the kernels need of the host goes up in one copy, edits, masks, choice, finite check and
log-probabilities are queued behind it, and `DeviceTokens.read` is the first that waits. Tokens are those of plain torch;
log-probabilities may differ in the last bits (`kernels/triton/logprobs.py`). Loads no triton until then.

Shape letters: N entries of the step, V vocabulary, E edited entries, M masks, W words of 32 tokens, C entries that want
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.result import TokenLogprobs
from octavo.decoding.penalties import RowEdits
from octavo.decoding.state import SamplingBatch
from octavo.kernels.dispatch import OpCase
from octavo.kernels.sampling import RowMasks
from octavo.kernels.triton import support

IntArray = npt.NDArray[np.int64]
_ALIGNMENT = 16


class DeviceTokens:
    """What `TritonChooser.launch` queued. Read it once the host needs it."""

    def __init__(
        self,
        token_ids_N: torch.Tensor,
        is_sound_N: torch.Tensor | None,
        logprobs: tuple[torch.Tensor, torch.Tensor] | None,
        num_logprobs: dict[int, int],
    ) -> None:
        self.token_ids_N = token_ids_N
        """int64 on the device, -1 where there is none: what the next step can begin with."""
        self._is_sound_N = is_sound_N
        self._logprobs = logprobs
        self._num_logprobs = num_logprobs

    def read(self) -> tuple[IntArray, npt.NDArray[np.bool_]]:
        """Waits: token ids [N], -1 for none, and whether the raw logits of each entry were sound."""
        if self._is_sound_N is None:
            token_ids_N = self.token_ids_N.cpu().numpy()
            return token_ids_N, token_ids_N >= 0
        both_2N = torch.stack((self.token_ids_N, self._is_sound_N.long())).cpu().numpy()
        return both_2N[0], both_2N[1] != 0

    def read_logprobs(self) -> dict[int, TokenLogprobs]:
        """Waits: entry -> log-probabilities, of the entries that asked."""
        if self._logprobs is None:
            return {}
        ids, values = self._logprobs[0].tolist(), self._logprobs[1].tolist()
        found = {}
        for (n, count), (rank, *tokens), row in zip(
            self._num_logprobs.items(), ids, values, strict=True
        ):
            found[n] = TokenLogprobs(tuple(tokens[: 1 + count]), tuple(row[: 1 + count]), rank)
        return found


class TritonChooser:
    """The kernels."""

    def choose(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> IntArray:
        """As `Chooser.choose`."""
        choices = batch.masks.choices if batch.masks else None
        words_MW, of_N = (None, None) if choices is None else choices
        parcel = _Parcel()
        at = parcel.add(_table(batch, of_N)), parcel.add(_words(words_MW))
        sent = parcel.send(logits_NV.device)
        tokens_N: IntArray = (
            _sample(logits_NV.contiguous(), sent[at[0]], sent[at[1]], batch).cpu().numpy()
        )
        return tokens_N

    def launch(self, raw_NV: torch.Tensor, batch: SamplingBatch, /) -> DeviceTokens:
        """Queue a step: edits, masks, choice, finite check, log-probabilities.

        `raw_NV` is float32 and left as it is.
        """
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton.edit_logits import edit_logits
        from octavo.kernels.triton.logprobs import token_logprobs
        from octavo.kernels.triton.sample import finite_rows

        raw_NV = raw_NV.contiguous()
        vocab = raw_NV.shape[1]
        masks = _with_allowed(batch, vocab)
        parcel = _Parcel()
        at_table = parcel.add(_table(batch, masks.of_N if masks else None))
        at_words = parcel.add(_words(masks.words_MW if masks else None))
        at_edits = [parcel.add(part) for part in _edit_lists(batch.edits)]
        wanted = np.fromiter(batch.num_logprobs, np.int64, len(batch.num_logprobs))
        num_top = np.fromiter(batch.num_logprobs.values(), np.int64, len(wanted)).clip(max=vocab)
        at_wanted = parcel.add(wanted), parcel.add(num_top)
        sent = parcel.send(raw_NV.device)
        edited_NV = raw_NV
        if batch.edits:
            edited_NV = raw_NV.clone()
            edit_logits(edited_NV, *(sent[at] for at in at_edits))
        tokens_N = _sample(edited_NV, sent[at_table], sent[at_words], batch)
        # Otherwise the choice itself has looked at all raw logits.
        is_sound_N = finite_rows(raw_NV, sent[at_table]) if batch.edits or masks else None
        logprobs = None
        if len(wanted):
            wanted_C, num_top_C = sent[at_wanted[0]], sent[at_wanted[1]]
            most = int(num_top.max())
            logprobs = token_logprobs(raw_NV, tokens_N, wanted_C, num_top_C, most)
        return DeviceTokens(tokens_N, is_sound_N, logprobs, batch.num_logprobs)


class _Triton:
    """Takes float32 logits on a GPU."""

    def refuses(self, case: OpCase, /) -> str | None:
        """Refuses other devices and dtypes, old devices, and a process without triton."""
        return support.refusal(case.device, case.dtype, ("float32",))

    def __call__(self, case: OpCase, /) -> TritonChooser:
        """A chooser; the case says no more than that it is wanted here."""
        return TritonChooser()


TRITON = _Triton()


class _Parcel:
    """Arrays that go to the device together, in one copy that the host does not wait for."""

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray[Any]] = []
        self._starts = [0]

    def add(self, array: npt.NDArray[Any]) -> int:
        """Its place in what `send` gives."""
        self._arrays.append(np.ascontiguousarray(array))
        end = self._starts[-1] + array.nbytes
        self._starts.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> list[torch.Tensor]:
        """The arrays there, in the order in which they were added."""
        is_cuda = device.type == "cuda"
        # Pinned memory is torch's to reuse, which it does when the copy is over.
        host = torch.empty(self._starts[-1], dtype=torch.uint8, pin_memory=is_cuda)
        place = host.numpy()
        for start, array in zip(self._starts, self._arrays, strict=False):
            place[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = host.to(device, non_blocking=True)
        return [
            sent[start : start + array.nbytes]
            .view(getattr(torch, array.dtype.name))
            .view(array.shape)
            for start, array in zip(self._starts, self._arrays, strict=False)
        ]


def _sample(
    logits_NV: torch.Tensor, table: torch.Tensor, words: torch.Tensor, batch: SamplingBatch
) -> torch.Tensor:
    # lazy: Triton is loaded where it runs
    from octavo.kernels.triton.sample import Kinds, sample

    params_N = batch.params_R[batch.rows_N]
    is_random_N = params_N["temperature"] != 0
    has_top_k_N = params_N["top_k"] < logits_NV.shape[1]
    kinds = Kinds(
        needs_mass=bool((is_random_N & ~has_top_k_N).any()),
        is_cut=bool((is_random_N & (has_top_k_N | (params_N["top_p"] < 1.0))).any()),
    )
    return sample(logits_NV, table, words if len(words) else None, kinds)


def _table(batch: SamplingBatch, mask_of_N: IntArray | None) -> IntArray:
    """Parameters of the entries, int64 [8, N] as `kernels/triton/sample.py: COLUMNS` says."""
    params_N = batch.params_R[batch.rows_N]

    def bits(name: str) -> IntArray:
        return params_N[name].astype(np.float64).view(np.int64)

    mask_N = np.full(len(params_N), -1, np.int64) if mask_of_N is None else mask_of_N
    columns = (
        bits("top_p"),
        params_N["top_k"],
        params_N["seed"],
        params_N["index"],
        batch.positions_N,
        bits("temperature"),
        bits("log_min_p"),
        mask_N,
    )
    return np.stack(columns).astype(np.int64, copy=False)


def _words(words_MW: npt.NDArray[np.uint32] | None) -> npt.NDArray[np.int32]:
    return np.empty((0, 0), np.int32) if words_MW is None else words_MW.view(np.int32)


def _with_allowed(batch: SamplingBatch, vocab: int) -> RowMasks | None:
    """The grammars' masks and those of allowed token ids; where an entry has both, what both allow."""
    choices = batch.masks.choices if batch.masks else None
    allowed = [(n, edits) for n, edits in batch.edits if edits.allowed_ids is not None]
    if not allowed:
        return choices
    num_entries, num_words = len(batch.rows_N), -(-vocab // 32)
    if choices is None:
        choices = RowMasks(np.empty((0, num_words), np.uint32), np.full(num_entries, -1, np.int64))
    words, of_N = list(choices.words_MW), choices.of_N.copy()
    for n, edits in allowed:
        mask_W = edits.allowed_words(vocab)
        words.append(mask_W if of_N[n] < 0 else mask_W & choices.words_MW[of_N[n]])
        of_N[n] = len(words) - 1
    return RowMasks(np.stack(words), of_N)


def _edit_lists(edits: Sequence[tuple[int, RowEdits]]) -> tuple[npt.NDArray[Any], ...]:
    """Table, penalties, ids and values as `edit_logits` takes them."""
    table = np.empty((len(edits), 5), np.int64)
    penalties = np.empty((len(edits), 3), np.float32)
    ids: list[IntArray] = []
    values: list[npt.NDArray[np.float32]] = []
    end = 0
    for e, (n, edit) in enumerate(edits):
        table[e, 0] = n
        penalties[e] = edit.repetition_penalty, edit.frequency_penalty, edit.presence_penalty
        banned = edit.banned_ids()
        parts = [(edit.bias_ids, edit.bias_values), (banned, np.zeros(len(banned), np.float32))]
        if edit.tally is not None:
            parts.insert(1, (edit.tally.ids, edit.tally.counts))
        else:
            parts.insert(1, (banned[:0], edit.bias_values[:0]))
        for column, (part_ids, part_values) in enumerate(parts):
            table[e, 1 + column] = end
            ids.append(part_ids)
            values.append(part_values)
            end += len(part_ids)
        table[e, 4] = end
    if not edits:
        return table, penalties, np.empty(0, np.int64), np.empty(0, np.float32)
    return table, penalties, np.concatenate(ids), np.concatenate(values)
