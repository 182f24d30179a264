"""How logits become tokens: edit (`penalties.py`), mask, check and choose (`chooser.py`), report.

Work that no row asks for is not done. Each row's token depends on that row's logits, parameters and
position alone; see `draw.py` for how.

Shape letters: N entries of the step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import torch

from octavo.core.errors import ErrorInfo
from octavo.core.result import TokenLogprobs
from octavo.decoding.chooser import SAMPLE, AheadChooser, Chooser, finite_rows
from octavo.decoding.grammar.rows import StepMasks
from octavo.decoding.logprobs import token_logprobs
from octavo.decoding.penalties import RowEdits, apply_edits
from octavo.decoding.state import SamplerState
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
        if not len(rows):
            return SampledTokens(token_ids=(), logprobs=(), bad_rows={})
        batch = state.batch(rows, positions)
        raw_NV = logits_NV.float()
        edited_NV = raw_NV
        masks = batch.masks or StepMasks()
        if batch.edits:
            edited_NV = raw_NV.clone(memory_format=torch.contiguous_format)
            apply_edits(edited_NV, batch.edits)
        token_ids_N = self.chooser_for(raw_NV.device).choose(edited_NV, batch)
        bad_rows: dict[int, ErrorInfo] = {}
        if batch.edits or token_ids_N.min() < 0:
            bad_rows = _failures(token_ids_N, raw_NV, batch.edits)
        for n, error in masks.failed:
            token_ids_N[n], bad_rows[n] = -1, error
        for n in masks.ended:
            token_ids_N[n] = -1
            bad_rows.pop(n, None)
        token_ids = token_ids_N.tolist()
        logprobs: Sequence[TokenLogprobs | None] = (None,) * len(token_ids)
        if batch.num_logprobs:
            tops = batch.num_logprobs
            num_top = [
                None if token_id < 0 else tops.get(n) for n, token_id in enumerate(token_ids)
            ]
            logprobs = token_logprobs(raw_NV, token_ids, num_top)
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

    def choose_ahead(
        self, logits_NV: torch.Tensor, rows: Rows, state: SamplerState, positions: Rows
    ) -> torch.Tensor:
        """Tokens of entries without edits, masks and log-probabilities, int64 [N] where the logits are; the host need not
        wait for them. -1 where logits are not finite.
        """
        batch = state.batch(rows, positions)
        assert not batch.edits and not batch.num_logprobs and batch.masks is None, "plain rows"
        chooser = self.chooser_for(logits_NV.device)
        if isinstance(chooser, AheadChooser):
            return chooser.chosen(logits_NV.float(), batch)
        return torch.from_numpy(chooser.choose(logits_NV.float(), batch)).to(logits_NV.device)

    def chooser_for(self, device: torch.device) -> Chooser:
        """Who chooses from logits there; asked for once."""
        if self._chooser is None:
            case = OpCase(device=device.type, dtype="float32")
            self._chooser = self._dispatch.choose(SAMPLE, case)
        return self._chooser


def _failures(
    token_ids_N: npt.NDArray[np.int64],
    raw_NV: torch.Tensor,
    edits: Sequence[tuple[int, RowEdits]],
) -> dict[int, ErrorInfo]:
    """Why entries have no token, and -1 for what was chosen from edited logits that were not sound before."""
    edited = {n for n, _ in edits}
    suspects = sorted(edited.union(np.flatnonzero(token_ids_N < 0).tolist()))
    where = torch.tensor(suspects, device=raw_NV.device)
    is_sound = finite_rows(raw_NV.index_select(0, where)).tolist()
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
