"""Prometheus metrics of one engine, fed by events; the names are in `catalogue.py`.

Conservation, exact at every scrape: requests received = ended (stop + length + abort + error) + in flight, and in flight =
waiting + running + elsewhere; `generation_tokens` = the sum of all `usage.completion_tokens`, and `prompt_tokens` that of
the prompts of all requests whose answer began; the count of `time_to_first_token_seconds` = requests with at least one token;
of `e2e_request_latency_seconds` and of token histograms = requests ended; of `iteration_tokens_total` = steps. Knows no HTTP
and no engine.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from octavo.core.request import Request
from octavo.core.result import EngineStats, RequestTiming
from octavo.meter.catalogue import ALIASES, ROWS, Row

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BASE_LABELS = ("model_name", "engine")

_STAT_COUNTERS = (
    ("vllm:prefix_cache_queries", "prefix_queries"),
    ("vllm:prefix_cache_hits", "prefix_hits"),
    ("vllm:num_preemptions", "num_preemptions"),
    ("octavo:computed_prompt_tokens", "prompt_tokens"),
    ("octavo:sampled_tokens", "generation_tokens"),
    ("octavo:aborted_computed_tokens", "aborted_tokens"),
    ("octavo:recomputed_tokens", "recomputed_tokens"),
    ("octavo:recomputed_seconds", "recomputed_s"),
)
"""(metric, field of EngineStats): counters fed by differences of snapshots."""


_FAULT_COUNTERS = {
    "kv_epoch": "octavo:kv_epoch_mismatches",
    "non_finite_logits": "vllm:corrupted_requests",
}
"""Kinds of faults that have a counter of their own."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one request ended, as its caller saw it."""

    reason: str
    """stop, length, abort or error."""
    num_output: int
    num_preemptions: int = 0
    timing: RequestTiming
    ended: float
    """`time.monotonic()` at the end."""


