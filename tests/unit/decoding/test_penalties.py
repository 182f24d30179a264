"""Edits of logits: all rows at once equal the plain reference; each kind does what it says."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.decoding.penalties import RowEdits, apply_edits, needs_edits, reference_edits
from octavo.decoding.sampler import Sampler
from octavo.decoding.state import SamplerState
from unit.decoding._rows import request

VOCAB = 97


def _random_request(rng: random.Random) -> Request:
    ids = lambda most: tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(1, most)))  # noqa: E731
    params = SamplingParams(
        repetition_penalty=rng.choice([1.0, 0.7, 1.3]),
        frequency_penalty=rng.choice([0.0, 0.25, -0.4]),
        presence_penalty=rng.choice([0.0, 0.5, -1.5]),
        logit_bias=rng.choice([None, {token: rng.uniform(-9, 9) for token in ids(9)}]),
        allowed_token_ids=rng.choice([None, None, ids(60)]),
        min_tokens=rng.choice([0, 4, 50]),
        max_tokens=100,
        stop_token_ids=rng.choice([(), ids(3)]),
    )
    bad_words = tuple(tuple(rng.choice((5, 6)) for _ in ids(5)) for _ in range(rng.randrange(4)))
    return request(params, prompt=ids(40), eos=rng.choice([(), (2, 3)]), bad_words_ids=bad_words)


def _edited(logits_NV: torch.Tensor, edits: list[RowEdits | None]) -> torch.Tensor:
    edited = logits_NV.clone()
    apply_edits(edited, [(n, edit) for n, edit in enumerate(edits) if edit is not None])
    return edited


@pytest.mark.parametrize("seed", range(3))
def test_all_rows_at_once_equal_the_reference(seed: int) -> None:
    """Rows grow token by token; half are rebuilt in between, as after a preemption."""
    rng = random.Random(seed)
    requests = [_random_request(rng) for _ in range(25)]
    tokens = [list(each.token_ids) for each in requests]
    edits = [
        RowEdits(each, each.token_ids, VOCAB) if needs_edits(each) else None for each in requests
    ]
    for _ in range(12):
        logits_NV = torch.randn(len(requests), VOCAB) * 4
        edited_NV = _edited(logits_NV, edits)
        for n, each in enumerate(requests):
            expected_V = reference_edits(logits_NV[n], each, tokens[n])
            assert torch.allclose(edited_NV[n], expected_V, rtol=1e-6, atol=2e-6)
            edit = edits[n]
            token_id = rng.choice((5, 6, rng.randrange(VOCAB)))
            tokens[n].append(token_id)
            if edit is not None:
                edit.append(token_id)
                if rng.random() < 0.1:
                    edits[n] = RowEdits(each, tokens[n], VOCAB)


def test_a_row_is_edited_alone_as_in_a_batch() -> None:
    rng = random.Random(9)
    edits = [RowEdits(each, each.token_ids, VOCAB) for each in map(_random_request, [rng] * 30)]
    logits_NV = torch.randn(30, VOCAB)
    edited_NV = _edited(logits_NV, list(edits))
    for n, edit in enumerate(edits):
        assert torch.equal(_edited(logits_NV[n : n + 1], [edit])[0], edited_NV[n])


def test_repetition_penalty_is_that_of_transformers() -> None:
    prompt, output = (1, 2, 3, 3), [4, 5, 4]
    each = request(SamplingParams(repetition_penalty=1.7), prompt=prompt)
    logits_NV = torch.randn(1, VOCAB)
    oracle = RepetitionPenaltyLogitsProcessor(1.7)
    expected = oracle(torch.tensor([[*prompt, *output]]), logits_NV.clone())
    edited = _edited(logits_NV, [RowEdits(each, [*prompt, *output], VOCAB)])
    assert torch.allclose(edited, expected, rtol=1e-6, atol=1e-6)


def test_frequency_and_presence_count_the_output_alone() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=1.0)
    edit = RowEdits(request(params, prompt=(1, 1, 2)), (1, 1, 2, 7, 7, 8), VOCAB)
    change_V = _edited(torch.zeros(1, VOCAB), [edit])[0]
    assert change_V.nonzero().flatten().tolist() == [7, 8]
    assert change_V[[7, 8]].tolist() == [-2.0, -1.5]


def _greedy_tokens(each: Request, logits_V: torch.Tensor, count: int) -> list[int]:
    """A little generation with constant logits."""
    state = SamplerState(3, len(logits_V))
    state.add(2, each, each.token_ids)
    tokens = list(each.token_ids)
    for _ in range(count):
        sampled = Sampler().sample(logits_V[None], [2], state, [len(tokens)])
        tokens.append(sampled.token_ids[0])
        state.append([2], tokens[-1:])
    return tokens[each.num_prompt :]


FALLING = torch.arange(50, 0, -1).float()
"""Token 0 is the most likely, then 1, and so on."""


def test_min_tokens_holds_back_every_stop() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=(1,))
    each = request(params, eos=(0, 10_000))
    assert _greedy_tokens(each, FALLING, 5) == [2, 2, 2, 0, 0]


def test_min_tokens_counts_the_output_before_a_preemption() -> None:
    each = request(SamplingParams(temperature=0.0, min_tokens=3), eos=(0,))
    state = SamplerState(1, 50)
    state.add(0, each, (*each.token_ids, 1, 1, 1))
    assert Sampler().sample(FALLING[None], [0], state, [5]).token_ids == (0,)


def test_bad_words() -> None:
    params = SamplingParams(temperature=0.0, frequency_penalty=0.0)
    one = request(params, bad_words_ids=((0,), ()))
    assert _greedy_tokens(one, FALLING, 2) == [1, 1]
    # 0 0 0 may not come, nor 0 1: after 0 0 the best that is left is 2.
    several = request(params, prompt=(0, 0), bad_words_ids=((0, 0, 0), (0, 1), (0, 99_999)))
    assert _greedy_tokens(several, FALLING, 6) == [0, 0, 2, 0, 0, 2]


def test_logit_bias_and_allowed_ids() -> None:
    bias = request(SamplingParams(temperature=0.0, logit_bias={0: -100.0, 9: 8.5}))
    assert _greedy_tokens(bias, FALLING, 2) == [9, 9]  # 41 + 8.5 against 49
    allowed = request(SamplingParams(temperature=0.0, allowed_token_ids=(30, 20, 20, 40)))
    assert _greedy_tokens(allowed, FALLING, 2) == [20, 20]
    random_one = request(SamplingParams(top_k=40, top_p=0.99, allowed_token_ids=(20, 21)))
    assert set(_greedy_tokens(random_one, FALLING, 50)) == {20, 21}


def test_ids_beyond_the_vocabulary_do_not_touch_the_next_row() -> None:
    params = SamplingParams(
        logit_bias={VOCAB: 9.0}, stop_token_ids=(VOCAB + 1,), min_tokens=2, repetition_penalty=2.0
    )
    each = request(params, prompt=(VOCAB + 2,), eos=(VOCAB,), bad_words_ids=((VOCAB,),))
    logits_NV = torch.randn(2, VOCAB)
    edited = _edited(logits_NV, [RowEdits(each, each.token_ids, VOCAB), None])
    assert torch.equal(edited, logits_NV)


def test_rows_without_edits_keep_nothing() -> None:
    state = SamplerState(4, VOCAB)
    plain = request(SamplingParams(top_p=0.5))
    state.add(0, plain, plain.token_ids)
    state.append([0], [1])
    late = request(SamplingParams(min_tokens=1), eos=(0,))
    state.add(1, late, late.token_ids)
    assert [n for n, _ in state.batch([0, 1], [2, 2]).edits] == [1]
    state.append([1], [5])
    assert state.batch([0, 1], [3, 3]).edits == ()
    state.remove(1)
    state.add(1, plain, plain.token_ids)
    assert state.batch([1], [2]).edits == ()
