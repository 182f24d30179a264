"""Masks of grammars: what plain torch leaves of logits, and that the compiled kernel chooses the same under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from octavo.decoding.chooser import TorchChooser, masked
from octavo.decoding.chooser_cpu import CpuChooser
from octavo.decoding.grammar.rows import StepMasks
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.sample import sample
from octavo.kernels.sampling import ROW, RowMasks
from unit.decoding.test_choosers import random_batch, random_logits

ISAS = extension.runnable_isas()
SIZES = {1: 60, 31: 120, 32: 120, 33: 120, 700: 300, 4096: 300, 30_011: 60, 151_936: 24}
"""Vocabulary -> rows."""


def random_masks(num_rows: int, vocab_size: int, seed: int) -> RowMasks:
    """None, dense, sparse, one token, none at all; fewer masks than rows, in another order."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.5, 0.999, 0.01, 1.0, 0.0])
    bits = rng.random((7, 32 * -(-vocab_size // 32))) < shares[np.arange(7) % 5][:, None]
    bits[:, vocab_size:] = False
    bits[5], bits[5, rng.integers(vocab_size)] = False, True
    words_MW = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    return RowMasks(words_MW, rng.integers(-1, 7, num_rows))


def test_what_is_allowed_keeps_its_bits_and_the_rest_is_nothing() -> None:
    logits_NV = torch.randn(4, 1000)
    logits_NV[:, 7], logits_NV[:, 8], logits_NV[:, 9] = -torch.inf, -0.0, torch.nan
    before_NV = logits_NV.clone()
    allowed_MV = np.random.default_rng(0).random((2, 1024)) < 0.4
    allowed_MV[:, 7:10] = True
    words_MW = np.packbits(allowed_MV, axis=1, bitorder="little").view(np.uint32)
    found_NV = masked(logits_NV, RowMasks(words_MW, np.array([1, -1, 0, 1])))
    for n, m in enumerate((1, None, 0, 1)):
        keep_V = (
            torch.ones(1000, dtype=torch.bool)
            if m is None
            else torch.from_numpy(allowed_MV[m, :1000])
        )
        expected_V = torch.where(keep_V, before_NV[n], -torch.inf)
        assert torch.equal(found_NV[n].view(torch.int32), expected_V.view(torch.int32))
    assert torch.equal(logits_NV.view(torch.int32), before_NV.view(torch.int32))


@pytest.mark.parametrize("vocab_size", SIZES)
def test_compiled_tokens_under_masks_are_those_of_torch(vocab_size: int) -> None:
    num_rows = SIZES[vocab_size]
    logits_NV = random_logits(num_rows, vocab_size, 1)
    choices = random_masks(num_rows, vocab_size, 2)
    batch = replace(random_batch(num_rows, 3), masks=StepMasks(choices))
    expected = TorchChooser().choose(logits_NV, batch)
    by_hand = TorchChooser().choose(masked(logits_NV, choices), replace(batch, masks=None))
    assert np.array_equal(expected, by_hand)
    for n in np.flatnonzero((choices.of_N >= 0) & (expected >= 0)):
        word = choices.words_MW[choices.of_N[n], expected[n] // 32]
        assert word >> (expected[n] % 32) & 1, "a token that the mask forbids"
    for isa in ISAS:
        assert np.array_equal(CpuChooser(isa).choose(logits_NV, batch), expected), isa


def test_masks_that_do_not_fit_are_refused() -> None:
    logits, params, one = torch.zeros(1, 40), np.zeros(1, ROW), np.zeros(1, np.int64)
    words = np.zeros((1, 2), np.uint32)
    assert sample(logits, params, one, one, masks=RowMasks(words, one)) == -1
    with pytest.raises(ValueError, match="masks: expected uint32"):
        sample(logits, params, one, one, masks=RowMasks(words[:, :1].copy(), one))
    with pytest.raises(ValueError, match=r"masks\.of_N: expected int64"):
        sample(logits, params, one, one, masks=RowMasks(words, one.astype(np.int32)))
    for wrong in (1, -2):
        with pytest.raises(ValueError, match="a mask that is not there"):
            sample(logits, params, one, one, masks=RowMasks(words, one + wrong))