class Metrics:
    """All metrics of one model on one engine. Owner: the server's event loop; not for use across threads."""

    def __init__(self, model_name: str, engine: str = "0") -> None:
        self._registry = CollectorRegistry()
        self._base = (model_name, engine)
        self._rows = {row.name: row for row in ROWS}
        self._metrics = {row.name: self._make(row) for row in ROWS}
        self._bound: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}
        self._last = EngineStats()
        self._restarts: dict[str, int] = {}
        self._totals: dict[str, float] = {}
        self._open: set[str] = set()
        """Ids of requests that have not ended."""
        self._exposition = _Exposition(self._registry)
        ProcessCollector(registry=self._registry)
        for row in ROWS:
            if not row.labels:
                self._child(row.name)
            for value in row.values:
                self._child(row.name, value)
        self.set("vllm:engine_sleep_state", 1, "awake")

    def observe_stats(self, stats: EngineStats) -> None:
        """Take a snapshot. Idempotent: the same snapshot twice changes nothing.

        Counters grow by the difference to the last snapshot. Those of snapshots go on over restarts of the engine.
        """
        last, self._last = self._last, stats
        if stats is last:
            return
        self.set("vllm:num_requests_running", stats.num_running)
        self.set("vllm:num_requests_waiting", stats.num_waiting + stats.num_deferred)
        self.set("vllm:num_requests_waiting_by_reason", stats.num_waiting, "capacity")
        self.set("vllm:num_requests_waiting_by_reason", stats.num_deferred, "deferred")
        self.set("octavo:num_queued_tokens", stats.queued_tokens)
        self.set("octavo:num_pending_tokens", stats.pending_tokens)
        self.set("octavo:step_time_error_ratio", stats.step_time.error)
        used = stats.num_blocks - stats.num_free_blocks
        self.set("vllm:kv_cache_usage_perc", used / stats.num_blocks if stats.num_blocks else 0.0)
        for name, field in _STAT_COUNTERS:
            now: float = getattr(stats, field)
            before: float = getattr(last, field)
            if now > before:
                self.count(name, now - before)
        if stats.faults != last.faults:
            self._observe_faults(stats, dict(last.faults))
        if stats.num_steps != last.num_steps and stats.last_step_tokens:
            self._observe("vllm:iteration_tokens_total", stats.last_step_tokens)

    def _observe_faults(self, stats: EngineStats, before: dict[str, int]) -> None:
        for kind, now in stats.faults:
            new = now - before.get(kind, 0)
            if new > 0:
                self.count("octavo:request_faults", new, kind)
                if kind in _FAULT_COUNTERS:
                    self.count(_FAULT_COUNTERS[kind], new)

    def observe_started(self, request: Request) -> None:
        """A request is handed to the engine."""
        self._open.add(request.id)
        self.count("octavo:requests_received")
        self.set("octavo:requests_in_flight", 1, add=True)
        if request.index == 0:
            self._observe("vllm:request_params_n", request.params.n)
        if request.params.max_tokens is not None:
            self._observe("vllm:request_params_max_tokens", request.params.max_tokens)
        self._observe("vllm:request_max_num_generation_tokens", request.max_tokens)

    def observe_stages(self, stage: Callable[[str], str]) -> None:
        """Ask for each request that has not ended where it stands. O(requests): for scrapes."""
        found = Counts(map(stage, self._open))
        for name in self._rows["octavo:requests_by_stage"].values:
            self.set("octavo:requests_by_stage", found.pop(name, 0), name)
        assert not found, f"no such stage: {found}"

    def observe_prompt(self, num_prompt: int, num_cached: int) -> None:
        """The answer of a request begins, so that all of its prompt is in the KV cache. Once per request."""
        for name, where, count in (
            ("vllm:prompt_tokens_by_source", "local_compute", num_prompt - num_cached),
            ("vllm:prompt_tokens_by_source", "local_cache_hit", num_cached),
            ("vllm:prompt_tokens_cached_by_source", "device", num_cached),
        ):
            self.count(name, count, where)
        self.count("vllm:prompt_tokens", num_prompt)
        self.count("vllm:prompt_tokens_cached", num_cached)
        self._observe("vllm:request_prefill_kv_computed_tokens", num_prompt - num_cached)

    def observe_tokens(self, count: int) -> None:
        """A caller gets so many tokens."""
        self.count("vllm:generation_tokens", count)

    def observe_first_token(self, seconds: float) -> None:
        """A request has its first token, so long after it arrived."""
        self._observe("vllm:time_to_first_token_seconds", seconds)

    def observe_gap(self, seconds: float) -> None:
        """Time between two outputs of a request."""
        self._observe("vllm:inter_token_latency_seconds", seconds)

    def observe_finished(self, request: Request, outcome: Outcome) -> None:
        """A request that was started has ended, in whatever way. Once per request."""
        self._open.remove(request.id)
        self.set("octavo:requests_in_flight", -1, add=True)
        self.count("vllm:request_success", 1, outcome.reason)
        self._observe("vllm:request_prompt_tokens", request.num_prompt)
        self._observe("vllm:request_generation_tokens", outcome.num_output)
        self._observe("vllm:request_num_preemptions", outcome.num_preemptions)
        self._observe("vllm:e2e_request_latency_seconds", outcome.ended - request.arrived)
        for name, seconds in _spans(outcome):
            self._observe(name, max(0.0, seconds))

    def observe_config(
        self, *, block_size: int, num_blocks: int, num_tokens: int, cache_dtype: str
    ) -> None:
        """The KV cache as started."""
        values = (str(block_size), str(num_blocks), cache_dtype, str(num_tokens))
        self.set("vllm:cache_config_info", 1, *values)

    def observe_build(self, *, version: str, device: str, dtype: str) -> None:
        """What runs, on what."""
        self.set("octavo:build_info", 1, version, device, dtype)

    def observe_restarts(self, restarts: Iterable[tuple[str, int]]) -> None:
        """How often the engine process was started again until now, by what it ended from."""
        for reason, total in restarts:
            self.count("octavo:engine_restarts", total - self._restarts.get(reason, 0), reason)
            self._restarts[reason] = total

    def observe_startup(self, phases: Iterable[tuple[str, float]]) -> None:
        """Start-up phases (name, seconds)."""
        for name, seconds in phases:
            self.set("octavo:startup_seconds", seconds, name)

    def count(self, name: str, by: float = 1, *labels: str) -> None:
        """Add to a counter."""
        child = self._child(name, *labels)
        assert isinstance(child, Counter)
        child.inc(by)

    def raise_to(self, name: str, total: float) -> None:
        """Bring a counter to what was counted elsewhere; it only grows."""
        before = self._totals.get(name, 0.0)
        if total > before:
            self._totals[name] = total
            self.count(name, total - before)

    def set(self, name: str, value: float, *labels: str, add: bool = False) -> None:
        """Set a gauge, or add to it."""
        child = self._child(name, *labels)
        assert isinstance(child, Gauge)
        if add:
            child.inc(value)
        else:
            child.set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add to a histogram."""
        self._observe(name, value, *labels)

    def observe_call(self, route: str, method: str, status: int, seconds: float) -> None:
        """A call that came by HTTP is over."""
        self.count("http_requests", 1, route, method, f"{status // 100}xx")
        self._observe("http_request_duration_seconds", seconds, route, method)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._exposition)

    def value(self, sample: str, labels: Sequence[tuple[str, str]] = ()) -> float:
        """One sample as exposed, 0 when absent: for tests and for one-line summaries."""
        wanted = {**dict(zip(_BASE_LABELS, self._base, strict=True)), **dict(labels)}
        return self._registry.get_sample_value(sample, wanted) or 0.0

    def buckets(self, name: str) -> list[tuple[float, int]]:
        """(upper bound, observations up to it) of a histogram without labels of its own, the last bound infinite."""
        (family,) = self._metrics[name].collect()
        return [
            (float(sample.labels["le"]), int(sample.value))
            for sample in family.samples
            if sample.name.endswith("_bucket")
        ]

    def _observe(self, name: str, value: float, *labels: str) -> None:
        child = self._child(name, *labels)
        assert isinstance(child, Histogram)
        child.observe(value)

    def _make(self, row: Row) -> Counter | Gauge | Histogram:
        labels = (*_BASE_LABELS, *row.labels)
        if row.kind == "histogram":
            return Histogram(
                row.name, row.help, labels, buckets=row.buckets, registry=self._registry
            )
        kind = Counter if row.kind == "counter" else Gauge
        return kind(row.name, row.help, labels, registry=self._registry)

    def _child(self, name: str, *labels: str) -> Counter | Gauge | Histogram:
        key = (name, *labels)
        child = self._bound.get(key)
        if child is None:
            child = self._metrics[name].labels(*self._base, *labels)
            self._bound[key] = child
        return child


def _spans(outcome: Outcome) -> Iterator[tuple[str, float]]:
    """(metric, seconds) of the parts of a request's life that did happen."""
    timing = outcome.timing
    if timing.admitted is not None:
        yield "vllm:request_queue_time_seconds", timing.admitted - timing.arrived
        if timing.first_token is not None:
            yield "vllm:request_prefill_time_seconds", timing.first_token - timing.admitted
        if timing.last_token is not None:
            yield "vllm:request_inference_time_seconds", timing.last_token - timing.admitted
    if timing.first_token is not None and timing.last_token is not None:
        decode = timing.last_token - timing.first_token
        yield "vllm:request_decode_time_seconds", decode
        if outcome.num_output > 1:
            per_token = decode / (outcome.num_output - 1)
            yield "vllm:request_time_per_output_token_seconds", per_token


class _Exposition(Collector):
    """What is scraped: the registry without `_created` samples, plus the old names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._old_names = {new: old for old, new in ALIASES.items()}

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
            old = self._old_names.get(family.name)
            if old is not None:
                alias = Metric(old, f"Old name of {family.name}.", family.type)
                alias.samples = [
                    s._replace(name=old + s.name.removeprefix(family.name)) for s in family.samples
                ]
                yield alias
