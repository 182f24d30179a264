"""When a plan does not fit: the three smallest changes that make it fit. Each is planned anew before it is named."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, MemoryPlanError
from octavo.core.kvspec import BLOCK_SIZE
from octavo.tools.plan.devices import CONTEXT_BYTES, DEVICES, MIB
from octavo.tools.plan.target import Target

MOST_SHARE = 0.95
LEAST_CONTEXT = 0.25
"""Of the context asked for: less is another use of the model, and no change of its plan."""
LEAST_TOKENS = 2048
"""Of context, or all that the model allows: below it a plan fits in name alone."""
MAX_RANKS = 8
WANTED = 3


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One way out, which was planned."""

    flags: str
    cost: str
    """What is lost by it."""
    kv_tokens: int
    """That fit then."""
    weights_bytes: int


def smallest_changes(config: EngineConfig, target: Target) -> tuple[Change, ...]:
    """At most three, the least felt first: memory, then context and batch, then numbers, then the device."""
    found: list[Change] = []
    for flags, cost, changed, where in _candidates(config, target):
        try:
            resolved = where.resolve(changed)
        except (MemoryPlanError, ConfigError):
            continue
        memory = resolved.memory
        if memory.groups and memory.kv_tokens < min(LEAST_TOKENS, resolved.facts.max_context):
            continue
        found.append(
            Change(
                flags=flags,
                cost=cost,
                kv_tokens=min(memory.kv_tokens, 1 << 62),
                weights_bytes=memory.weights,
            )
        )
        if len(found) == WANTED:
            break
    return tuple(found)


Candidate = tuple[str, str, EngineConfig, Target]


def _candidates(config: EngineConfig, target: Target) -> Iterator[Candidate]:
    """Single changes from the least felt on, then pairs of them, then other devices."""
    singles = list(_singles(config, target))
    yield from singles
    for (flags, cost, one, _), (more, and_cost, _, _) in itertools.combinations(singles, 2):
        if flags.split()[0] == more.split()[0] or "(" in flags:
            continue
        both = _changed(one, more)
        yield f"{flags} {more}", f"{cost}; {and_cost}", both, target
    yield from _devices(config, target)


def _singles(config: EngineConfig, target: Target) -> Iterator[Candidate]:
    if config.kv_cache_memory_bytes is None:
        flags = f"--gpu-memory-utilization {MOST_SHARE}"
        yield flags, "less memory for others", _changed(config, flags), target
    else:
        without = msgspec.structs.replace(config, kv_cache_memory_bytes=None)
        yield "(without --kv-cache-memory-bytes)", "as many tokens as fit", without, target
    length = _longest(config, target)
    if length is not None:
        flags = f"--max-model-len {length}"
        yield flags, "shorter contexts", _changed(config, flags), target
    if config.max_num_seqs > 16:
        flags = f"--max-num-seqs {max(16, config.max_num_seqs // 4)} --max-num-batched-tokens 512"
        if config.max_num_batched_tokens is None or config.max_num_batched_tokens > 512:
            yield flags, "fewer sequences and shorter steps", _changed(config, flags), target
    for flags, cost in (
        ("--kv-cache-dtype int8", "rounded keys and values"),
        ("--dtype bfloat16", "rounded activations"),
        ("--quantization int8", "weights rounded to 8 bits"),
        ("--quantization int4", "weights rounded to 4 bits"),
    ):
        name, value = flags.split()
        if getattr(config, name.strip("-").replace("-", "_")) != value:
            yield flags, cost, _changed(config, flags), target


def _longest(config: EngineConfig, target: Target) -> int | None:
    """The longest context in blocks that fits, if only the context has to change."""
    asked = config.max_model_len
    if asked is None:
        return None
    low, high = 0, asked // BLOCK_SIZE
    while low < high:
        middle = (low + high + 1) // 2
        try:
            target.resolve(msgspec.structs.replace(config, max_model_len=middle * BLOCK_SIZE))
            low = middle
        except (MemoryPlanError, ConfigError):
            high = middle - 1
    length = low * BLOCK_SIZE
    return length if LEAST_CONTEXT * asked <= length < asked else None


def _devices(config: EngineConfig, target: Target) -> Iterator[Candidate]:
    if target.kind == "cpu":
        for gib in (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048):
            if gib << 30 > target.available:
                larger = target._replace(available=gib << 30)
                yield f"a machine with {gib} GiB available", "more memory", config, larger
        return
    ranks = target.num_ranks * 2
    larger_rows = sorted(
        (row.memory_mib * MIB - CONTEXT_BYTES, name)
        for name, row in DEVICES.items()
        if row.memory_mib * MIB - CONTEXT_BYTES > target.available
    )
    for available, name in larger_rows:
        there = target._replace(name=name, available=available, row=DEVICES[name])
        yield f"--device {name}", "a larger device", config, there
    while ranks <= MAX_RANKS:
        cost = f"{ranks} devices, which this build cannot run yet"
        yield f"--tp {ranks}", cost, config, target._replace(num_ranks=ranks)
        ranks *= 2


def _changed(config: EngineConfig, flags: str) -> EngineConfig:
    """`config` with flags of the kind `--name value` set."""
    words = flags.split()
    values: dict[str, object] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        field = name.removeprefix("--").replace("-", "_")
        is_text = field in ("kv_cache_dtype", "dtype", "quantization")
        values[field] = value if is_text else float(value) if "." in value else int(value)
    return msgspec.structs.replace(config, **values)
