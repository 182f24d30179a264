"""From a memory plan and a device's speed to what users see: concurrency, latencies, throughput and cost, by length mix."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from octavo.core.errors import ConfigError
from octavo.engine.decide import Resolved
from octavo.engine.memory import sequences_that_fit
from octavo.tools.plan.speed import Network, Speed, decode_s, prompt_s

MAX_TOKENS = 1 << 24


class Mix(NamedTuple):
    """Lengths of a typical request."""

    name: str
    prompt: int
    output: int

    @property
    def longest(self) -> int:
        """Its context at the end."""
        return self.prompt + self.output


MIXES = (Mix("chat", 512, 256), Mix("documents", 4096, 512), Mix("long context", 16384, 1024))


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Of one mix. `alone`: one request at a time; `full`: as many as there is room for, all the time.

    Latencies of tokens are None of a model that generates none.
    """

    mix: str
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    """Sequences at once per replica, each with the room of its whole context."""
    limited_by: str
    ttft_alone_s: float
    itl_alone_s: float | None
    ttft_full_s: float
    """With all others under way: the prompt goes in pieces beside their tokens."""
    itl_full_s: float | None
    """Mean; the prompts of others are in it."""
    requests_per_s: float
    """At full load, of all replicas."""
    output_tokens_per_s: float
    cost_per_million_prompt: float | None
    """Of the device time that prompts take; None without a price."""
    cost_per_million_output: float | None


class Fleet(NamedTuple):
    """How many of it, and what it costs."""

    num_replicas: int = 1
    num_ranks: int = 1
    device_price: float | None = None
    """Per device and hour."""

    def cost(self, device_s: float) -> float | None:
        """Of a million times so many seconds of one replica."""
        if self.device_price is None:
            return None
        return 1e6 * device_s * self.num_ranks * self.device_price / 3600


def fitted(mix: Mix, max_model_len: int) -> Mix:
    """`mix`, scaled down to the context where it is longer."""
    if mix.longest <= max_model_len:
        return mix
    output = max(1, mix.output * max_model_len // mix.longest)
    return Mix(mix.name, max(1, max_model_len - output), output)


def parse_mix(text: str) -> Mix:
    """`PROMPT/OUTPUT`, in tokens.

    Raises:
        ConfigError: something else.
    """
    parts = text.split("/")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        prompt, output = (int(part[:12]) for part in parts)
        if 1 <= prompt <= MAX_TOKENS and 1 <= output <= MAX_TOKENS:
            return Mix(text, prompt, output)
    raise ConfigError(
        f"--mix is {text[:40]!r}; expected PROMPT/OUTPUT in tokens, each from 1 to {MAX_TOKENS}.",
        code="E-CFG-01",
        fix="For example --mix 1000/300.",
        param="mix",
    )


def room(resolved: Resolved, mix: Mix) -> tuple[int, str]:
    """Sequences of `mix` that can run at once, and what limits them."""
    limits, groups = resolved.limits, resolved.memory.groups
    if not groups:
        fit, limited_by = limits.max_num_batched_tokens // mix.prompt, "--max-num-batched-tokens"
    else:
        fit = sequences_that_fit(groups, mix.longest, limits.max_num_batched_tokens)
        limited_by = "KV cache"
    if fit >= limits.max_num_seqs:
        return limits.max_num_seqs, "--max-num-seqs"
    return max(1, fit), limited_by


class _Times(NamedTuple):
    """Seconds."""

    prompt_alone: float
    prompt_beside: float
    """The prompt in the pieces that go beside other sequences' tokens."""
    step_alone: float
    step_full: float
    pieces: int


def predict(
    resolved: Resolved, speed: Speed, network: Network, mix: Mix, fleet: Fleet
) -> Prediction:
    """What requests of `mix` see.

    At full load each of n places always has a request, so by Little's law a request stays n times the device time that
    it takes: its prompt, and its share of the steps that n sequences make together.
    """
    mix = fitted(mix, resolved.limits.max_model_len)
    seqs, limited_by = room(resolved, mix)
    times = _times(resolved, speed, network, mix, seqs)
    generates = resolved.facts.pooling is None
    output = mix.output if generates else 0
    device_s = times.prompt_beside + output * times.step_full / seqs
    ttft_full_s = times.prompt_beside + (times.pieces * times.step_full if seqs > 1 else 0.0)
    itl_full_s = max(times.step_full, (seqs * device_s - ttft_full_s) / max(1, output))
    rate = fleet.num_replicas / device_s
    return Prediction(
        mix=mix.name,
        prompt_tokens=mix.prompt,
        output_tokens=output,
        concurrency=seqs,
        limited_by=limited_by,
        ttft_alone_s=times.prompt_alone,
        itl_alone_s=times.step_alone if generates else None,
        ttft_full_s=ttft_full_s if generates else device_s * seqs,
        itl_full_s=itl_full_s if generates else None,
        requests_per_s=rate,
        output_tokens_per_s=rate * output,
        cost_per_million_prompt=fleet.cost(times.prompt_beside / mix.prompt),
        cost_per_million_output=fleet.cost(times.step_full / seqs) if generates else None,
    )


def _times(resolved: Resolved, speed: Speed, network: Network, mix: Mix, seqs: int) -> _Times:
    limits = resolved.limits
    alone_s = prompt_s(speed, network, mix.prompt, limits.max_num_batched_tokens)
    if resolved.facts.pooling is not None:
        return _Times(alone_s, alone_s, 0.0, 0.0, 1)
    context = mix.prompt + mix.output / 2
    piece = min(mix.prompt, limits.prefill_budget(seqs - 1))
    return _Times(
        prompt_alone=alone_s,
        prompt_beside=prompt_s(speed, network, mix.prompt, piece),
        step_alone=decode_s(speed, network, 1, context),
        step_full=decode_s(speed, network, seqs, context),
        pieces=math.ceil(mix.prompt / piece),
    )
