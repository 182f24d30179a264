"""A plan as tables and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from octavo.core.kvspec import BLOCK_SIZE
from octavo.engine.decide import Resolved
from octavo.tools.plan.breakeven import Line
from octavo.tools.plan.changes import Change
from octavo.tools.plan.predict import Fleet, Prediction
from octavo.tools.plan.speed import GPU_SHARES, Measured, Network, Roofline, Speed
from octavo.tools.plan.target import Target
from octavo.tools.tables import bytes_text, seconds_text, table

Cells = Sequence[tuple[str, str]]


class Part(msgspec.Struct, frozen=True):
    """A part of a device's memory."""

    name: str
    bytes: int


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """Processes and devices."""

    devices: int
    replicas: int
    devices_per_replica: int
    processes: int
    processes_per_replica: int
    """The server, and one process of the engine per device."""
    runs_in_this_build: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The whole plan."""

    model: str
    device: str
    fits: bool
    why_not: str = ""
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    topology: Topology
    decisions: tuple[tuple[str, str, str], ...] = ()
    """Name, value, reason: as `octavo serve` prints them."""
    memory: tuple[Part, ...] = ()
    """Of one device; sums to `available_bytes`."""
    available_bytes: int
    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    """Of a token that all layers keep."""
    kv_tokens: int = 0
    max_model_len: int = 0
    ceilings: tuple[tuple[str, str], ...] = ()
    """What times are predicted from, and where that comes from."""
    predictions: tuple[Prediction, ...] = ()
    break_even: tuple[Line, ...] = ()
    currency: str = ""


def topology_of(fleet: Fleet) -> Topology:
    """Processes and devices of so many replicas."""
    per_replica = 1 + fleet.num_ranks
    return Topology(
        devices=fleet.num_replicas * fleet.num_ranks,
        replicas=fleet.num_replicas,
        devices_per_replica=fleet.num_ranks,
        processes=fleet.num_replicas * per_replica,
        processes_per_replica=per_replica,
        runs_in_this_build=fleet.num_ranks == 1,
    )


def notes_of(target: Target, fleet: Fleet) -> tuple[str, ...]:
    """What a reader must know before trusting the rest."""
    notes = []
    if fleet.num_ranks > 1:
        notes.append(
            f"this build cannot run --tp {fleet.num_ranks}: it has one device per engine. The plan says what such an "
            "engine would take."
        )
    if fleet.num_replicas > 1:
        notes.append(
            "replicas are servers of their own, each on its port, behind a load balancer of yours."
        )
    if target.kind == "cuda":
        notes.append(
            "times on a GPU are peaks times assumed shares and were not measured with this build; memory is planned by "
            "the rules of the engine's own start."
        )
    return tuple(notes)


def ceilings_of(target: Target, speed: Speed) -> tuple[tuple[str, str], ...]:
    """What times come from."""
    if isinstance(speed, Measured):
        timing = speed.timing
        return (
            ("weights read", f"{timing.read_bytes_per_s / 1e9:.1f} GB/s, {target.source}"),
            ("products", f"{timing.flop_per_s / 1e12:.3f} TFLOP/s, {target.source}"),
        )
    assert isinstance(speed, Roofline)
    shares, row = speed.shares, speed.device
    peak = row.tflops if speed.network.dtype != "float32" else row.tflops_float32
    how = "assumed" if shares is GPU_SHARES else "measured on another CPU"
    return (
        (
            "weights read",
            f"{row.read_gb_s:g} GB/s, {target.source}; steps reach {shares.read:.0%} ({how})",
        ),
        (
            "products",
            f"{peak:g} TFLOP/s, {target.source}; steps reach {shares.products:.0%} ({how})",
        ),
    )


def memory_of(resolved: Resolved, network: Network) -> dict[str, object]:
    """The fields of a `Plan` that a memory plan gives."""
    memory = resolved.memory
    return {
        "decisions": tuple((d.name, d.value, d.reason) for d in resolved.decisions),
        "memory": tuple(Part(name, size) for name, size in memory.parts()),
        "weights_bytes": memory.weights,
        "kv_bytes_per_token": sum(spec.bytes_per_token for spec in network.kv),
        "kv_tokens": min(memory.kv_tokens, 1 << 62) if memory.groups else 0,
        "max_model_len": resolved.limits.max_model_len,
    }


def to_json(plan: Plan) -> str:
    """The plan as one object; times in seconds, sizes in bytes."""
    return json.dumps(msgspec.to_builtins(plan), indent=1)


def to_text(plan: Plan) -> str:
    """Tables, one under the other."""
    parts = [_head(plan)]
    if not plan.fits:
        parts.append(f"does not fit: {plan.why_not}")
        parts.append(_changes(plan.changes))
    else:
        parts += [_memory(plan), _decisions(plan), _predictions(plan)]
        if plan.break_even:
            parts.append(_break_even(plan))
    parts += [f"note: {note}" for note in plan.notes]
    return "\n\n".join(part for part in parts if part)


def _head(plan: Plan) -> str:
    topology = plan.topology
    plural = "s" if topology.devices > 1 else ""
    return (
        f"{plan.model} on {topology.devices} x {plan.device}: {topology.devices} device{plural}, "
        f"{topology.processes} processes ({topology.replicas} x [server + {topology.devices_per_replica} of the engine])"
    )


def _memory(plan: Plan) -> str:
    total = plan.available_bytes
    rows = [(p.name, bytes_text(p.bytes), f"{100 * p.bytes / total:.1f} %") for p in plan.memory]
    rows.append(("available", bytes_text(total), "100.0 %"))
    text = table(("memory of one device", "size", "share"), rows)
    if not plan.kv_bytes_per_token:
        return text
    blocks = plan.kv_tokens // BLOCK_SIZE
    tokens = (
        "no limit by full contexts" if plan.kv_tokens >= 1 << 40 else f"{plan.kv_tokens} tokens"
    )
    return (
        f"{text}\n\nKV cache: {bytes_text(plan.kv_bytes_per_token)} per token; room for {tokens}"
        + (f" ({blocks} blocks of {BLOCK_SIZE})" if plan.kv_tokens < 1 << 40 else "")
        + f"; context {plan.max_model_len}"
    )


def _decisions(plan: Plan) -> str:
    return table(("decided", "value", "because"), plan.decisions)


def _predictions(plan: Plan) -> str:
    if not plan.predictions:
        return ""
    lines = [f"{name}: {value}" for name, value in plan.ceilings]
    has_cost = plan.predictions[0].cost_per_million_prompt is not None
    header = [
        "mix",
        "prompt",
        "output",
        "at once",
        "limited by",
        "TTFT",
        "ITL",
        "TTFT full",
        "ITL full",
    ]
    header += ["output tok/s", "requests/s"]
    header += ["per M prompt", "per M output"] if has_cost else []
    rows = []
    for p in plan.predictions:
        row = [p.mix, str(p.prompt_tokens), str(p.output_tokens), str(p.concurrency), p.limited_by]
        row += [
            _time(p.ttft_alone_s),
            _time(p.itl_alone_s),
            _time(p.ttft_full_s),
            _time(p.itl_full_s),
        ]
        row += [f"{p.output_tokens_per_s:.1f}", f"{p.requests_per_s:.3g}"]
        if has_cost:
            row += [_money(p.cost_per_million_prompt), _money(p.cost_per_million_output)]
        rows.append(row)
    about = "TTFT, ITL: one request alone; full: so many at once, all the time."
    return "\n".join([*lines, "", table(header, rows), about])


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else seconds_text(seconds)


def _money(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.3g}"


def _changes(changes: tuple[Change, ...]) -> str:
    if not changes:
        return "nothing that is known here makes it fit."
    rows = [
        (
            f"with {c.flags}",
            c.cost,
            bytes_text(c.weights_bytes),
            "-" if c.kv_tokens >= 1 << 40 else str(c.kv_tokens),
        )
        for c in changes
    ]
    header = ("the smallest changes that fit", "at the cost of", "weights", "KV tokens then")
    return table(header, rows)


def _break_even(plan: Plan) -> str:
    rows = []
    for line in plan.break_even:
        if line.requests_per_day is None:
            verdict = "buy: it costs nothing"
        elif line.is_cheaper_at_most:
            share = line.requests_per_day / line.capacity_per_day
            verdict = f"own, from {share:.0%} of what the devices can do"
        else:
            verdict = "buy: beyond what the devices can do"
        rows.append(
            (
                line.mix,
                line.offer,
                f"{line.offer_per_request:.3g}",
                f"{line.own_per_day:.2f}",
                _count(line.requests_per_day),
                _count(line.tokens_per_day),
                _count(line.capacity_per_day),
                verdict,
            )
        )
    header = (
        "mix",
        "offer",
        "its price per request",
        "own per day",
        "even at requests/day",
        "tokens/day",
    )
    unit = f" (money in {plan.currency})" if plan.currency else ""
    return f"self-host or buy{unit}\n" + table((*header, "most requests/day", "cheaper"), rows)


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"
