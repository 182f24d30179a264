"""What the measurements of a run add up to. Pure: records in, numbers out.

Times are seconds from the start of the run. TTFT runs from sending to the first output chunk;
TPOT is the rest of the time over the tokens after the first; ITL is the gap between adjacent
chunks; e2e runs from sending to the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

PERCENTILES = (50, 90, 95, 99)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the client saw it."""

    index: int
    due: float
    """When it should have been sent: its arrival, or when a slot of --max-concurrency was free."""
    sent: float
    done: float
    chunk_times: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    asked_tokens: int = 0
    cached_tokens: int | None = None
    """None when the server does not say."""
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first chunk; None when there was none."""
        return self.chunk_times[0] - self.sent if self.chunk_times else None

    @property
    def e2e(self) -> float:
        """Seconds to the end."""
        return self.done - self.sent

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None for outputs of one token."""
        if not self.chunk_times or self.output_tokens < 2:
            return None
        return (self.chunk_times[-1] - self.chunk_times[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between adjacent chunks."""
        return tuple(b - a for a, b in pairwise(self.chunk_times))


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over all requests, in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The run as a whole."""

    completed: int
    failed: int
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    peak_concurrency: int


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met every objective."""

    objectives_ms: dict[str, float]
    good: int
    share: float
    requests_per_s: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile with linear interpolation between ranks (numpy's default); NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def median(values: Sequence[float]) -> float:
    """The middle value; NaN of nothing."""
    return percentile(values, 50)


def summary_ms(seconds: Sequence[float]) -> Summary | None:
    """Mean and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    ms = [value * 1e3 for value in seconds]
    p50, p90, p95, p99 = (percentile(ms, percent) for percent in PERCENTILES)
    mean = math.fsum(ms) / len(ms)
    return Summary(count=len(ms), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99)


def completed(records: Sequence[Record]) -> list[Record]:
    """Those that did not fail."""
    return [record for record in records if record.error is None]


def latencies(records: Sequence[Record]) -> dict[str, Summary]:
    """TTFT, TPOT, ITL and e2e of the requests that did not fail."""
    good = completed(records)
    series = {
        "ttft": [value for record in good if (value := record.ttft) is not None],
        "tpot": [value for record in good if (value := record.tpot) is not None],
        "itl": [gap for record in good for gap in record.gaps],
        "e2el": [record.e2e for record in good],
    }
    summaries = {name: summary_ms(values) for name, values in series.items()}
    return {name: summary for name, summary in summaries.items() if summary is not None}


def totals(records: Sequence[Record]) -> Totals:
    """Counts and rates, from the first sending to the last end."""
    good = completed(records)
    duration = span(records)
    prompt = sum(record.prompt_tokens for record in good)
    output = sum(record.output_tokens for record in good)
    per_s = 1 / duration if duration > 0 else 0.0
    return Totals(
        completed=len(good),
        failed=len(records) - len(good),
        duration_s=duration,
        prompt_tokens=prompt,
        output_tokens=output,
        requests_per_s=len(good) * per_s,
        output_tokens_per_s=output * per_s,
        total_tokens_per_s=(prompt + output) * per_s,
        peak_concurrency=peak_concurrency(records),
    )


def span(records: Sequence[Record]) -> float:
    """Seconds from the first sending to the last end."""
    if not records:
        return 0.0
    return max(record.done for record in records) - min(record.sent for record in records)


def peak_concurrency(records: Sequence[Record]) -> int:
    """Most requests in flight at once."""
    events = sorted(
        [(record.sent, 1) for record in records] + [(record.done, -1) for record in records]
    )
    running = peak = 0
    for _, change in events:
        running += change
        peak = max(peak, running)
    return peak


def goodput(records: Sequence[Record], objectives_ms: Mapping[str, float]) -> Goodput:
    """How many requests met every objective; one that failed or stayed silent does not."""
    good = sum(_meets(record, objectives_ms) for record in records)
    duration = span(records)
    return Goodput(
        objectives_ms=dict(objectives_ms),
        good=good,
        share=good / len(records) if records else 0.0,
        requests_per_s=good / duration if duration > 0 else 0.0,
    )


def _meets(record: Record, objectives_ms: Mapping[str, float]) -> bool:
    if record.error is not None or record.ttft is None:
        return False
    measured = {"ttft": record.ttft, "tpot": record.tpot or 0.0, "e2el": record.e2e}
    return all(measured[name] * 1e3 <= limit for name, limit in objectives_ms.items())
