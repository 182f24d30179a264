"""The compiled kernel chooses the tokens that plain torch chooses, on every instruction set and number of threads."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from octavo.core.params import SamplingParams
from octavo.decoding.chooser import TorchChooser
from octavo.decoding.chooser_cpu import CpuChooser
from octavo.decoding.rng import uniform
from octavo.decoding.state import SamplerState, SamplingBatch
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.sample import sample
from octavo.kernels.sampling import ROW
from unit.decoding._rows import random_logits, request, state_of

ISAS = extension.runnable_isas()
SIZES = {
    1: 200,
    2: 200,
    63: 300,
    64: 300,
    65: 300,
    127: 300,
    700: 600,
    4096: 600,
    30_011: 60,
    151_936: 24,
}
"""Vocabulary -> rows."""


def random_params(rng: random.Random) -> SamplingParams:
    """Ordinary ones and extremes."""
    return SamplingParams(
        temperature=rng.choice([0.0, 1e-5, 0.01, 0.7, 1.0, 1.0, 2.0, 100.0]),
        top_k=rng.choice([0, 0, 0, 1, 2, 20, 50, 64, 65, 1000, 5000, 200_000]),
        top_p=rng.choice([1.0, 1.0, 1e-9, 0.5, 0.9, 0.9, 0.999, 1 - 2**-53]),
        min_p=rng.choice([0.0, 0.0, 0.02, 0.9, 1.0]),
        seed=rng.getrandbits(62),
    )


def random_batch(num_rows: int, seed: int) -> SamplingBatch:
    """Entries in another order than the rows, at any position."""
    rng = random.Random(seed)
    requests = [
        request(params, seed=params.seed or 0, index=rng.randrange(-(2**40), 2**40))
        for params in (random_params(rng) for _ in range(num_rows))
    ]
    state: SamplerState = state_of(requests, 1)
    positions = [rng.randrange(1 << 40) for _ in range(num_rows)]
    return state.batch(rng.sample(range(num_rows), num_rows), positions)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_compiled_tokens_are_those_of_torch(vocab_size: int) -> None:
    num_rows = SIZES[vocab_size]
    for turn in range(3 if vocab_size < 10_000 else 1):
        logits_NV = random_logits(num_rows, vocab_size, turn)
        batch = random_batch(num_rows, turn)
        expected = TorchChooser().choose(logits_NV, batch)
        assert (expected < 0).any() and (expected >= 0).any() or num_rows < 30
        for isa in ISAS:
            assert np.array_equal(CpuChooser(isa).choose(logits_NV, batch), expected), isa


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=1.0, top_k=20),
        SamplingParams(temperature=0.7, top_p=0.9, min_p=0.1),
    ],
    ids=["greedy", "whole", "top_k", "top_p"],
)
def test_one_bad_logit_is_seen_wherever_it_stands(value: float, params: SamplingParams) -> None:
    """A row for each place of the vocabulary, and a sound one beside each."""
    vocab_size = 700
    logits_NV = torch.randn(2 * vocab_size, vocab_size)
    logits_NV[torch.arange(vocab_size), torch.arange(vocab_size)] = value
    requests = [request(params, seed=seed) for seed in range(2 * vocab_size)]
    batch = state_of(requests, 1).batch(range(2 * vocab_size), [2] * (2 * vocab_size))
    for chooser in (TorchChooser(), *map(CpuChooser, ISAS)):
        token_ids = chooser.choose(logits_NV, batch)
        assert (token_ids[:vocab_size] == -1).all() and (token_ids[vocab_size:] >= 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_neighbours_change_nothing(isa: str) -> None:
    logits_NV = random_logits(100, 5_000, 9)
    batch = random_batch(100, 9)
    arguments = (batch.params_R, batch.rows_N, batch.positions_N)
    expected = sample(logits_NV, *arguments, isa="scalar", num_threads=1)
    for threads in (1, 2, 3):
        assert np.array_equal(sample(logits_NV, *arguments, isa=isa, num_threads=threads), expected)
    for n in range(100):
        alone = [values[n : n + 1] for values in arguments[1:]]
        assert sample(logits_NV[n : n + 1], batch.params_R, *alone, isa=isa) == expected[n : n + 1]


def test_compiled_random_numbers_are_those_of_numpy() -> None:
    """Over equal logits the token says where the number lies."""
    vocab_size, num_rows = 1 << 16, 500
    rng = np.random.default_rng(0)
    params = np.zeros(num_rows, ROW)
    params["seed"], params["index"] = rng.integers(-(2**63), 2**63 - 1, (2, num_rows))
    params["top_k"], params["top_p"] = 1 << 40, 1.0
    params["temperature"], params["log_min_p"] = 1.0, -np.inf
    positions = rng.integers(0, 2**63 - 1, num_rows)
    logits = torch.zeros(1, vocab_size).expand(num_rows, vocab_size).contiguous()
    token_ids = sample(logits, params, np.arange(num_rows), positions)
    numbers = uniform(params["seed"], params["index"], positions)
    assert np.array_equal(token_ids, np.floor(numbers * vocab_size).astype(np.int64))


def test_what_does_not_fit_is_refused() -> None:
    params, one = np.zeros(1, ROW), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="logits: expected"):
        sample(torch.zeros(2, 4)[:, ::2], params, one, one)
    with pytest.raises(ValueError, match="rows: expected"):
        sample(torch.zeros(2, 4), params, one, one)
    with pytest.raises(ValueError, match="positions: expected int64"):
        sample(torch.zeros(1, 4), params, one, one.astype(np.int32))
    with pytest.raises(ValueError, match="at least one column"):
        sample(torch.zeros(1, 0), params, one, one)
    with pytest.raises(ValueError, match="isa 'sse9'"):
        sample(torch.zeros(1, 4), params, one, one, isa="sse9")
    assert len(sample(torch.zeros(0, 4), params, one[:0], one[:0])) == 0
