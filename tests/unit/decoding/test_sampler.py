"""The sampler: distribution, independence of the batch, greedy, short cuts, failures."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from octavo.core.params import SamplingParams
from octavo.decoding.blocks import largest
from octavo.decoding.chooser import TorchChooser, finite_rows
from octavo.decoding.sampler import Sampler
from unit.decoding._rows import request, sample_all, state_of

VOCAB = 1200  # more than two blocks and a rest


def _reference_probs(
    logits_V: torch.Tensor, params: SamplingParams, prompt: tuple[int, ...]
) -> torch.Tensor:
    """transformers' warpers in our order (their `generate` has min_p last)."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        steps.append(TopPLogitsWarper(params.top_p))
    scores = steps(torch.tensor([prompt]), logits_V[None].double())
    return torch.softmax(scores, -1)[0]


MIXES = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=1.3, top_k=20),
    SamplingParams(temperature=1.0, top_p=0.8),
    SamplingParams(temperature=2.0, top_p=0.99),
    SamplingParams(temperature=0.9, min_p=0.05),
    SamplingParams(temperature=0.6, top_k=20, top_p=0.95),
    SamplingParams(temperature=1.5, top_k=50, top_p=0.7, min_p=0.02),
    SamplingParams(temperature=1.2, top_p=0.7, min_p=0.02, repetition_penalty=1.5),
    SamplingParams(temperature=1.0, top_k=300, top_p=0.999),
]


@pytest.mark.parametrize("params", MIXES, ids=range(len(MIXES)))
def test_distribution_matches_transformers(params: SamplingParams) -> None:
    vocab_size = 600
    logits_V = torch.randn(vocab_size, generator=torch.Generator().manual_seed(3)) * 2.5
    prompt = tuple(logits_V.topk(6).indices.tolist())
    expected_V = _reference_probs(logits_V, params, prompt).numpy()
    num_rows, num_steps = 500, 10
    requests = [request(params, prompt=prompt, seed=seed) for seed in range(num_rows)]
    state = state_of(requests, vocab_size)
    logits_NV = logits_V.expand(num_rows, vocab_size)
    counts_V = np.zeros(vocab_size)
    for step in range(num_steps):
        sampled = Sampler().sample(logits_NV, range(num_rows), state, [6 + step] * num_rows)
        counts_V += np.bincount(sampled.token_ids, minlength=vocab_size)
    assert not counts_V[expected_V == 0].any()
    _check_chi_square(counts_V, expected_V)


def _check_chi_square(counts_V: np.ndarray, expected_V: np.ndarray) -> None:
    """Pearson's test at 1 in 10,000; rare tokens are pooled so that cells expect 10 or more."""
    expected_V = expected_V * counts_V.sum()
    is_rare_V = expected_V < 10
    observed = [*counts_V[~is_rare_V], counts_V[is_rare_V].sum()]
    expected = [*expected_V[~is_rare_V], expected_V[is_rare_V].sum()]
    cells = [(o, e) for o, e in zip(observed, expected, strict=True) if e > 1]
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    assert statistic < chi2.ppf(0.9999, max(1, len(cells) - 1))


def _random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.0, 2.0]),
        top_k=rng.choice([0, 0, 1, 5, 40, 300, 2000]),
        top_p=rng.choice([1.0, 1.0, 0.5, 0.9, 0.999]),
        min_p=rng.choice([0.0, 0.0, 0.02, 0.3]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
        logit_bias=rng.choice([None, None, {3: 2.0}]),
    )


def _random_logits(num_rows: int, seed: int) -> torch.Tensor:
    """Rows of several spreads; every third is rounded so that it is full of ties."""
    logits_NV = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    logits_NV *= torch.tensor([0.3, 2.0, 5.0]).repeat(num_rows)[:num_rows, None]
    logits_NV[::3] = (logits_NV[::3] * 4).round() / 4
    return logits_NV


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_alone_equals_the_row_in_any_batch(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    rng = random.Random(11)
    num_rows = 400 // num_threads**3
    logits_NV = _random_logits(num_rows, 1)
    requests = [
        request(
            _random_params(rng),
            prompt=[rng.randrange(VOCAB) for _ in range(rng.randrange(1, 9))],
            seed=rng.randrange(-(2**40), 2**40),
            index=rng.randrange(3),
        )
        for _ in range(num_rows)
    ]
    state = state_of(requests, VOCAB)
    positions = [each.num_prompt for each in requests]
    sampler = Sampler()
    alone = [
        sampler.sample(logits_NV[n : n + 1], [n], state, [positions[n]]).token_ids[0]
        for n in range(num_rows)
    ]
    for _ in range(5):
        order = rng.sample(range(num_rows), num_rows)
        while order:
            batch = [order.pop() for _ in range(min(len(order), rng.randrange(1, 200)))]
            where = [positions[n] for n in batch]
            sampled = sampler.sample(logits_NV[batch], batch, state, where)
            assert list(sampled.token_ids) == [alone[n] for n in batch]


@pytest.mark.parametrize("num_prefilter", [1, 7, 128, 1024])
def test_prefilter_changes_nothing(num_prefilter: int) -> None:
    rng = random.Random(5)
    logits_NV = _random_logits(400, 2)
    requests = [request(_random_params(rng), seed=seed) for seed in range(400)]
    whole = sample_all(logits_NV, requests, Sampler(TorchChooser(VOCAB)))
    assert sample_all(logits_NV, requests, Sampler(TorchChooser(num_prefilter))) == whole


def test_large_vocabulary_alone_in_a_batch_and_with_every_prefilter() -> None:
    rng = random.Random(6)
    logits_NV = torch.randn(40, 30_011, generator=torch.Generator().manual_seed(4))
    logits_NV *= torch.tensor([1.0, 6.0]).repeat(20)[:, None]
    requests = [request(_random_params(rng), seed=seed) for seed in range(40)]
    whole = sample_all(logits_NV, requests, Sampler(TorchChooser(30_011))).token_ids
    for num_prefilter in (16, 128):
        sampler = Sampler(TorchChooser(num_prefilter))
        assert sample_all(logits_NV, requests, sampler).token_ids == whole
    for n in range(40):
        assert sample_all(logits_NV[n : n + 1], requests[n : n + 1]).token_ids == whole[n : n + 1]


@pytest.mark.parametrize("count", [1, 20, 50, 300])
@pytest.mark.parametrize("vocab_size", [1000, 4096, 30_011])
def test_largest_are_those_of_topk(count: int, vocab_size: int) -> None:
    values_nV = torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(5))
    values_nV[::2] = values_nV[::2].round()  # ties
    values_nK, ids_nK = largest(values_nV, count)
    assert torch.equal(values_nK, values_nV.topk(count, dim=1).values)
    assert torch.equal(values_nV.gather(1, ids_nK), values_nK)
    assert all(len(set(ids)) == count for ids in ids_nK.tolist())


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 511, 512, 513, 1024, 5000])
def test_greedy_takes_the_lowest_of_equals(vocab_size: int) -> None:
    logits_NV = torch.randint(0, 3, (20, vocab_size), generator=torch.Generator().manual_seed(0))
    requests = [request(SamplingParams(temperature=0.0))] * 10
    requests += [request(SamplingParams(temperature=1.0, top_k=1))] * 10
    expected = np.argmax(logits_NV.numpy(), axis=1).tolist()
    assert list(sample_all(logits_NV.float(), requests).token_ids) == expected
    assert list(sample_all(logits_NV.bfloat16(), requests).token_ids) == expected


