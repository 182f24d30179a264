"""What is asked for: percentiles of a run, and objectives of single requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from octavo.tools.bench import stats
from octavo.tools.bench.stats import Record, percentile

LEAST_SHARE = 0.99
"""Of requests that must meet their objectives for a run to meet `--goodput`."""
IMPLIED_TTFT_MS = 10_000.0
"""Where nothing is said of first tokens: a queue that only grows would meet every objective between tokens."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in milliseconds."""

    p99: dict[str, float]
    """Metric (ttft, itl) -> limit of the 99th percentile of a run."""
    each: dict[str, float]
    """Metric (ttft, tpot, e2el) -> limit of a single request, of `--goodput`."""
    is_implied: bool = False
    """Whether the limit of first tokens is not the caller's."""

    def good(self) -> dict[str, float]:
        """What a single request must meet to count as good: a limit of ITL is one of its mean."""
        limits = dict(self.each)
        for name, limit in self.p99.items():
            key = "tpot" if name == "itl" else name
            limits[key] = min(limit, limits.get(key, limit))
        return limits


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to: times in milliseconds, rates per second."""

    rate: float
    """Arrivals per second."""
    goodput: float
    """Requests per second that met all objectives."""
    good_share: float
    ttft_p99: float
    itl_p99: float
    tokens_per_s: float
    """Output tokens."""
    good_tokens_per_s: float
    """Output tokens of good requests."""
    failed: int
    missed: tuple[str, ...]
    """What of the SLO was not met; empty: all was."""

    @property
    def meets(self) -> bool:
        """Whether the SLO was met."""
        return not self.missed


class Asked(NamedTuple):
    """Flags of the command line."""

    ttft_p99_ms: float | None
    itl_p99_ms: float | None
    goodput: Mapping[str, float]


def slo_of(asked: Asked) -> Slo:
    """The SLO; with a limit of first tokens where none was given."""
    p99 = {"ttft": asked.ttft_p99_ms, "itl": asked.itl_p99_ms}
    given = {name: limit for name, limit in p99.items() if limit is not None}
    each = dict(asked.goodput)
    is_implied = not {"ttft", "e2el"} & (given.keys() | each.keys())
    if is_implied:
        given["ttft"] = IMPLIED_TTFT_MS
    return Slo(p99=given, each=each, is_implied=is_implied)


def score(records: Sequence[Record], slo: Slo, rate: float, num_runs: int = 1) -> Score:
    """Judge a run, or several of the same requests beside each other. Goodput is the share of good requests times the rate at which they came, so that the time in which
    the last ones end counts for nobody.
    """
    good = [record for record in records if stats.goodput([record], slo.good()).good]
    share = len(good) / len(records)
    ended = stats.completed(records)
    found = {
        "ttft": percentile([r.ttft for r in ended if r.ttft is not None] or [float("inf")], 99)
        * 1e3,
        "itl": percentile([gap for r in ended for gap in r.gaps] or [0.0], 99) * 1e3,
    }
    span = num_runs * (stats.span(records) or 1.0)
    missed = [
        f"p99 {name.upper()} {found[name]:.4g} ms > {limit:g} ms"
        for name, limit in slo.p99.items()
        if found[name] > limit
    ]
    failed = len(records) - len(ended)
    if slo.each and share < LEAST_SHARE:
        limits = " ".join(f"{name}:{limit:g}" for name, limit in slo.each.items())
        missed.append(f"{share:.1%} of requests met {limits}, not {LEAST_SHARE:.0%}")
    if failed:
        missed.append(f"{failed} of {len(records)} requests failed")
    return Score(
        rate=rate,
        goodput=share * rate,
        good_share=share,
        ttft_p99=found["ttft"],
        itl_p99=found["itl"],
        tokens_per_s=sum(r.output_tokens for r in ended) / span,
        good_tokens_per_s=sum(r.output_tokens for r in good) / span,
        failed=failed,
        missed=tuple(missed),
    )


def text(slo: Slo) -> str:
    """`p99 TTFT <= 500 ms, p99 ITL <= 50 ms`."""
    parts = [f"p99 {name.upper()} <= {limit:g} ms" for name, limit in slo.p99.items()]
    parts += [
        f"{name} <= {limit:g} ms of {LEAST_SHARE:.0%} of requests"
        for name, limit in slo.each.items()
    ]
    return ", ".join(parts)
