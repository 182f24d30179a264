"""What comes out: of one step on the ranks (`StepResult`), and of the engine to its clients (events).

Every accepted request ends in exactly one `Finished` or `Failed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Literal, overload

import msgspec

from octavo.core.errors import ErrorInfo
from octavo.core.steptime import StepTime

FinishReason = Literal["stop", "length", "abort"]


class TokenLogprobs(msgspec.Struct, frozen=True, gc=False):
    """Log-probabilities (natural log, of the distribution before temperature and truncation) at one position.

    `token_ids[0]` is the token at hand; the rest are the most likely ones, most likely first (the token at hand may
    stand among them again).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    rank: int
    """1-based rank of the token at hand in the whole vocabulary."""


class PooledValues(msgspec.Struct, frozen=True, gc=False):
    """What a pooler made of a prompt: float32, little-endian, row by row."""

    shape: tuple[int, ...]
    """[features], or [tokens, features] of the tasks that give a row per token."""
    data: bytes


class SliceResult(msgspec.Struct, frozen=True, gc=False):
    """What one slice produced. Holds no cycles, so the garbage collector need not follow it.

    Not keyword-only: a runner makes a step's worth of them with one `map`.
    """

    row: int
    token_ids: tuple[int, ...] = ()
    """Accepted tokens: none when the slice did not sample, else at least one unless `is_finished`."""
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """One per accepted token, where asked."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Where asked: for the prompt positions start+1 .. start+count that lie inside the prompt."""
    error: ErrorInfo | None = None
    """Set when this slice alone failed; the others stand."""
    is_finished: bool = False
    """Whether the output is complete with these tokens, of which there may then be none: its grammar allows no more."""
    pooled: PooledValues | None = None
    """Of a pooling request, when the slice ends its prompt."""


class Chosen(Sequence[SliceResult]):
    """Results of slices that have one token each and nothing else to say: as columns, and as objects to those who ask."""

    __slots__ = ("_results", "rows", "token_ids")

    def __init__(self, rows: Sequence[int], token_ids: Sequence[int]) -> None:
        self.rows = rows
        self.token_ids = token_ids
        self._results: tuple[SliceResult, ...] | None = None

    @property
    def results(self) -> tuple[SliceResult, ...]:
        """As objects."""
        if self._results is None:
            self._results = tuple(map(SliceResult, self.rows, zip(self.token_ids, strict=True)))
        return self._results

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[SliceResult]:
        return iter(self.results)

    @overload
    def __getitem__(self, index: int) -> SliceResult: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SliceResult, ...]: ...
    def __getitem__(self, index: int | slice) -> SliceResult | tuple[SliceResult, ...]:
        return self.results[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chosen | tuple):
            return NotImplemented
        return self.results == tuple(other)

    def __hash__(self) -> int:
        return hash(self.results)


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a step produced, slice by slice in the plan's order."""

    step: int
    slices: Sequence[SliceResult]
    elapsed_s: float = 0.0


class TokenOut(msgspec.Struct, frozen=True, tag="token", gc=False, omit_defaults=True):
    """New tokens of a request. One per running sequence and step: the wire carries only what is said.

    Not keyword-only: a scheduler makes a step's worth of them with one `map`.
    """

    id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Sent once, with the first tokens: entry i belongs to prompt position i + 1."""
    num_cached: int = 0
    """Sent with the first tokens: prompt tokens found in the prefix cache (a stop string may end it before Finished)."""
    admitted: float | None = None
    """Sent with the first tokens: when it first ran, in seconds of `time.monotonic()`."""
    num_preemptions: int = 0
    """How often it gave way until now."""


class Advanced(Sequence[TokenOut]):
    """What a step says in which each sequence got one token and nothing else happened: as columns, and as objects to those
    who ask.
    """

    __slots__ = ("_outs", "ids", "num_preemptions", "token_ids")

    def __init__(
        self, ids: tuple[str, ...], token_ids: Sequence[int], num_preemptions: tuple[int, ...] = ()
    ) -> None:
        """`ids` are the same object for as long as it is the same sequences in the same order. `num_preemptions`: beside
        them; empty where nobody gave way.
        """
        self.ids = ids
        self.token_ids = token_ids
        self.num_preemptions = num_preemptions
        self._outs: tuple[TokenOut, ...] | None = None

    @property
    def outs(self) -> tuple[TokenOut, ...]:
        """As objects."""
        if self._outs is None:
            rest = (*_nothing_more, self.num_preemptions) if self.num_preemptions else ()
            self._outs = tuple(map(TokenOut, self.ids, zip(self.token_ids, strict=True), *rest))
        return self._outs

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[TokenOut]:
        return iter(self.outs)

    @overload
    def __getitem__(self, index: int) -> TokenOut: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenOut, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenOut | tuple[TokenOut, ...]:
        return self.outs[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Advanced | tuple | list):
            return NotImplemented
        return self.outs == tuple(other)

    def __hash__(self) -> int:
        return hash(self.outs)


_nothing_more = (repeat(None), repeat(None), repeat(0), repeat(None))
"""Of a `TokenOut`: log-probabilities twice, what its first tokens say."""


class Pooled(msgspec.Struct, frozen=True, kw_only=True, tag="pooled", gc=False):
    """The answer to a pooling request; its `Finished` follows."""

    id: str
    values: PooledValues
    num_cached: int = 0
    """Prompt tokens found in the prefix cache."""


class RequestTiming(msgspec.Struct, frozen=True, kw_only=True):
    """When things happened, in seconds of `time.monotonic()`; None where they did not."""

    arrived: float
    admitted: float | None
    first_token: float | None
    last_token: float | None


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The one good end of a request."""

    id: str
    reason: FinishReason
    stop_token: int | None
    """The caller's stop token id that ended it; None for an end-of-sequence token and for other reasons."""
    num_prompt: int
    num_output: int
    num_cached: int
    num_preemptions: int
    timing: RequestTiming


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The one bad end of a request."""

    id: str
    error: ErrorInfo


Event = TokenOut | Pooled | Finished | Failed


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """A snapshot after a step. Counters only grow; `meter` turns differences into metrics."""

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    """Requests that wait for their grammar to be built; not among `num_waiting`."""
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Blocks that nobody holds; cached ones that could be evicted are among them."""
    num_steps: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Prompt tokens found there."""
    prompt_tokens: int = 0
    """Prompt tokens computed, each once: what a preemption has computed again is in `recomputed_tokens`."""
    generation_tokens: int = 0
    aborted_tokens: int = 0
    """Tokens computed for requests that were then cancelled."""
    last_step_tokens: int = 0
    last_step_s: float = 0.0
    queued_tokens: int = 0
    """Prompt tokens of the waiting sequences that no prefix covers yet."""
    pending_tokens: int = 0
    """Of the running sequences: known tokens that have still to go through the model."""
    step_time: StepTime = StepTime()
    """What a step is predicted to take."""
    faults: tuple[tuple[str, int], ...] = ()
    """Requests that failed inside the engine, by kind: where they threw, or the code of their error."""
    recomputed_tokens: int = 0
    """Tokens computed again because their sequence had given way."""
    recomputed_s: float = 0.0
    """Predicted device seconds that those took."""
