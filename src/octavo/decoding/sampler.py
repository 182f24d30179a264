"""How logits become tokens: edit (`penalties.py`), mask, check and choose (`chooser.py`), report.

Work that no row asks for is not done. Each row's token depends on that row's logits, parameters and
position alone; see `draw.py` for how.

Shape letters: N entries of the step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.errors import ErrorInfo
from octavo.core.result import TokenLogprobs
from octavo.decoding.chooser import SAMPLE, AheadChooser, Chooser, finite_rows
from octavo.decoding.chooser_triton import DeviceTokens, TritonChooser
from octavo.decoding.grammar.rows import StepMasks
from octavo.decoding.logprobs import token_logprobs
from octavo.decoding.penalties import RowEdits, apply_edits
from octavo.decoding.state import SamplerState, SamplingBatch
from octavo.kernels.dispatch import Dispatcher, OpCase

Rows = Sequence[int] | npt.NDArray[np.int64]

NOT_FINITE = ErrorInfo(
    code="non_finite_logits",
    message="the model put out NaN or infinite logits for this request",
    status=500,
    fix="A fault of the machine, or weights too large for the dtype; send it again, or try --dtype float32.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """What one call chose, entry by entry."""

    token_ids: tuple[int, ...]
    """[N]: -1, no token, for entries in `bad_rows` and in `ended`."""
    logprobs: tuple[TokenLogprobs | None, ...]
    """[N]: where asked, and where there is a token."""
    bad_rows: dict[int, ErrorInfo]
    """Entry n (not the row's number) -> why it has no token."""
    ended: frozenset[int] = frozenset()
    """Entries whose output was complete before this step."""
    has_logprobs: bool = False
    """Whether any entry has them."""


class Sampler:
    """Chooses tokens. Holds no state: what a row needs is in `SamplerState`."""

    def __init__(self, chooser: Chooser | None = None) -> None:
        """`chooser`: None takes the first that takes float32 logits on the device they are on."""
        self._chooser = chooser
        self._ahead = None if chooser is None else _ahead(chooser)
        self._dispatch = Dispatcher()

    def sample(
        self, logits_NV: torch.Tensor, rows: Rows, state: SamplerState, positions: Rows
    ) -> SampledTokens:
        """One token per entry.

        Args:
            logits_NV: raw logits, any float dtype [N, V]; left as they are.
            rows: [N], the row of each entry, each row at most once.
            state: told of every earlier token of those rows. It is not told of the new ones here.
            positions: [N], number of tokens before the new one.
        """
        return self.launch(logits_NV, rows, state, positions).read()

    def launch(
        self, logits_NV: torch.Tensor, rows: Rows, state: SamplerState, positions: Rows
    ) -> Launched:
        """As `sample`, but where logits are on a GPU nothing waits for it before `Launched.read`."""
        if not len(rows):
            return Launched(lambda: SampledTokens(token_ids=(), logprobs=(), bad_rows={}))
        batch = state.batch(rows, positions)
        raw_NV = logits_NV.float()
        chooser = self.chooser_for(raw_NV.device)
        if isinstance(chooser, TritonChooser):
            found = chooser.launch(raw_NV, batch)
            return Launched(lambda: _read(found, batch), found.token_ids_N)
        sampled = _sample_here(raw_NV, batch, chooser)
        return Launched(lambda: sampled)

    def choose_ahead(
        self, logits_NV: torch.Tensor, rows: Rows, state: SamplerState, positions: Rows
    ) -> torch.Tensor:
        """Tokens of entries without edits, masks and log-probabilities, int64 [N] where the logits are; the host need not
        wait for them. -1 where logits are not finite.
        """
        batch = state.batch(rows, positions)
        assert not batch.edits and not batch.num_logprobs and batch.masks is None, "plain rows"
        chooser = self.chooser_for(logits_NV.device)
        if isinstance(chooser, TritonChooser):
            return chooser.launch(logits_NV.float(), batch).token_ids_N
        if self._ahead is not None:
            return self._ahead.chosen(logits_NV.float(), batch)
        return torch.from_numpy(chooser.choose(logits_NV.float(), batch)).to(logits_NV.device)

    def chooser_for(self, device: torch.device) -> Chooser:
        """Who chooses from logits there; asked for once."""
        if self._chooser is None:
            case = OpCase(device=device.type, dtype="float32")
            self._chooser = self._dispatch.choose(SAMPLE, case)
            self._ahead = _ahead(self._chooser)
        return self._chooser


def _ahead(chooser: Chooser) -> AheadChooser | None:
    """The same, where it need not be waited for. To ask for a protocol takes 15 us."""
    return chooser if isinstance(chooser, AheadChooser) else None


class Launched:
    """A step's tokens, which may still be in the making."""

    def __init__(
        self, read: Callable[[], SampledTokens], token_ids_N: torch.Tensor | None = None
    ) -> None:
        self.read = read
        """Waits for them; to be called once."""
        self.token_ids_N = token_ids_N
        """int64 [N] on the device, -1 for none, where they are made there. What `read` says of failures is not in them."""


def _sample_here(raw_NV: torch.Tensor, batch: SamplingBatch, chooser: Chooser) -> SampledTokens:
    edited_NV = raw_NV
    if batch.edits:
        edited_NV = raw_NV.clone(memory_format=torch.contiguous_format)
        apply_edits(edited_NV, batch.edits)
    token_ids_N = chooser.choose(edited_NV, batch)

    def are_sound(entries: Sequence[int]) -> Sequence[bool]:
        where = torch.tensor(entries, device=raw_NV.device)
        sound: list[bool] = finite_rows(raw_NV.index_select(0, where)).tolist()
        return sound

    def logprobs(num_top: Sequence[int | None]) -> Sequence[TokenLogprobs | None]:
        return token_logprobs(raw_NV, token_ids_N.tolist(), num_top)

    return _report(token_ids_N, batch, are_sound, logprobs)


def _read(found: DeviceTokens, batch: SamplingBatch) -> SampledTokens:
    token_ids_N, is_sound_N = found.read()

    def are_sound(entries: Sequence[int]) -> Sequence[bool]:
        sound: list[bool] = is_sound_N[list(entries)].tolist()
        return sound

    def logprobs(num_top: Sequence[int | None]) -> Sequence[TokenLogprobs | None]:
        entries = found.read_logprobs()
        return [None if count is None else entries[n] for n, count in enumerate(num_top)]

    return _report(token_ids_N.copy(), batch, are_sound, logprobs)


def _report(
    token_ids_N: npt.NDArray[np.int64],
    batch: SamplingBatch,
    are_sound: Callable[[Sequence[int]], Sequence[bool]],
    logprobs_of: Callable[[Sequence[int | None]], Sequence[TokenLogprobs | None]],
) -> SampledTokens:
    """What was chosen, and why entries have no token. `are_sound` says it of raw logits of some entries."""
    masks = batch.masks or StepMasks()
    bad_rows: dict[int, ErrorInfo] = {}
    if batch.edits or token_ids_N.min() < 0:
        bad_rows = _failures(token_ids_N, batch.edits, are_sound)
    for n, error in masks.failed:
        token_ids_N[n], bad_rows[n] = -1, error
    for n in masks.ended:
        token_ids_N[n] = -1
        bad_rows.pop(n, None)
    token_ids = token_ids_N.tolist()
    logprobs: Sequence[TokenLogprobs | None] = (None,) * len(token_ids)
    if batch.num_logprobs:
        tops = batch.num_logprobs
        logprobs = logprobs_of(
            [None if token_id < 0 else tops.get(n) for n, token_id in enumerate(token_ids)]
        )
        for n, entry in enumerate(logprobs):
            # A grammar may have kept the choice from NaN and +inf, but this is made of all logits.
            if entry is not None and not isfinite(entry.logprobs[0]):
                token_ids[n], bad_rows[n] = -1, NOT_FINITE
    return SampledTokens(
        token_ids=tuple(token_ids),
        logprobs=tuple(logprobs),
        bad_rows=bad_rows,
        ended=masks.ended,
        has_logprobs=bool(batch.num_logprobs),
    )


def _failures(
    token_ids_N: npt.NDArray[np.int64],
    edits: Sequence[tuple[int, RowEdits]],
    are_sound: Callable[[Sequence[int]], Sequence[bool]],
) -> dict[int, ErrorInfo]:
    """Why entries have no token, and -1 for what was chosen from edited logits that were not sound before."""
    edited = {n for n, _ in edits}
    suspects = sorted(edited.union(np.flatnonzero(token_ids_N < 0).tolist()))
    is_sound = are_sound(suspects)
    failures: dict[int, ErrorInfo] = {}
    for n, sound in zip(suspects, is_sound, strict=True):
        if not sound:
            token_ids_N[n] = -1
            failures[n] = NOT_FINITE
        elif token_ids_N[n] < 0:
            failures[n] = ErrorInfo(
                code="no_token_allowed",
                message="allowed_token_ids, bad_words, min_tokens and structured_outputs together leave no token",
                status=400,
                fix="Allow more tokens or ban fewer.",
            )
    return failures
