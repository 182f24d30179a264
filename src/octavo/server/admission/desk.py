"""Who is let in: bounded queues, and a forecast of the first and the last token for those who say how long they wait.

Decided here, in the server's process, before the engine hears of it: a refusal costs no step. What is refused is told
why, what was predicted and when to come back. The forecast is step times (`forecast.py`) times a factor learned from
what came of late ones (`calibration.py`); until enough is known nobody is refused by it. Knows requests and
statistics; does not know HTTP.

What is approximated: a prompt's share in the prefix cache is the late average; other accounts get their fair share until
this one's turn, as if all began now, and ageing of priorities is left out; output lengths are the late median.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from octavo.core.errors import DeadlineError, OctavoError, OverloadError, RequestError
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import EngineStats
from octavo.engine.frontend import Caller
from octavo.engine.ipc import Ready
from octavo.meter.metrics import Metrics
from octavo.scheduler.policies.base import MOST_CLASSES, Policy
from octavo.server.admission import forecast
from octavo.server.admission.accounts import Accounts, Lane, tokens_of
from octavo.server.admission.calibration import LEAST, Calibration, Coverage, Interval, Window
from octavo.server.admission.forecast import Ahead, Pace, Room
from octavo.server.errors import Forecast, WouldMissError
from octavo.server.limits import MAX_HELD_BYTES

_PROBE = Request(
    id="", token_ids=(0,), params=SamplingParams(), max_tokens=1, seed=0, arrived=0.0
)  # what a policy is shown of a caller
_MAX_RETRY_S = 600.0
_MS = 1000.0


class Bounds(NamedTuple):
    """What may wait."""

    num_requests: int = 4096
    num_tokens: int = 1 << 22
    num_bytes: int = MAX_HELD_BYTES


class Engine(Protocol):
    """What is asked of the engine."""

    @property
    def ready(self) -> Ready:
        """What was started."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        ...


class Quote(NamedTuple):
    """What a call is told to expect, in seconds from now."""

    plain_s: float
    """To the first token, as the model of step times has it."""
    factors: Interval | None
    """On that; None while too little is known to promise anything."""
    waits: bool
    """Whether anything is ahead: a queue's error is another than an idle server's."""
    output_s: float
    """From the first token to the last, as the model has it."""
    output_factor: float | None
    ahead_tokens: float

    def latest(self) -> tuple[float, float] | None:
        """Seconds by which the first token and the last are promised; None while nothing is.

        The queue is taken at its worst, the output at its median: a long answer is nobody's overload.
        """
        if self.factors is None:
            return None
        first = self.plain_s * self.factors.high
        return first, first + self.output_s * (self.output_factor or 0.0)


