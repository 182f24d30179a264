"""Tokens chosen by the kernels are those of plain torch, for every kind of row; reports are the sampler's own."""

from __future__ import annotations

import random as numbers
from typing import Any

import numpy as np
import pytest
import torch

from gpu_cases import DEVICE
from octavo.core.params import SamplingParams
from octavo.decoding.chooser import TorchChooser
from octavo.decoding.chooser_triton import TritonChooser
from octavo.decoding.grammar.rows import StepMasks
from octavo.decoding.rng import uniform
from octavo.decoding.sampler import Sampler
from octavo.decoding.state import SamplingBatch
from octavo.kernels.sampling import ROW, RowMasks
from octavo.kernels.triton import logprobs, sample
from unit.decoding._rows import random_logits, request, state_of

# numpy's, which interprets: what overflows or is undefined there is masked out afterwards, as on a device.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
VOCABULARIES = {1: 4, 65: 10, 700: 12, 5000: 4}
"""Vocabulary -> rows."""


def random_params(rng: numbers.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 1e-5, 0.7, 1.0, 1.0, 2.0, 100.0]),
        top_k=rng.choice([0, 0, 0, 2, 20, 64, 1000, 200_000]),
        top_p=rng.choice([1.0, 1.0, 1e-9, 0.5, 0.9, 0.999, 1 - 2**-53]),
        min_p=rng.choice([0.0, 0.0, 0.02, 1.0]),
        seed=rng.getrandbits(62),
    )


def batch_of(params: list[SamplingParams], seed: int, masks: StepMasks | None) -> SamplingBatch:
    rng = numbers.Random(seed)
    requests = [
        request(each, seed=each.seed or 0, index=rng.randrange(-(2**40), 2**40)) for each in params
    ]
    entries = rng.sample(range(len(params)), len(params))
    positions = np.array([rng.randrange(1 << 40) for _ in params])
    batch = state_of(requests, 1).batch(entries, positions)
    return SamplingBatch(
        params_R=batch.params_R,
        rows_N=batch.rows_N,
        positions_N=batch.positions_N,
        num_logprobs={},
        edits=(),
        masks=masks,
    )


