"""One accepted request, frozen. It is the same object in the server, on the wire and in the engine."""

from __future__ import annotations

import msgspec

from octavo.core.params import PoolingParams, SamplingParams


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine is asked to do. Built and checked by the front end; never changed after.

    A caller's `n` choices are n requests that share a prompt; `index` tells them apart.
    """

    id: str
    """Minted by the server; unique in the life of the engine."""
    token_ids: tuple[int, ...]
    """The prompt; at least one id, each inside the vocabulary."""
    params: SamplingParams
    max_tokens: int
    """Output limit after resolving None and the context length; at least 1, and 0 of a pooling request."""
    seed: int
    """Always set: the caller's seed, or one drawn by the front end. With `index` it keys the random numbers."""
    arrived: float
    """`time.monotonic()` at acceptance, in seconds (one clock for all processes of a host)."""
    index: int = 0
    eos_token_ids: tuple[int, ...] = ()
    """The model's own end tokens; empty when the caller set `ignore_eos`."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """`params.bad_words` as token ids."""
    grammar: str = ""
    """What `params.structured_outputs` was compiled to, in the words of the engine's backend; empty without."""
    priority: int = 0
    """Lower runs first, under policies that look at it; waiting makes up for it."""
    tenant: str = ""
    """Who pays and shares: from the API key, never from the body. Fair shares are kept between tenants."""
    weight: float = 1.0
    """The tenant's share beside others' (of its key)."""
    deadline: float | None = None
    """`time.monotonic()` after which the answer is worth nothing; work that cannot make it is dropped."""
    first_token_by: float | None = None
    """`time.monotonic()` by which the caller wants the first token."""
    resumed: tuple[int, ...] = ()
    """Output tokens that its caller has already, from an engine that died: computed again, never sent again."""
    restarts: int = 0
    """Engines that ended while it was open. It was accepted once: above 0 no bound of a queue refuses it."""
    adapter: str | None = None
    cache_scope: str = ""
    """Who may share cached prefixes with this request; derived from the API key, never from the body."""

    pooling: PoolingParams | None = None
    """Set: the answer is what the model's pooler makes of the prompt, and no token; `params` says nothing then."""
    pair_start: int = 0
    """Where the second text of a pair begins, for models that tell the two apart; 0: there is one text."""

    @property
    def needs_every_position(self) -> bool:
        """Whether every prompt position has to be computed, so that none may come out of the prefix cache."""
        pooling = self.pooling
        if pooling is not None:
            return bool(pooling.skip_reading_prefix_cache)
        return self.params.prompt_logprobs is not None

    @property
    def num_prompt(self) -> int:
        """Prompt length in tokens."""
        return len(self.token_ids)