class Admission:
    """Owner: the server's event loop, as part of `AppState`."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        bounds: Bounds = Bounds(),
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.accounts = Accounts()
        self._engine = engine
        self._bounds = bounds
        self._policy = policy
        self._pace = Pace()
        self._seen_until = 0.0
        self._firsts = (Calibration(), Calibration())  # of an idle engine, and of one with a queue
        self._outputs_s = Calibration()
        self._outputs = Window()
        self._lengths = Window()
        self._coverage = Coverage()
        self._bytes_per_token = Window()

    # -- asking ----------------------------------------------------------------------------------------------------

    def glance(self, caller: Caller, num_bytes: int) -> None:
        """Refuse, before its text is looked at, a call that could not be taken whatever its length.

        `num_bytes` is the size of its body, by which its prompt is at least as long as any of late was.

        Raises:
            OverloadError: a queue is full, or it would miss what it asks for.
            DeadlineError: its deadline is over already.
        """
        tokens = 0.0
        if len(self._bytes_per_token) >= LEAST:
            tokens = num_bytes / self._bytes_per_token.quantile(1.0)
        self._check_bounds(1, int(tokens))
        self._check_times(caller, self.quote(caller, tokens, 1, 1))

    def take(self, caller: Caller, requests: Sequence[Request], num_bytes: int) -> Quote:
        """Take a call; a `Ticket` is to be made of it. Raises as `glance`, and RequestError for what no queue here holds."""
        tokens = sum(map(tokens_of, requests))
        self._check_bounds(len(requests), tokens)
        most = max(request.max_tokens for request in requests)
        quote = self.quote(caller, tokens, len(requests), most)
        self._check_times(caller, quote)
        if num_bytes:
            self._bytes_per_token.add(num_bytes / tokens)
        for request in requests:
            self._lengths.add(request.num_prompt)
        return quote

    def hold(self, num_bytes: int) -> None:
        """So many bytes more of a body are in memory; give them back with a negative number.

        Raises:
            OverloadError: that is too much of them, over all calls.
        """
        if num_bytes > 0 and self.accounts.held_bytes + num_bytes > self._bounds.num_bytes:
            raise self._full("queued_bytes", "bytes of bodies are held", self._bounds.num_bytes)
        self.accounts.held_bytes += num_bytes

    def refused_by_engine(self, error: OverloadError) -> None:
        """The engine's own queue was full, which had grown since its last word: say when to come back."""
        self.metrics.count("vllm:admission_rejections", 1, "queued_reqs")
        if self._pace.drain() is not None:
            error.retry_after_s = self.retry_after_s(self.accounts.tokens / 2)

    def retry_after_s(self, tokens: float) -> float:
        """Seconds in which so many prompt tokens leave the queue, as fast as it went down of late."""
        drain = self._pace.drain()
        return 1.0 if drain is None else min(_MAX_RETRY_S, max(1.0, tokens / drain))

    def quote(self, caller: Caller, tokens: float, num_requests: int, max_tokens: int) -> Quote:
        """What such a call can expect. O(tenants that wait)."""
        stats, ready = self._engine.stats, self._engine.ready
        self.observe(stats)
        room = Room(ready.max_num_seqs, ready.max_num_batched_tokens, ready.kv_tokens)
        ahead = self._ahead(caller, stats, tokens, num_requests)
        chunk = self._pace.chunk(room.step_tokens)
        step = stats.step_time
        first_s = forecast.first_token_s(step, room, chunk, ahead, tokens * self._pace.missed)
        if stats.num_running:
            first_s += stats.last_step_s / 2  # the step under way
        is_known = step.num_steps >= forecast.LEAST_STEPS
        waits = forecast.backlog(stats) > 0 or ahead.num_prompts > 0
        kinds = self._firsts[waits], self._firsts[not waits]
        known = (factors for kind in kinds if (factors := kind.interval()) is not None)
        output = self._outputs_s.interval()
        length = max_tokens
        if len(self._outputs) >= LEAST:
            length = min(max_tokens, int(self._outputs.quantile(0.5)))
        busy = min(chunk, ahead.tokens) * step.token_s
        return Quote(
            plain_s=first_s,
            factors=next(known, None) if is_known else None,
            waits=waits,
            output_s=max(0, length - 1) * (forecast.decode_s(step, ahead) + busy),
            output_factor=None if output is None else output.middle,
            ahead_tokens=ahead.tokens,
        )

    def lane(self, caller: Caller) -> Lane:
        """Where such a caller's requests wait."""
        policy = self._policy
        if policy is None:
            return Lane("", 0)
        probe = replace(_PROBE, tenant=caller.tenant, priority=caller.priority)
        rank = min(max(caller.priority, -MOST_CLASSES), MOST_CLASSES)
        rank = rank if policy.uses_priority else 0
        return Lane(policy.account(probe), rank, caller.weight)

    def first_token_s(self, caller: Caller) -> float | None:
        """Seconds to the first token of a prompt of next to nothing sent now; None while predictions are not trusted."""
        try:
            quote = self.quote(caller, 1, 1, 1)
        except OctavoError:
            return None  # there is no engine to ask
        return None if quote.factors is None else quote.plain_s * quote.factors.middle

    def _ahead(self, caller: Caller, stats: EngineStats, own: float, num_requests: int) -> Ahead:
        """What is in front: lanes of the accounts, scaled to what the engine says is left of them."""
        accounts, missed = self.accounts, self._pace.missed
        unseen = accounts.unseen(self._seen_until)
        in_engine = forecast.backlog(stats) + unseen.tokens * missed
        outside = (accounts.tokens - accounts.handed_tokens) * missed
        scale = (in_engine + outside) / accounts.tokens if accounts.tokens else 0.0
        before = accounts.before(self.lane(caller), own)
        tokens = before.tokens * scale if accounts.tokens else in_engine
        output = self._outputs.quantile(0.5) if self._outputs else 0.0
        mean = (self._lengths.quantile(0.5) if self._lengths else 0.0) + output / 2
        return Ahead(
            tokens=tokens,
            num_prompts=before.num_prompts + num_requests - 1,
            running=stats.num_running,
            mean_tokens=mean,
            output_tokens=output,
        )

    # -- refusing --------------------------------------------------------------------------------------------------

    def _check_bounds(self, num_requests: int, tokens: int) -> None:
        accounts, most = self.accounts, self._bounds
        if num_requests > most.num_requests:
            raise RequestError(
                f"the call makes {num_requests} requests; this server's queue takes {most.num_requests}.",
                param="n",
                fix="Ask for less at a time.",
            )
        stats = self._engine.stats
        unseen = accounts.unseen(self._seen_until).num_prompts
        waiting = min(accounts.num_prompts, stats.num_waiting + unseen)
        if waiting and waiting + num_requests > most.num_requests:
            raise self._full("queued_reqs", "requests are waiting", most.num_requests)
        if accounts.tokens and accounts.tokens + tokens > most.num_tokens:
            raise self._full("queued_tokens", "prompt tokens are waiting", most.num_tokens)

    def _full(self, reason: str, what: str, most: int) -> OverloadError:
        """A queue is full. Half of it is gone when the caller may come back: one place would be for one of many."""
        self.metrics.count("vllm:admission_rejections", 1, reason)
        return OverloadError(
            f"as much waits as may: {most} {what}, or would be.",
            fix="Try again later.",
            retry_after_s=self.retry_after_s(self.accounts.tokens / 2),
        )

    def _check_times(self, caller: Caller, quote: Quote) -> None:
        if caller.deadline is None and caller.first_token_by is None:
            return
        now = self.clock()
        left = None if caller.deadline is None else caller.deadline - now
        if left is not None and left <= 0:
            raise DeadlineError("the deadline was over before the call could be taken.")
        latest = quote.latest()
        # With nothing under way there is nothing to protect, and the attempt teaches: so a factor that was learned in
        # bad times cannot refuse everybody for ever.
        if latest is None or self.accounts.num_calls == 0:
            return
        first_s, last_s = latest
        if caller.first_token_by is not None and now + first_s > caller.first_token_by:
            raise self._miss("ttft_slo", "ttft_slo_ms", quote, first_s, caller.first_token_by - now)
        if left is not None and last_s > left:
            raise self._miss("deadline", "deadline_ms", quote, last_s, left)

    def _miss(
        self, reason: str, param: str, quote: Quote, latest: float, left: float
    ) -> WouldMissError:
        assert quote.factors is not None, "nobody is refused by less"
        self.metrics.count("vllm:admission_rejections", 1, f"would_miss_{reason}")
        first = quote.plain_s * quote.factors.middle
        finish = first + quote.output_s * (quote.output_factor or 0.0)
        excess = max(0.0, latest - left)
        retry = self.retry_after_s(quote.ahead_tokens * min(1.0, excess / latest))
        told = Forecast(
            predicted_ttft_ms=round(first * _MS, 1),
            predicted_finish_ms=round(finish * _MS, 1) if quote.output_factor else None,
            interval_ms=(
                round(quote.plain_s * quote.factors.low * _MS, 1),
                round(quote.plain_s * quote.factors.high * _MS, 1),
            ),
            queue_tokens=round(quote.ahead_tokens),
        )
        what = "first token" if reason == "ttft_slo" else "answer"
        return WouldMissError(
            f"the {what} may take {latest:.2f} s from here; {param} leaves {max(0.0, left):.2f} s.",
            told,
            param=param,
            fix="Try again later, or allow more time.",
            retry_after_s=retry,
        )

    # -- learning --------------------------------------------------------------------------------------------------

    def observe(self, stats: EngineStats) -> None:
        """Take the engine's latest word. Cheap where it is the same."""
        now = self.clock()
        if self._pace.observe(stats, now):
            # What was handed over since that step began, the engine has not counted yet.
            self._seen_until = max(self._seen_until, now - stats.last_step_s)

    def learn_first(self, quote: Quote, seconds: float, learns: bool) -> None:
        """A call has begun, so long after it was taken."""
        if not learns or quote.plain_s <= 0.0 or self._is_over_restart(seconds):
            return
        ratio = seconds / quote.plain_s
        self._firsts[quote.waits].learn(ratio, quote.factors)
        if quote.factors is None:
            return
        held = quote.factors.low <= ratio <= quote.factors.high
        self.metrics.set("octavo:ttft_interval_coverage", self._coverage.add(held))
        self.metrics.observe("octavo:predicted_ttft_seconds", quote.plain_s * quote.factors.middle)
        self.metrics.observe("octavo:ttft_prediction_ratio", ratio / quote.factors.middle)

    def learn_output(self, quote: Quote, seconds: float, num_outputs: Sequence[int]) -> None:
        """A call has ended well, so long after its first token."""
        for num in num_outputs:
            self._outputs.add(num)
        if (
            quote.output_s > 0.0
            and max(num_outputs, default=0) > 1
            and not self._is_over_restart(seconds)
        ):
            self._outputs_s.learn(seconds / quote.output_s, None)

    def _is_over_restart(self, seconds: float) -> bool:
        """Whether the engine was away in the last so many seconds, which says nothing of how fast it is."""
        self.observe(self._engine.stats)
        return self.clock() - seconds <= self._pace.restarted_at