@pytest.mark.parametrize("vocab_size", [1, 2, 63, 512, 513])
def test_small_vocabularies(vocab_size: int) -> None:
    for params in MIXES[:8]:
        requests = [request(params, prompt=[0], seed=seed) for seed in range(50)]
        sampled = sample_all(torch.zeros(50, vocab_size), requests)
        assert all(0 <= token_id < vocab_size for token_id in sampled.token_ids)
        assert not sampled.bad_rows


def test_ties_at_the_cut_are_kept() -> None:
    logits_V = torch.tensor([5.0, 4.0, 4.0, 4.0, 1.0])
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.6)):
        requests = [request(params, prompt=[0], seed=seed) for seed in range(300)]
        assert set(sample_all(logits_V.expand(300, 5), requests).token_ids) == {0, 1, 2, 3}


def test_seed_index_and_position_each_change_the_token() -> None:
    params = SamplingParams(temperature=5.0)
    logits_NV = torch.zeros(3, 100_000)
    requests = [request(params), request(params, seed=1), request(params, index=1)]
    state = state_of(requests, 100_000)
    first = Sampler().sample(logits_NV, [0, 1, 2], state, [2, 2, 2]).token_ids
    again = Sampler().sample(logits_NV, [0, 1, 2], state, [2, 2, 2]).token_ids
    later = Sampler().sample(logits_NV, [0, 1, 2], state, [3, 3, 3]).token_ids
    assert first == again
    assert len({*first, *later}) == 6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_bad_row_fails_alone(temperature: float, top_p: float) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, logprobs=1)
    logits_NV = torch.randn(5, VOCAB)
    logits_NV[1, 1100] = torch.nan
    logits_NV[2, 3] = torch.inf
    logits_NV[3] = -torch.inf
    good = sample_all(logits_NV[[0, 0, 0, 0, 4]], [request(params)] * 5)
    mixed = sample_all(logits_NV, [request(params)] * 5)
    assert finite_rows(logits_NV).tolist() == [True, False, False, False, True]
    assert sorted(mixed.bad_rows) == [1, 2, 3]
    assert {error.status for error in mixed.bad_rows.values()} == {500}
    assert mixed.token_ids == (good.token_ids[0], -1, -1, -1, good.token_ids[4])
    assert mixed.logprobs == (good.logprobs[0], None, None, None, good.logprobs[4])


def test_a_row_with_nothing_left_fails_alone() -> None:
    params = SamplingParams(allowed_token_ids=(4, 9))
    requests = [
        request(params, bad_words_ids=((4,), (9,))),
        request(params, bad_words_ids=((4,),)),
        request(SamplingParams(top_k=3)),
    ]
    sampled = sample_all(torch.zeros(3, VOCAB), requests)
    assert list(sampled.bad_rows) == [0]
    assert sampled.bad_rows[0].code == "no_token_allowed"
    assert sampled.bad_rows[0].status == 400
    assert sampled.token_ids[:2] == (-1, 9)


def test_logits_are_left_as_they_are() -> None:
    logits_NV = torch.randn(2, 64)
    before = logits_NV.clone()
    params = SamplingParams(logit_bias={1: 5.0}, top_p=0.5, repetition_penalty=2.0, logprobs=2)
    sampled = sample_all(logits_NV, [request(params), request(params, seed=4)])
    assert torch.equal(logits_NV, before)
    for n, (token_id, entry) in enumerate(zip(sampled.token_ids, sampled.logprobs, strict=True)):
        assert entry is not None and len(entry.token_ids) == 3
        raw = torch.log_softmax(logits_NV[n], 0)[token_id].item()
        assert entry.logprobs[0] == pytest.approx(raw, abs=1e-6)


def test_nothing_wanted() -> None:
    assert sample_all(torch.empty(0, 8), []).token_ids == ()
