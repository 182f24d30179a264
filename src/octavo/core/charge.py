"""Where an engine's time went, as it tells its client. The rule by which it is divided stands in `meter/ledger.py`."""

from __future__ import annotations

import msgspec


class RequestCharge(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Device-seconds of one request since it was last told of."""

    id: str
    prefill_s: float = 0.0
    """Prompt tokens that went through the model for the first time."""
    decode_s: float = 0.0
    """Output tokens, likewise."""
    preemption_s: float = 0.0
    """Tokens computed again because the request had given way."""
    failover_s: float = 0.0
    """Tokens computed again because the engine before this one ended."""
    prefill_tokens: int = 0
    """Prompt tokens that `prefill_s` computed."""
    is_final: bool = False
    """Whether the request has ended, so that nothing more comes of it."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.prefill_s + self.decode_s + self.preemption_s + self.failover_s


class Charges(msgspec.Struct, frozen=True, kw_only=True):
    """A window of an engine's time. Times are `time.monotonic()`.

    Where `is_whole`, what was told since the last whole one, this included, sums to `until - since`. Else it is of
    requests that have just ended, and the rest of the window is told later. What lies between two windows, the engine was
    idle.
    """

    since: float
    until: float
    requests: tuple[RequestCharge, ...]
    overhead_s: float = 0.0
    """The loop's own time while there was work: planning, taking results, waiting for a grammar."""
    is_whole: bool = True
    is_idle: bool = False
    """Whether there is nothing to do from `until` on."""
