"""The numbers a scheduler works under, and how a step's tokens are shared between chunks and decodes."""

from __future__ import annotations

import msgspec

from octavo.core.kvspec import BLOCK_SIZE

PREFILL_SHARE = 0.25
"""Of a step's token budget, what prompt chunks may take while other sequences decode. A decode's step time grows with
the chunk beside it, so the share bounds the inter-token latency that a long prompt can cause. Where nobody waits for
the next token (offline), 1.0 has more rows decode in every step."""

MAX_PREEMPTIONS = 2
"""A sequence preempted this often comes back only with blocks reserved for all it can still need, and is then no
longer a candidate: nobody is preempted without end."""

WATERMARK = 0.01
"""Share of the pool kept free at admission while others run, so that their next tokens do not preempt the newcomer."""


MAX_PASSED = 16
"""Requests of others that may start while the head of a queue waits for blocks; then all wait with it."""

MANY_ROWS = 8
"""Rows from which one is worth keeping for an account that comes back soon."""

MAX_IN_VAIN = 16
"""Heads of queues per step that are looked at and cannot start (no room, or a prefix that another computes): more are not
looked at, so that a step costs the same however many wait. The least served are looked at first."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one engine.

    `max_num_batched_tokens` exceeds `max_num_seqs`, so that a step full of decodes still leaves room for a chunk.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_num_waiting: int = 4096
    enable_chunked_prefill: bool = True
    prefill_share: float = PREFILL_SHARE
    """Of the token budget, for prompt chunks beside decodes, 0 to 1."""
    max_itl_s: float | None = None
    """What a step with decodes may be predicted to take; None: `prefill_share` bounds the prompts in it."""

    def __post_init__(self) -> None:
        assert self.max_num_batched_tokens > self.max_num_seqs, "resolve.py guarantees it"

    def prefill_budget(self, num_decodes: int) -> int:
        """Prompt tokens that this step may run beside `num_decodes` decodes; at least 1."""
        left = self.max_num_batched_tokens - num_decodes
        if num_decodes == 0 or not self.enable_chunked_prefill:
            return left
        share = max(BLOCK_SIZE, int(self.max_num_batched_tokens * self.prefill_share))
        return min(left, share)
