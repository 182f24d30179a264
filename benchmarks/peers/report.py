"""Results as a table with shares of the ceilings. Standard library only. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Document = dict[str, Any]

BITS = {
    "auto": 16.0,
    "bf16": 16.0,
    "bfloat16": 16.0,
    "float32": 32.0,
    "int8": 8.0,
    "q8_0": 8.5,
    "int4": 4.5,
    "q4_0": 4.5,
}
"""Per weight, scales included: int4 as groups of 32 with a 16-bit scale. "auto" keeps bfloat16 checkpoints so."""
QUIET = 0.1
"""Share of the cores that others may have taken while something was measured."""
KV_BYTES = 2
"""Per cached number, for the share of bandwidth: what bfloat16 takes, whatever an engine keeps."""


class Line(NamedTuple):
    """One engine and precision in one case; medians."""

    engine: str
    precision: str
    case: str
    rounds: int
    first_s: float
    prefill_tok_s: float
    prefill_share: float
    decode_tok_s: float | None
    decode_share: float | None
    total_s: float
    spread: float
    """Longest over shortest `total_s`."""

    @property
    def label(self) -> str:
        """Engine and precision."""
        return f"{self.engine} {self.precision}"


def parameters(config: dict[str, Any]) -> tuple[int, int]:
    """(weights of the layers' products, weights of the head)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = hidden * (2 * queries + 2 * keys) + 3 * hidden * inner
    return config["num_hidden_layers"] * layer, config["vocab_size"] * hidden


def kv_numbers(config: dict[str, Any]) -> int:
    """Numbers kept per token of context."""
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head


def ceilings(document: Document) -> tuple[float, float]:
    """(GB/s, GFLOP/s): of each measurement the best way, of the quiet measurements the median."""
    found = [each for each in document["ceilings"] if each["others_cpu"] <= QUIET]
    found = found or document["ceilings"]
    return (
        statistics.median(max(each["gb_per_s"].values()) for each in found),
        statistics.median(max(each["gflop_per_s"].values()) for each in found),
    )


def lines(document: Document) -> list[Line]:
    """All rows and cases that were measured; noisy runs count only where there is no quiet one."""
    found = []
    for (engine, precision), runs in by_row(document["runs"]).items():
        measured = [run for run in runs if "cases" in run]
        names = dict.fromkeys(name for run in measured for name in run["cases"])
        for name in names:
            times = [run["cases"][name] for run in quiet_ones(measured, name)]
            found.append(line(document, engine, precision, name, times))
    return found


def quiet_ones(runs: list[Any], case: str) -> list[Any]:
    """Runs of a case during which others took little, or all of them if there are none."""
    there = [run for run in runs if case in run["cases"]]
    return [run for run in there if run["others_cpu"] <= QUIET] or there


def line(document: Document, engine: str, precision: str, case: str, times: list[Any]) -> Line:
    """Medians and shares of one case."""
    config = document["config"]
    gb_per_s, gflop_per_s = ceilings(document)
    layers, head = parameters(config)
    batch, rest = case.split("x")
    input_len, output_len = map(int, rest.split("+"))
    rows = int(batch)
    first, total = middle(times, "first_s"), middle(times, "total_s")
    # The head is computed for the last token of a prompt only.
    flop = 2.0 * rows * (layers * input_len + head)
    decode = decode_share = None
    if all(each["decode_tok_s"] for each in times):
        decode = middle(times, "decode_tok_s")
        weights = (layers + head) * BITS[precision] / 8
        cache = rows * (input_len + output_len / 2) * kv_numbers(config) * KV_BYTES
        decode_share = decode / rows * (weights + cache) / gb_per_s / 1e9
    totals = [each["total_s"] for each in times]
    return Line(
        engine=engine,
        precision=precision,
        case=case,
        rounds=len(times),
        first_s=first,
        prefill_tok_s=rows * input_len / first,
        prefill_share=flop / first / gflop_per_s / 1e9,
        decode_tok_s=decode,
        decode_share=decode_share,
        total_s=total,
        spread=max(totals) / min(totals),
    )


def middle(times: Iterable[Any], key: str) -> float:
    """Median of one number over the rounds."""
    return statistics.median(each[key] for each in times)


def by_row(runs: list[Any]) -> dict[tuple[str, str], list[Any]]:
    """(engine, precision) -> its runs."""
    found: dict[tuple[str, str], list[Any]] = {}
    for run in runs:
        found.setdefault((run["engine"], run["precision"]), []).append(run)
    return found


def to_text(document: Document) -> str:
    """Markdown: the ceilings, one table per case, who was left out, and how quiet the machine was."""
    gb_per_s, gflop_per_s = ceilings(document)
    parts = [f"Ceilings: reading {gb_per_s:.1f} GB/s, products {gflop_per_s:.0f} GFLOP/s."]
    all_lines = lines(document)
    for case in dict.fromkeys(each.case for each in all_lines):
        batch, rest = case.split("x")
        input_len, output_len = rest.split("+")
        parts.append(f"{batch} x ({input_len} in, {output_len} out)")
        parts.append(table([each for each in all_lines if each.case == case]))
    skipped = [run for run in document["runs"] if "skipped" in run]
    parts += [
        f"{run['engine']} {run['precision']} is left out: {run['skipped']}" for run in skipped
    ]
    parts.append(quiet(document))
    return "\n\n".join(parts)


def table(chosen: list[Line]) -> str:
    """One case; best total first."""
    columns: tuple[tuple[str, Callable[[Line], str]], ...] = (
        ("engine", lambda each: each.engine),
        ("precision", lambda each: each.precision),
        ("prefill tok/s", lambda each: f"{each.prefill_tok_s:,.0f}"),
        ("of products", lambda each: f"{each.prefill_share:.0%}"),
        ("decode tok/s", lambda each: shown(each.decode_tok_s, "{:,.1f}")),
        ("of reading", lambda each: shown(each.decode_share, "{:.0%}")),
        ("all, s", lambda each: f"{each.total_s:.2f}"),
        ("spread", lambda each: f"{each.spread:.2f}"),
        ("rounds", lambda each: str(each.rounds)),
    )
    out = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    for each in sorted(chosen, key=lambda one: one.total_s):
        out.append("| " + " | ".join(text(each) for _, text in columns) + " |")
    return "\n".join(out)


def shown(value: float | None, form: str) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else form.format(value)


def quiet(document: Document) -> str:
    """When it was measured and what else the machine did."""
    runs = [run for run in document["runs"] if "cases" in run]
    times = {}
    for run in runs:
        times.setdefault(run["engine"], []).append(run["started"])
    spans = "; ".join(f"{name} {min(at)} to {max(at)}" for name, at in times.items())
    busy = max((run["others_cpu"] for run in runs), default=0.0)
    stolen = max((run["stolen_cpu"] for run in runs), default=0.0)
    return (
        f"Measured: {spans}. Meanwhile other work took at most {busy:.0%} of the cores, the host {stolen:.0%}. "
        "Rows of different times are compared with care."
    )