def random_masks(num_rows: int, vocab_size: int, seed: int) -> StepMasks:
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**32, (3, -(-vocab_size // 32)), np.uint32)
    words[2] = 0
    words[2, vocab_size // 64] = 1
    return StepMasks(choices=RowMasks(words, rng.integers(-1, 3, num_rows)))


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("has_masks", [False, True], ids=["free", "masked"])
def test_tokens_are_those_of_torch(vocab_size: int, has_masks: bool) -> None:
    num_rows = VOCABULARIES[vocab_size]
    logits_NV = random_logits(num_rows, vocab_size, 1)
    masks = random_masks(num_rows, vocab_size, 2) if has_masks else None
    rng = numbers.Random(3 + vocab_size)
    batch = batch_of([random_params(rng) for _ in range(num_rows)], 4, masks)
    wanted = TorchChooser().choose(logits_NV, batch)
    got = TritonChooser().choose(logits_NV.to(DEVICE), batch)
    assert np.array_equal(got, wanted)
    assert (wanted >= 0).any()


def test_rows_that_the_first_look_does_not_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """More candidates than fit, more blocks than are listed, a top_k beyond them: they are searched as a whole."""
    vocab_size = 1500
    logits_NV = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(1)) * 0.2
    logits_NV[1] = 0.25
    params = [SamplingParams(temperature=1.0, top_p=0.9, seed=5)] * 2
    params += [SamplingParams(temperature=1.0, top_k=1200, top_p=0.8, min_p=0.5, seed=6)] * 2
    batch = batch_of(params, 1, None)
    wanted = TorchChooser().choose(logits_NV, batch)
    for name, value in (("_MOST", 256), ("_MOST_BLOCKS", 8)):
        monkeypatch.setattr(getattr(sample, name), "value", value)
        assert np.array_equal(TritonChooser().choose(logits_NV.to(DEVICE), batch), wanted), name


def test_random_numbers_are_those_of_numpy() -> None:
    """Over equal logits the token says where the number lies."""
    vocab_size, num_rows = 1 << 12, 12
    rng = np.random.default_rng(0)
    params = np.zeros(num_rows, ROW)
    params["seed"], params["index"] = rng.integers(-(2**63), 2**63 - 1, (2, num_rows))
    params["top_k"], params["top_p"] = 1 << 40, 1.0
    params["temperature"], params["log_min_p"] = 1.0, -np.inf
    positions = rng.integers(0, 2**63 - 1, num_rows)
    batch = SamplingBatch(
        params_R=params,
        rows_N=np.arange(num_rows),
        positions_N=positions,
        num_logprobs={},
        edits=(),
    )
    tokens = TritonChooser().choose(torch.zeros(num_rows, vocab_size, device=DEVICE), batch)
    found = uniform(params["seed"], params["index"], positions)
    assert np.array_equal(tokens, np.floor(found * vocab_size).astype(np.int64))


def edited_requests(vocab_size: int) -> list:
    """All edits, alone and together, with log-probabilities or none, and rows that end without a token."""
    common = {"seed": 3, "temperature": 1.0}
    params = [
        SamplingParams(**common),
        SamplingParams(**common, logprobs=0),
        SamplingParams(**common, logprobs=5, repetition_penalty=1.3),
        SamplingParams(**common, frequency_penalty=0.5, presence_penalty=-0.7, top_p=0.9),
        SamplingParams(**common, logit_bias={1: 3.5, 2: -100.0, 99_999: 1.0}, logprobs=20),
        SamplingParams(
            **common, logit_bias={1: 4.0, 7: 2.0}, repetition_penalty=0.7, frequency_penalty=1.5,
            presence_penalty=0.3, allowed_token_ids=[1, 2, 3, 7, 63, 64, 99_999], min_tokens=5,
            top_k=4,
        ),
        SamplingParams(temperature=0.0, allowed_token_ids=[5]),
        SamplingParams(temperature=0.0, allowed_token_ids=[9], min_tokens=9),
        SamplingParams(**common, min_tokens=4, logprobs=2),
        SamplingParams(**common, repetition_penalty=1.5, logprobs=1),
        SamplingParams(**common, logprobs=3),
    ]  # fmt: skip
    return [
        request(each, prompt=(1, 2, 7, 7, 11), seed=n, eos=(9,), bad_words_ids=((12,), (7, 1)))
        for n, each in enumerate(params)
    ]


def test_reports_are_those_of_the_sampler_in_torch() -> None:
    vocab_size = 300
    requests = edited_requests(vocab_size)
    logits_NV = torch.randn(len(requests), vocab_size, generator=torch.Generator().manual_seed(2))
    logits_NV[:, 9] = 6.0
    logits_NV[4] = logits_NV[4].round()  # ties among the most likely
    logits_NV[8, 40:] = -torch.inf
    logits_NV[9, 3] = torch.nan
    logits_NV[10, 250] = torch.inf
    raw_NV = logits_NV.clone()
    results = []
    for chooser, device in ((TorchChooser(), "cpu"), (TritonChooser(), DEVICE)):
        state = state_of(requests, vocab_size)
        for row in range(len(requests)):
            state.extend(row, (2, 7, 7, 30))
        rows, positions = list(range(len(requests))), [9] * len(requests)
        sampler = Sampler(chooser)
        results.append(sampler.sample(logits_NV.to(device), rows, state, positions))
    wanted, got = results
    assert torch.equal(logits_NV.nan_to_num(), raw_NV.nan_to_num())
    assert got.token_ids == wanted.token_ids
    assert {n: error.code for n, error in got.bad_rows.items()} == {
        n: error.code for n, error in wanted.bad_rows.items()
    }
    assert {error.code for error in got.bad_rows.values()} == {
        "non_finite_logits",
        "no_token_allowed",
    }
    assert got.has_logprobs
    for ours, theirs in zip(got.logprobs, wanted.logprobs, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert (ours.token_ids, ours.rank) == (theirs.token_ids, theirs.rank)
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, rtol=2e-6, atol=2e-6)


def test_most_likely_of_a_small_or_flat_vocabulary() -> None:
    for vocab_size, spread in ((3, 1.0), (70, 1.0), (9000, 0.0)):
        logits_NV = torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(3)) * spread
        requests = [request(SamplingParams(temperature=0.0, logprobs=20))] * 2
        reports = [
            Sampler(chooser).sample(
                logits_NV.to(device), [0, 1], state_of(requests, vocab_size), [2, 2]
            )
            for chooser, device in ((TorchChooser(), "cpu"), (TritonChooser(), DEVICE))
        ]
        for ours, theirs in zip(reports[1].logprobs, reports[0].logprobs, strict=True):
            assert ours is not None and theirs is not None
            assert (ours.token_ids, ours.rank) == (theirs.token_ids, theirs.rank)
            np.testing.assert_allclose(ours.logprobs, theirs.logprobs, rtol=2e-6, atol=2e-6)


class Recorded:
    """A kernel, and the constants that it was launched with: each other set is compiled anew, for a second or more."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.seen: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            self.seen.append(constants)
            self.kernel[grid](*arguments, **constants)

        return launch


def test_nothing_is_compiled_for_how_many_log_probabilities_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels = {name: Recorded(getattr(logprobs, name)) for name in ("look", "settle")}
    for name, kernel in kernels.items():
        monkeypatch.setattr(logprobs, name, kernel)
    logits_NV = torch.randn(2, 300, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    for count in (0, 1, 20):
        requests = [request(SamplingParams(temperature=0.0, logprobs=count))] * 2
        Sampler(TritonChooser()).sample(logits_NV, [0, 1], state_of(requests, 300), [2, 2])
    for kernel in kernels.values():
        assert len(kernel.seen) == 3 and all(each == kernel.seen[0] for each in kernel.seen)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    requests = [request(SamplingParams(temperature=0.0))] * 2
    logits_NV = torch.randn(2, 100, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    launched = Sampler(TritonChooser()).launch(logits_NV, [0, 1], state_of(requests, 100), [2, 2])
    assert launched.token_ids_N is not None and launched.token_ids_N.device.type == DEVICE
    assert launched.read().token_ids == tuple(logits_NV.argmax(1).tolist())
    assert Sampler(TritonChooser()).launch(logits_NV[:0], [], None, []).read().token_ids == ()
