"""When a run's numbers do not mean what they seem to. Pure: a run in, reasons out.

Each cause is one that has made a published benchmark wrong (needs.md 24): the client was the
bottleneck, outputs ended early, requests failed, the cache was warm, the sample was small, the
run was not steady, nothing was streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from octavo.tools.bench.stats import Record, completed, median

MAX_CPU_SHARE = 0.9
MAX_LAG_S = 0.05
MAX_LATE_S = 0.1
MIN_REQUESTS = 20
MAX_DRIFT = 1.5
MIN_DRIFT_S = {"ttft": 0.05, "tpot": 0.002}
"""Halves that differ by less are noise, whatever their ratio."""

Cause = Literal[
    "client-saturated",
    "short-outputs",
    "errors",
    "warm-cache",
    "too-few-requests",
    "drift",
    "not-streamed",
]


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the load generator itself fared."""

    cpu_share: float
    """CPU over wall seconds of the client process; its loop is one thread, so 1.0 is full."""
    lag_p99_s: float
    """How late the event loop woke from short sleeps."""
    late_p99_s: float
    """How late requests were sent after they were due."""


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator said about the run."""

    warm_cache: bool = False
    allow_short: bool = False
    is_rate_limited: bool = False
    """Whether arrivals were spread over time, so that a growing TTFT is a growing queue."""


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why the run is INVALID."""

    cause: Cause
    text: str


def invalid_because(
    records: Sequence[Record], client: ClientHealth, declared: Declared, repeated_share: float
) -> list[Reason]:
    """All reasons; none for a run whose numbers can be used."""
    good = completed(records)
    found = [
        *of_client(client),
        *_errors(records),
        *(() if declared.allow_short else _short(good)),
        *(() if declared.warm_cache else _warm(good, repeated_share)),
        *_too_few(good),
        *_drift(good, declared),
        *_unstreamed(good),
    ]
    return [Reason(cause=cause, text=text) for cause, text in found]


_Found = Iterator[tuple[Cause, str]]


def of_client(client: ClientHealth) -> _Found:
    """What the load generator itself fell short of."""
    if client.cpu_share > MAX_CPU_SHARE:
        yield (
            "client-saturated",
            f"the client used {client.cpu_share:.0%} of a core (limit {MAX_CPU_SHARE:.0%}).",
        )
    if client.lag_p99_s > MAX_LAG_S:
        yield (
            "client-saturated",
            f"the client's event loop woke {client.lag_p99_s * 1e3:.0f} ms late at p99 "
            f"(limit {MAX_LAG_S * 1e3:.0f} ms).",
        )
    if client.late_p99_s > MAX_LATE_S:
        yield (
            "client-saturated",
            f"requests were sent {client.late_p99_s * 1e3:.0f} ms after they were due at p99 "
            f"(limit {MAX_LATE_S * 1e3:.0f} ms).",
        )


def _errors(records: Sequence[Record]) -> _Found:
    failed = [record for record in records if record.error is not None]
    if failed:
        yield (
            "errors",
            f"{len(failed)} of {len(records)} requests failed; the first: {failed[0].error}",
        )


def _short(good: Sequence[Record]) -> _Found:
    short = [record for record in good if record.output_tokens < record.asked_tokens]
    if short:
        got = sum(record.output_tokens for record in good)
        asked = sum(record.asked_tokens for record in good)
        yield (
            "short-outputs",
            f"{len(short)} outputs ran short: {got} tokens came of {asked} asked "
            "(declare with --allow-short).",
        )


def _warm(good: Sequence[Record], repeated_share: float) -> _Found:
    cached = sum(record.cached_tokens or 0 for record in good)
    if cached:
        prompt = sum(record.prompt_tokens for record in good)
        yield (
            "warm-cache",
            f"the server found {cached} of {prompt} prompt tokens in its cache "
            "(declare with --warm-cache).",
        )
    if repeated_share > 0:
        yield (
            "warm-cache",
            f"{repeated_share:.0%} of the prompts repeat an earlier one "
            "(declare with --warm-cache).",
        )


def _too_few(good: Sequence[Record]) -> _Found:
    if len(good) < MIN_REQUESTS:
        yield (
            "too-few-requests",
            f"{len(good)} requests ended well; percentiles need at least {MIN_REQUESTS}.",
        )


def _drift(good: Sequence[Record], declared: Declared) -> _Found:
    if len(good) < MIN_REQUESTS:
        return
    ordered = sorted(good, key=lambda record: record.sent)
    halves = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    metrics = ("tpot", "ttft") if declared.is_rate_limited else ("tpot",)
    for metric in metrics:
        first, second = (
            median([value for record in half if (value := getattr(record, metric)) is not None])
            for half in halves
        )
        low, high = min(first, second), max(first, second)
        if high > low * MAX_DRIFT and high - low > MIN_DRIFT_S[metric]:
            yield (
                "drift",
                f"median {metric.upper()} was {first * 1e3:.1f} ms in the first half of the run "
                f"and {second * 1e3:.1f} ms in the second: not a steady state.",
            )


def _unstreamed(good: Sequence[Record]) -> _Found:
    long = [record for record in good if record.output_tokens >= 8 and record.chunk_times]
    lumps = [record for record in long if len(record.chunk_times) == 1]
    if long and len(lumps) * 2 > len(long):
        yield (
            "not-streamed",
            f"{len(lumps)} of {len(long)} answers came in one piece: their TTFT is their e2e time.",
        )


def warnings(records: Sequence[Record]) -> list[str]:
    """What a reader should know that does not make the run invalid."""
    good = completed(records)
    found = []
    if MIN_REQUESTS <= len(good) < 100:
        found.append(f"p99 rests on {len(good)} requests, fewer than 100.")
    if good and all(record.cached_tokens is None for record in good):
        found.append("the server does not report cached tokens; a warm cache would go unseen.")
    if good and any(record.prompt_tokens == 0 for record in good):
        found.append("the server sent no usage; output tokens are counted as chunks.")
    return found
