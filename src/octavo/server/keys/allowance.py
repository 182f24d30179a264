"""How much a key may still use: requests and tokens per minute, calls at once. On one server, in memory.

Rates are buckets that hold a minute's worth and fill evenly. Tokens are charged as they become known: a prompt when its
call is let in, output when it comes. So a call that was let in is never cut off, and a key exceeds its tokens by at most
the output of the calls it then has under way; later calls wait until that is paid back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from octavo.core.errors import OverloadError
from octavo.server.keys.rows import Limits

_MINUTE = 60.0


class LimitError(OverloadError):
    """The key has used up what it may."""

    default_code = "rate_limit_exceeded"

    def __init__(self, limit: str, message: str, wait_s: float, fix: str = "") -> None:
        super().__init__(message, retry_after_s=wait_s, fix=fix)
        self.limit = limit
        """Which one: requests, tokens or concurrency."""


class Bucket:
    """A minute's worth of something, filled evenly; may be overdrawn."""

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._at = now

    def level(self, now: float) -> float:
        """What is left."""
        self._level = min(
            float(self.capacity), self._level + (now - self._at) * self.capacity / _MINUTE
        )
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Use some, whether or not it is there."""
        self._level = self.level(now) - amount

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much is there; what the bucket cannot hold needs a full one."""
        missing = min(amount, float(self.capacity)) - self.level(now)
        return max(0.0, missing * _MINUTE / self.capacity)

    def resize(self, capacity: int, now: float) -> None:
        """Another limit; what was used stays used."""
        self._level = self.level(now) + capacity - self.capacity
        self.capacity = capacity


class Allowance:
    """One key's account. Owner: the server's event loop."""

    def __init__(
        self, limits: Limits = Limits(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._limits = Limits()
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self._num_running = 0
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """What holds from now on."""
        if limits == self._limits:
            return
        self._limits = limits
        self._requests = self._sized(self._requests, limits.requests_per_minute)
        self._tokens = self._sized(self._tokens, limits.tokens_per_minute)

    def _sized(self, bucket: Bucket | None, capacity: int | None) -> Bucket | None:
        if capacity is None:
            return None
        if bucket is None:
            return Bucket(capacity, self._clock())
        bucket.resize(capacity, self._clock())
        return bucket

    def count_request(self) -> None:
        """A call is made.

        Raises:
            LimitError: one too many in this minute.
        """
        if self._requests is None:
            return
        now = self._clock()
        wait_s = self._requests.wait_s(1, now)
        if wait_s > 0:
            raise LimitError(
                "requests",
                f"this key may make {self._requests.capacity} requests per minute and has made them; "
                f"the next can be made in {_seconds(wait_s)}.",
                wait_s,
            )
        self._requests.take(1, now)

    def begin(self, num_prompt: int) -> None:
        """A generating call with so many prompt tokens begins. `end` follows, unless this raises.

        Raises:
            LimitError: too many calls at once, or too many tokens in this minute.
        """
        most = self._limits.max_concurrency
        if most is not None and self._num_running >= most:
            raise LimitError(
                "concurrency",
                f"this key may have {most} generating calls at once and has {self._num_running}.",
                1.0,
                fix="Wait for one to end.",
            )
        if self._tokens is not None:
            now = self._clock()
            wait_s = self._tokens.wait_s(num_prompt, now)
            if wait_s > 0:
                raise LimitError(
                    "tokens",
                    f"this key may use {self._tokens.capacity} tokens per minute, prompts and outputs "
                    f"together, and has {math.floor(self._tokens.level(now))} left; this prompt has "
                    f"{num_prompt} and can be sent in {_seconds(wait_s)}.",
                    wait_s,
                )
            self._tokens.take(num_prompt, now)
        self._num_running += 1

    def spend(self, num_tokens: int) -> None:
        """Output has come."""
        if self._tokens is not None and num_tokens:
            self._tokens.take(num_tokens, self._clock())

    def end(self) -> None:
        """A generating call has ended."""
        self._num_running -= 1

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*` as the OpenAI API names them, for the rates that this key has."""
        now = self._clock()
        found: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                left = max(0, math.floor(bucket.level(now)))
                reset = _seconds(bucket.wait_s(bucket.capacity, now))
                found[f"x-ratelimit-limit-{name}"] = str(bucket.capacity)
                found[f"x-ratelimit-remaining-{name}"] = str(left)
                found[f"x-ratelimit-reset-{name}"] = reset
        return found


def _seconds(seconds: float) -> str:
    """`1.25s`, never less than what it says."""
    return f"{math.ceil(seconds * 100) / 100:g}s"
