"""Logits as grammars leave them: by few ids or by words, what is allowed keeps its bits and the rest is -inf."""

from __future__ import annotations

import numpy as np
import torch

from octavo.decoding.grammar.rows import MaskedEntry
from octavo.decoding.penalties import apply_masks


def test_every_form_of_a_mask_edits_alike() -> None:
    vocab_size = 1000
    torch.manual_seed(0)
    logits_NV = torch.randn(4, vocab_size)
    logits_NV[:, 7], logits_NV[:, 8] = -torch.inf, -0.0
    allowed_V = torch.rand(vocab_size) < 0.4
    allowed_V[7:9] = True
    expected = torch.where(allowed_V, logits_NV[0], -torch.inf)
    logits_NV[:] = logits_NV[0]
    ids, others = np.flatnonzero(allowed_V), np.flatnonzero(~allowed_V)
    keep_V = np.where(allowed_V, -1, 0).astype(np.int32)
    entries = [
        MaskedEntry(0, ids),
        MaskedEntry(1, others, is_allowed=False),
        MaskedEntry(3, keep_V=keep_V),
    ]
    before = logits_NV[2].clone()
    apply_masks(logits_NV, entries)
    for row in (0, 1, 3):
        assert torch.equal(logits_NV[row].view(torch.int32), expected.view(torch.int32))
    assert torch.equal(logits_NV[2], before), "without a grammar a row is left as it is"
