"""The memory plan: what is spent on what, before anything is loaded. The only reader of how much memory there is.

weights + activations + headroom + KV = the budget, and the budget is a share of what is available. What does not fit
is an error that names the three smallest changes that would.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from octavo.core.errors import MemoryPlanError
from octavo.core.kvspec import BLOCK_SIZE, KVGroup

GIB = 1 << 30
HEADROOM_SHARE = 0.05
"""Of the budget: the allocator's slack, the tokenizer, Python, and what the estimates miss."""


class Needs(NamedTuple):
    """What a model and a config ask for, in bytes and tokens."""

    weights: int
    activations: int
    groups: tuple[KVGroup, ...]
    max_model_len: int
    """Asked for explicitly, or the model's own limit."""
    is_len_explicit: bool
    max_num_seqs: int
    chunk: int
    """Most tokens by which one sequence advances in a step."""


class MemoryPlan(NamedTuple):
    """The sum, in bytes. `groups` carry their block counts."""

    available: int
    budget: int
    weights: int
    activations: int
    headroom: int
    kv: int
    unused: int
    groups: tuple[KVGroup, ...]
    kv_tokens: int
    """Tokens of one sequence's context that the blocks hold."""

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Parts that sum to `available`."""
        rest = self.available - self.budget
        return (
            ("weights", self.weights),
            ("kv cache", self.kv),
            ("activations", self.activations),
            ("headroom", self.headroom),
            ("not needed", self.unused),
            ("left to others", rest),
        )


def available_bytes(device: str) -> int:
    """Memory that could be used now: on CPU the smaller of MemAvailable and the cgroup's limit, else the card's free."""
    if device == "cuda":
        import torch  # lazy: only the engine process has torch

        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return min([_mem_available(Path("/proc/meminfo")), *_cgroup_left(Path("/sys/fs/cgroup"))])


def _mem_available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MemoryPlanError(f"{meminfo} has no MemAvailable line.", code="E-MEM-02")


def _cgroup_left(root: Path) -> list[int]:
    """What the cgroup (v2 or v1) still allows; [] without a limit."""
    for limit_name, used_name, stat_name, prefix in (
        ("memory.max", "memory.current", "memory.stat", ""),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_",
        ),
    ):
        limit_file, used_file = root / limit_name, root / used_name
        if limit_file.is_file() and used_file.is_file():
            limit = limit_file.read_text().strip()
            if limit != "max":
                used = int(used_file.read_text()) - _file_cache(root / stat_name, prefix)
                return [max(0, int(limit) - max(0, used))]
    return []


def _file_cache(stat: Path, prefix: str) -> int:
    """Bytes of cached files that count as used and are given up under pressure, as MemAvailable has it.

    Without this a container that has just copied or read its weights would seem full.
    """
    if not stat.is_file():
        return 0
    sizes = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(sizes.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def plan(needs: Needs, *, available: int, share: float, kv_bytes: int | None) -> MemoryPlan:
    """Divide the memory.

    Raises:
        MemoryPlanError: weights, activations and the KV cache of one sequence do not fit.
    """
    budget = int(available * share)
    headroom = int(budget * HEADROOM_SHARE)
    room = budget - needs.weights - needs.activations - headroom if kv_bytes is None else kv_bytes
    least = _kv_for(
        needs.groups, needs.max_model_len if needs.is_len_explicit else BLOCK_SIZE, needs.chunk
    )
    total = needs.weights + needs.activations + headroom + (kv_bytes or 0)
    if room < least or (kv_bytes is not None and total > available):
        raise _does_not_fit(needs, available, share, kv_bytes, room)
    most = sum(
        group.bytes_per_block
        * (needs.max_num_seqs * _blocks_per_sequence(group, needs.max_model_len, needs.chunk) + 1)
        for group in needs.groups
    )
    groups = _share_out(needs, room if kv_bytes is not None else min(room, most))
    kv = sum(group.bytes_per_block * group.num_blocks for group in groups)
    return MemoryPlan(
        available=available,
        budget=max(budget, total),
        weights=needs.weights,
        activations=needs.activations,
        headroom=headroom,
        kv=kv,
        unused=max(budget, total) - needs.weights - needs.activations - headroom - kv,
        groups=groups,
        kv_tokens=_context_that_fits(groups, needs.chunk),
    )


def _blocks_per_sequence(group: KVGroup, num_tokens: int, chunk: int) -> int:
    """Most blocks that one sequence of `num_tokens` holds in this group."""
    blocks = -(-num_tokens // BLOCK_SIZE)
    if group.spec.window is None:
        return blocks
    return min(blocks, -(-(group.spec.window + chunk) // BLOCK_SIZE) + 1)


def sequences_that_fit(groups: tuple[KVGroup, ...], num_tokens: int, chunk: int) -> int:
    """Sequences of `num_tokens` that the pools hold at once, each with all its blocks."""
    return min(
        (group.num_blocks - 1) // _blocks_per_sequence(group, num_tokens, chunk) for group in groups
    )


def _kv_for(groups: tuple[KVGroup, ...], num_tokens: int, chunk: int) -> int:
    """Bytes of KV cache in which one sequence of `num_tokens` runs; the null blocks included."""
    return sum(
        group.bytes_per_block * (_blocks_per_sequence(group, num_tokens, chunk) + 1)
        for group in groups
    )


def _share_out(needs: Needs, room: int) -> tuple[KVGroup, ...]:
    """Block counts in the proportion in which one longest sequence uses the groups."""
    length = needs.max_model_len
    if not needs.is_len_explicit:
        length = min(length, _longest(needs, room))
    weights = [_blocks_per_sequence(group, length, needs.chunk) for group in needs.groups]
    unit = sum(
        group.bytes_per_block * weight for group, weight in zip(needs.groups, weights, strict=True)
    )
    nulls = sum(group.bytes_per_block for group in needs.groups)
    return tuple(
        KVGroup(
            spec=g.spec,
            layers=g.layers,
            num_blocks=1 + max(weight, int((room - nulls) * weight // unit)),
        )
        for g, weight in zip(needs.groups, weights, strict=True)
    )


def _longest(needs: Needs, room: int) -> int:
    """The longest context, in whole blocks, whose KV for one sequence takes at most `room` bytes."""
    low, high = 1, -(-needs.max_model_len // BLOCK_SIZE)
    while low < high:
        middle = (low + high + 1) // 2
        if _kv_for(needs.groups, middle * BLOCK_SIZE, needs.chunk) <= room:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_SIZE


def _context_that_fits(groups: tuple[KVGroup, ...], chunk: int) -> int:
    """Tokens of context that the pools hold; a window group whose pool holds a whole window does not limit it."""
    limits = [
        (group.num_blocks - 1) * BLOCK_SIZE
        for group in groups
        if group.num_blocks - 1 < _blocks_per_sequence(group, 1 << 40, chunk)
    ]
    return min(limits) if limits else 1 << 40


def _does_not_fit(
    needs: Needs, available: int, share: float, kv_bytes: int | None, room: int
) -> MemoryPlanError:
    length = needs.max_model_len if needs.is_len_explicit else min(needs.max_model_len, 2048)
    fixed, wanted = needs.weights + needs.activations, _kv_for(needs.groups, length, needs.chunk)
    spent = f"weights {_gib(needs.weights)} + activations {_gib(needs.activations)}"
    left = available - fixed - int(available * share * HEADROOM_SHARE)
    if kv_bytes is None:
        limit = f"{_gib(available * share)} ({share:.0%} of the {_gib(available)} available, 5 % headroom included)"
        cause = f"{spent} + KV for one sequence of {length} tokens {_gib(wanted)} exceed {limit}."
        changes = _shorter(needs, length, room)
        need_share = (fixed + wanted) / (1 - HEADROOM_SHARE) / max(1, available)
        if share < need_share <= 0.98:
            changes.append(f"--gpu-memory-utilization {need_share + 0.005:.2f}")
    elif kv_bytes > left:
        cause = (
            f"{spent} + headroom leave {_gib(max(left, 0))} of the {_gib(available)} available, and "
            f"--kv-cache-memory-bytes asks for {_gib(kv_bytes)}."
        )
        less = [f"--kv-cache-memory-bytes {left}"]
        changes = [" ".join(less + _shorter(needs, length, left))] if left > 0 else []
    else:
        cause = (
            f"--kv-cache-memory-bytes is {_gib(kv_bytes)}, and the KV cache of one sequence of {length} tokens "
            f"needs {_gib(wanted)}."
        )
        changes = _shorter(needs, length, kv_bytes)
        changes += [f"--kv-cache-memory-bytes {wanted}"] if wanted <= left else []
    if any(group.spec.dtype == "float32" for group in needs.groups):
        changes.append("--dtype bfloat16 (halves weights and KV)")
    used = 1 - HEADROOM_SHARE * (1 if kv_bytes is None else share)
    size = (fixed + max(wanted, kv_bytes or 0)) / used / (share if kv_bytes is None else 1)
    machine = f"a machine with {_gib(size * 1.01)} available"
    if kv_bytes is not None and kv_bytes < wanted:
        machine += f" and --kv-cache-memory-bytes {wanted}"
    changes += [machine, "a smaller model"]
    return MemoryPlanError(cause, code="E-MEM-03", fix="Any of: " + "; ".join(changes[:3]) + ".")


def _shorter(needs: Needs, length: int, room: int) -> list[str]:
    """The context length that `room` bytes of KV allow, as a flag; [] where it would change nothing."""
    longest = _longest(needs, room)
    if longest >= length or room < _kv_for(needs.groups, BLOCK_SIZE, needs.chunk):
        return []
    return [f"--max-model-len {longest}"]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB or not size else f"{size * 1024 / GIB:.1f} MiB"
