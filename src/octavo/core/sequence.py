"""A request in progress. Only the scheduler writes it; everyone else sees plans and events."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from octavo.core.request import Request

UNKNOWN = -1
"""Stands for a token that was sampled and has not been seen yet."""


class SequenceState(enum.Enum):
    """Where a sequence stands. There is no prefill state and no decode state."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """Progress of one request. Owner: the scheduler.

    Invariant: `num_computed <= len(token_ids)`; while running, the tokens from `num_computed` on still have to go
    through the model. A fresh decode has exactly one such token: the one sampled last.
    """

    request: Request
    token_ids: list[int]
    """Prompt and output; appended by `apply` alone."""
    state: SequenceState = SequenceState.WAITING
    num_computed: int = 0
    """Tokens whose keys and values are in the cache (computed or found there)."""
    num_cached: int = 0
    """Of the prompt: tokens found in the prefix cache at the first admission."""
    row: int = -1
    """Index of the running sequence in every rank's buffers; -1 unless running."""
    blocks: list[list[int]] = field(default_factory=list)
    """Block ids per KV group, in token order; 0 where a window has passed. Written through the cache."""
    room: int = 0
    """Tokens that the tables in `blocks` hold, null blocks counted; all tables are equally long."""
    hashes: list[bytes] = field(default_factory=list)
    """Chained 128-bit hashes of the first full blocks, as many as were asked for."""
    num_published: int = 0
    """Full blocks offered to the prefix index so far."""
    num_preemptions: int = 0
    num_matched: int = 0
    """Tokens found in the prefix cache at the latest admission."""
    num_computed_before: int = 0
    """Tokens that had been computed when it was preempted; computing them again is waste."""
    num_passed: int = 0
    """Requests that started while it waited for blocks at the head of its queue."""
    refused_at: int = 0
    """While it waits: the step, as `Room` counts them, in which there was no room for it."""
    refused_free: int = 0
    """Blocks that were free then, over all groups."""
    queued_tokens: int = 0
    """While it waits: tokens that no prefix covered when it began to."""
    context_at_0: int = 0
    """While it runs: what its account counts as its context, less one for each step that was planned so far."""
    admitted_at: float | None = None
    """When it first ran, on the scheduler's clock."""
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_prompt: int = field(init=False)
    """Of the request; here because every step asks."""
    counted_to: int = field(init=False)
    """Slices that begin before are booked: as prompt, or as computed again after a preemption."""
    most_tokens: int = field(init=False)
    """Prompt plus the longest output asked for."""
    stop_ids: tuple[int, ...] = field(init=False)
    """Tokens that end the output once it has `min_tokens`: the model's own and the caller's."""

    def __post_init__(self) -> None:
        request = self.request
        self.num_prompt = self.counted_to = request.num_prompt
        self.most_tokens = request.num_prompt + request.max_tokens
        self.stop_ids = (*request.eos_token_ids, *request.params.stop_token_ids)

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def num_tokens(self) -> int:
        """Prompt plus output so far."""
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        """Output tokens so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that have still to go through the model."""
        return len(self.token_ids) - self.num_computed
