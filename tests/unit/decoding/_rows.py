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


def random_logits(num_rows: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Several spreads; rows full of ties, of -inf, of zeros of both signs, far from zero, and unsound ones."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = torch.randn(num_rows, vocab_size, generator=generator)
    logits_NV *= torch.tensor([0.0, 0.3, 1.0, 3.0, 10.0]).repeat(num_rows)[:num_rows, None]
    logits_NV[::3] = (logits_NV[::3] * 4).round() / 4
    logits_NV[1::7] += 3e4
    logits_NV[2::7] -= 1e30
    logits_NV[3::11][torch.rand(logits_NV[3::11].shape, generator=generator) < 0.9] = -torch.inf
    logits_NV[4::11] *= -0.0
    at = vocab_size // 2
    for first, value in ((5, torch.nan), (6, torch.inf), (7, -torch.inf)):
        logits_NV[first::29, at:] = value
    logits_NV[8::29] = -torch.inf
    logits_NV[9::29, -1] = torch.nan
    return logits_NV
