"""`octavo cost`: who used what, what it cost, where all device time went, and whether buying would have been cheaper."""

from __future__ import annotations

import argparse
import csv
import io
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from octavo.core.errors import ConfigError, RequestError
from octavo.server.costs import report
from octavo.server.costs.report import Usage, UsageLine
from octavo.tools import ledger_file, output
from octavo.tools.parser import Parser
from octavo.tools.tables import table

_TIMES = ("prefill_s", "decode_s", "aborted_s", "failed_s", "preemption_s", "failover_s")
_COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
MILLION = 1e6


class Price(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One offer: money per million tokens, in the currency of --device-price."""

    name: str
    input: float
    output: float
    cached: float | None = None
    """Of prompt tokens found in a cache; default: as input."""


class Prices(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A price list."""

    prices: list[Price]


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    ledger_file.add_flags(parser)
    parser.add_argument(
        "--by",
        default="tenant,feature,model",
        metavar="COLUMNS",
        help=f"Group by some of {','.join(report.DIMS)} [tenant,feature,model].",
    )
    parser.add_argument(
        "--since", default="1d", metavar="WHEN", help="1d, 12h, or 2030-01-31 (UTC) [1d]."
    )
    parser.add_argument("--until", metavar="WHEN", help="Likewise; default: now.")
    parser.add_argument(
        "--csv", action="store_true", help="Print the lines as CSV instead of tables."
    )
    parser.add_argument(
        "--prices",
        metavar="FILE.yaml",
        help="Price list to compare with: prices: [{name, input, output, cached}], per million tokens.",
    )
    output.add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    now = time.time()
    try:
        dims = report.dimensions(args.by)
        since = report.moment(args.since, now)
        until = None if args.until is None else report.moment(args.until, now)
    except RequestError as error:
        raise ConfigError(error.message, code="E-FLAG-01") from error
    prices = None if args.prices is None else read_prices(args.prices)
    ledger = ledger_file.open_ledger(args)
    try:
        usage = report.usage(ledger, dims, since, until, most=None)
    finally:
        ledger.close()
    if args.csv:
        print(_csv(usage, dims), end="")
        return 0
    offers = [] if prices is None else break_even(usage, prices)
    body = {**msgspec.to_builtins(usage), "prices": offers}
    output.show(args.json, lambda: _text(usage, dims, offers), lambda: _json(body))
    return 0


def read_prices(path: str) -> list[Price]:
    """A price list out of a file.

    Raises:
        ConfigError: it cannot be read, or is no price list.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        found = msgspec.convert(yaml.safe_load(text), Prices).prices
    except OSError as error:
        raise ConfigError(f"--prices {path!r}: {error.strerror}.", code="E-FILE-01") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--prices {path!r}: {' '.join(str(error).split())}.",
            code="E-FILE-01",
            fix="Expected `prices: [{name: ..., input: 0.1, output: 0.4, cached: 0.05}]`, per million tokens.",
        ) from error
    if any(min(one.input, one.output, one.cached or 0.0) < 0 for one in found):
        raise ConfigError(f"--prices {path!r} has a price below 0.", code="E-FILE-01")
    return found


def break_even(usage: Usage, prices: list[Price]) -> list[dict[str, Any]]:
    """What the same tokens would have cost at each price, and how busy the device has to be to be as cheap.

    All device time counts, idle and waste too: it is paid for. `break_even_tokens_per_hour` is how many tokens of this mix a
    device has to serve in an hour so that its price is what the offer would cost.
    """
    hours = (usage.covered_s or 0.0) / 3600
    has_price = usage.currency_per_device_hour is not None
    own = sum(one.cost or 0.0 for one in usage.accounts or ()) if has_price else None
    hour = own / hours if own is not None and hours else usage.currency_per_device_hour
    prompt = sum(line.prompt_tokens for line in usage.data)
    cached = sum(line.cached_tokens for line in usage.data)
    out = sum(line.output_tokens for line in usage.data)
    tokens = prompt + out
    rows = []
    for price in prices:
        hit = price.input if price.cached is None else price.cached
        bought = ((prompt - cached) * price.input + cached * hit + out * price.output) / MILLION
        each = bought / tokens if tokens else 0.0
        rows.append(
            {
                "name": price.name,
                "bought": bought,
                "own": own,
                "saved": None if own is None else bought - own,
                "tokens_per_hour": tokens / hours if hours else 0.0,
                "break_even_tokens_per_hour": hour / each if hour is not None and each else None,
            }
        )
    return rows


def _text(usage: Usage, dims: list[str], offers: list[dict[str, Any]]) -> str:
    parts = [_lines_text(usage, dims), _accounts_text(usage)]
    if offers:
        header = ("offer", "bought", "own device", "saved", "tokens/h", "break-even tokens/h")
        rows = [
            (
                str(one["name"]),
                _money(one["bought"]),
                _money(one["own"]),
                _money(one["saved"]),
                f"{one['tokens_per_hour']:.0f}",
                "-"
                if one["break_even_tokens_per_hour"] is None
                else f"{one['break_even_tokens_per_hour']:.0f}",
            )
            for one in offers
        ]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _lines_text(usage: Usage, dims: list[str]) -> str:
    if not usage.data:
        return "nobody asked for anything in this time"
    header = (*dims, "requests", "prompt", "cached", "output", "prefill s", "decode s", "aborted s")
    rows = [
        (
            *(line.by[dim] or "(none)" for dim in dims),
            *(f"{getattr(line, name)}" for name in _COUNTS[:4]),
            *(f"{getattr(line, name):.3f}" for name in _TIMES[:3]),
            _money(line.cost),
            *_rates(line),
        )
        for line in usage.data
    ]
    return table((*header, "cost", "per M prefill", "per M decode"), rows)


def _rates(line: UsageLine) -> tuple[str, str]:
    """Cost per million tokens, prefill and decode apart."""
    kept = line.output_tokens - line.lost_tokens
    pairs = ((line.prefill_cost, line.computed_tokens), (line.decode_cost, kept))
    first, second = (
        _money(cost / count * MILLION) if cost is not None and count > 0 else "-"
        for cost, count in pairs
    )
    return first, second


def _accounts_text(usage: Usage) -> str:
    rows = [
        (one.name, f"{one.device_s:.3f}", f"{100 * one.share:.2f} %", _money(one.cost))
        for one in usage.accounts or ()
    ]
    total, covered = sum(one.device_s for one in usage.accounts or ()), usage.covered_s or 0.0
    off = 100 * (total / covered - 1) if covered else 0.0
    rows.append(("sum", f"{total:.3f}", f"{100 if total else 0:.2f} %", ""))
    text = table(("account", "device s", "share", "cost"), rows)
    return (
        f"{text}\nservers ran for {covered:.3f} device-seconds; the accounts differ by {off:+.4f} %"
    )


def _csv(usage: Usage, dims: list[str]) -> str:
    names = [name for name in UsageLine.__struct_fields__ if name != "by"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*dims, *names])
    for line in usage.data:
        writer.writerow([*(line.by[dim] for dim in dims), *(getattr(line, n) for n in names)])
    return text.getvalue()


def _json(body: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(body), indent=1).decode()


def _money(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.4f}" if abs(amount) < 100 else f"{amount:.2f}"
