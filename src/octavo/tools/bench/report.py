"""A run of `bench serve` as data, as a table and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from octavo.tools.bench import stats, validity
from octavo.tools.bench.stats import Goodput, Record, Summary, Totals
from octavo.tools.bench.validity import ClientHealth, Declared, Reason
from octavo.tools.tables import table

SCHEMA = 1
_TITLES = {
    "ttft": "TTFT (ms)",
    "tpot": "TPOT (ms)",
    "itl": "ITL (ms)",
    "e2el": "e2e (ms)",
}


class Origin(NamedTuple):
    """Where a run came from."""

    arguments: Mapping[str, object]
    environment: Mapping[str, object]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a reader needs to judge and to repeat the run."""

    kind: str = "octavo bench serve"
    schema: int = SCHEMA
    valid: bool
    invalid_because: tuple[Reason, ...]
    warnings: tuple[str, ...]
    totals: Totals
    latencies_ms: dict[str, Summary]
    goodput: Goodput | None
    client: ClientHealth
    declared: Declared
    arguments: dict[str, object]
    environment: dict[str, object]
    requests: tuple[Record, ...]


def make(
    records: Sequence[Record],
    client: ClientHealth,
    declared: Declared,
    *,
    repeated_share: float,
    objectives_ms: Mapping[str, float],
    origin: Origin,
) -> Report:
    """Add a run up and judge it."""
    reasons = validity.invalid_because(records, client, declared, repeated_share)
    return Report(
        valid=not reasons,
        invalid_because=tuple(reasons),
        warnings=tuple(validity.warnings(records)),
        totals=stats.totals(records),
        latencies_ms=stats.latencies(records),
        goodput=stats.goodput(records, objectives_ms) if objectives_ms else None,
        client=client,
        declared=declared,
        arguments=dict(origin.arguments),
        environment=dict(origin.environment),
        requests=tuple(records),
    )


def to_json(report: Report) -> str:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode()


def to_text(report: Report) -> str:
    """The report for a terminal. An INVALID stamp stands before and after the numbers."""
    stamp = _stamp(report)
    parts = [stamp, _totals(report.totals), _latencies(report.latencies_ms)]
    if report.goodput is not None:
        parts.append(_goodput(report.goodput))
    client = report.client
    parts.append(
        f"client: {client.cpu_share:.0%} of a core, loop lag p99 {client.lag_p99_s * 1e3:.1f} ms, "
        f"sending lag p99 {client.late_p99_s * 1e3:.1f} ms"
    )
    parts += [f"note: {text}" for text in report.warnings]
    parts.append(stamp or "VALID")
    return "\n\n".join(part for part in parts if part)


def _stamp(report: Report) -> str:
    return "\n".join(
        f"INVALID ({reason.cause}): {reason.text}" for reason in report.invalid_because
    )


def _totals(totals: Totals) -> str:
    rows = [
        ("requests completed / failed", f"{totals.completed} / {totals.failed}"),
        ("duration", f"{totals.duration_s:.2f} s"),
        ("prompt tokens", f"{totals.prompt_tokens}"),
        ("output tokens", f"{totals.output_tokens}"),
        ("requests per second", f"{totals.requests_per_s:.2f}"),
        ("output tokens per second", f"{totals.output_tokens_per_s:.1f}"),
        ("total tokens per second", f"{totals.total_tokens_per_s:.1f}"),
        ("peak concurrency", f"{totals.peak_concurrency}"),
    ]
    return table(("run", ""), rows)


def _latencies(latencies: Mapping[str, Summary]) -> str:
    rows = [
        [_TITLES[name], *(f"{value:.2f}" for value in (s.mean, s.p50, s.p90, s.p95, s.p99))]
        for name, s in latencies.items()
    ]
    return table(("latency", "mean", "p50", "p90", "p95", "p99"), rows) if rows else ""


def _goodput(goodput: Goodput) -> str:
    limits = ", ".join(f"{name} <= {limit:g} ms" for name, limit in goodput.objectives_ms.items())
    return (
        f"goodput: {goodput.requests_per_s:.2f} requests/s, {goodput.share:.1%} of all met {limits}"
    )
