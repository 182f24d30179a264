"""Helpers shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.decoding.sampler import SampledTokens, Sampler
from octavo.decoding.state import SamplerState


def request(
    params: SamplingParams,
    *,
    prompt: Sequence[int] = (1, 2),
    seed: int = 0,
    index: int = 0,
    eos: tuple[int, ...] = (),
    bad_words_ids: tuple[tuple[int, ...], ...] = (),
) -> Request:
    return Request(
        id="r",
        token_ids=tuple(prompt),
        params=params,
        max_tokens=1000,
        seed=seed,
        arrived=0.0,
        index=index,
        eos_token_ids=eos,
        bad_words_ids=bad_words_ids,
    )


def state_of(requests: Sequence[Request], vocab_size: int) -> SamplerState:
    state = SamplerState(len(requests), vocab_size)
    for row, each in enumerate(requests):
        state.add(row, each, each.token_ids)
    return state


def sample_all(
    logits_NV: torch.Tensor, requests: Sequence[Request], sampler: Sampler | None = None
) -> SampledTokens:
    state = state_of(requests, logits_NV.shape[1])
    positions = [each.num_prompt for each in requests]
    return (sampler or Sampler()).sample(logits_NV, range(len(requests)), state, positions)
