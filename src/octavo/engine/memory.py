"""The memory plan: what is spent on what, before anything is loaded.

weights + activations + graphs + headroom + KV = the budget. On the CPU that is a share of what is available; on a GPU a
share of the whole card, and no more than is free, since others may hold some of it. What does not fit is an error that
names the three smallest changes that would.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from octavo.core.errors import MemoryPlanError
from octavo.core.kvspec import BLOCK_SIZE, KVGroup

GIB = 1 << 30
HEADROOM_SHARE = 0.05
"""Of the budget: the allocator's slack, the tokenizer, Python, and what the estimates miss."""
FREE_SHARE = 0.98
"""Of what is free on a GPU: most that the budget may be, since others that hold memory there may take a little more."""


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
    graphs: int = 0
    """What captured steps may take."""


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
    graphs: int = 0

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Parts that sum to `available`."""
        rest = self.available - self.budget
        return (
            ("weights", self.weights),
            ("kv cache", self.kv),
            ("activations", self.activations),
            *((("graphs", self.graphs),) if self.graphs else ()),
            ("headroom", self.headroom),
            ("not needed", self.unused),
            ("left to others", rest),
        )


def plan(
    needs: Needs, *, available: int, share: float, kv_bytes: int | None, total: int | None = None
) -> MemoryPlan:
    """Divide the memory. `share` is of `total`, a GPU's memory with what others hold of it; None: of what is available.

    Raises:
        MemoryPlanError: weights, activations and the KV cache of one sequence do not fit.
    """
    budget = _budget(available, share, total)
    headroom = int(budget * HEADROOM_SHARE)
    fixed = needs.weights + needs.activations + needs.graphs
    room = budget - fixed - headroom if kv_bytes is None else kv_bytes
    least = _kv_for(
        needs.groups, needs.max_model_len if needs.is_len_explicit else BLOCK_SIZE, needs.chunk
    )
    spent = fixed + headroom + (kv_bytes or 0)
    if room < least or (kv_bytes is not None and spent > available):
        raise _does_not_fit(needs, _Budget(available, share, budget, total), kv_bytes, room)
    most = sum(
        group.bytes_per_block
        * (needs.max_num_seqs * _blocks_per_sequence(group, needs.max_model_len, needs.chunk) + 1)
        for group in needs.groups
    )
    groups = _share_out(needs, room if kv_bytes is not None else min(room, most))
    kv = sum(group.bytes_per_block * group.num_blocks for group in groups)
    return MemoryPlan(
        available=available,
        budget=max(budget, spent),
        weights=needs.weights,
        activations=needs.activations,
        headroom=headroom,
        kv=kv,
        unused=max(budget, spent) - fixed - headroom - kv,
        groups=groups,
        kv_tokens=_context_that_fits(groups, needs.chunk),
        graphs=needs.graphs,
    )


class _Budget(NamedTuple):
    """What may be used, of what."""

    available: int
    share: float
    num_bytes: int
    total: int | None

    @property
    def text(self) -> str:
        if self.total is None:
            of = f"{self.share:.0%} of the {_gib(self.available)} available"
        else:
            of = f"{self.share:.0%} of the GPU's {_gib(self.total)}, of which {_gib(self.available)} are free"
        return f"{_gib(self.num_bytes)} ({of}, 5 % headroom included)"


def _budget(available: int, share: float, total: int | None) -> int:
    if total is None:
        return int(available * share)
    return int(min(total * share, available * FREE_SHARE))


def with_measured(
    planned: MemoryPlan, activations: int, *, max_model_len: int, chunk: int
) -> MemoryPlan:
    """The plan after activations were measured: what they take beyond the estimate comes off the KV cache.

    Raises:
        MemoryPlanError: what is left does not hold one sequence.
    """
    excess = max(0, activations - planned.activations)
    from_kv = max(0, excess - planned.unused)
    groups = planned.groups
    if from_kv:
        share = max(0.0, 1 - from_kv / max(1, planned.kv))
        groups = tuple(
            KVGroup(spec=g.spec, layers=g.layers, num_blocks=1 + int((g.num_blocks - 1) * share))
            for g in groups
        )
    fits = _context_that_fits(groups, chunk)
    if fits < max_model_len:
        raise MemoryPlanError(
            f"a step of {chunk} tokens takes {_gib(activations)} of activations, measured, and not the "
            f"{_gib(planned.activations)} that were planned; what is left for the KV cache holds {fits} tokens of the "
            f"{max_model_len} of one sequence.",
            code="E-MEM-04",
            fix=f"Any of: --max-num-batched-tokens {max(BLOCK_SIZE, chunk // 2)}; --max-model-len {max(BLOCK_SIZE, fits)}; a higher "
            "--gpu-memory-utilization.",
        )
    kv = sum(group.bytes_per_block * group.num_blocks for group in groups)
    return planned._replace(
        activations=planned.activations + excess,
        kv=kv,
        unused=planned.unused + planned.kv - kv - excess,
        groups=groups,
        kv_tokens=fits,
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
    needs: Needs, budget: _Budget, kv_bytes: int | None, room: int
) -> MemoryPlanError:
    available, share = budget.available, budget.share
    length = needs.max_model_len if needs.is_len_explicit else min(needs.max_model_len, 2048)
    fixed = needs.weights + needs.activations + needs.graphs
    wanted = _kv_for(needs.groups, length, needs.chunk)
    spent = f"weights {_gib(needs.weights)} + activations {_gib(needs.activations)}"
    spent += f" + graphs {_gib(needs.graphs)}" if needs.graphs else ""
    left = available - fixed - int(budget.num_bytes * HEADROOM_SHARE)
    if kv_bytes is None:
        cause = (
            f"{spent} + KV for one sequence of {length} tokens {_gib(wanted)} exceed {budget.text}."
        )
        changes = _shorter(needs, length, room)
        need = (fixed + wanted) / (1 - HEADROOM_SHARE)
        need_share = need / (budget.total or available)
        if share < need_share <= 0.98 and need <= available * FREE_SHARE:
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
    if kv_bytes is None or kv_bytes <= left:
        changes += _narrower(needs, length, room)
    used = 1 - HEADROOM_SHARE * (1 if kv_bytes is None else share)
    size = (fixed + max(wanted, kv_bytes or 0)) / used / (share if kv_bytes is None else 1)
    machine = f"a machine with {_gib(size * 1.01)} available"
    if kv_bytes is not None and kv_bytes < wanted:
        machine += f" and --kv-cache-memory-bytes {wanted}"
    changes += [machine, "a smaller model", "what `octavo plan` finds with weights quantized"]
    return MemoryPlanError(cause, code="E-MEM-03", fix="Any of: " + "; ".join(changes[:3]) + ".")


def _shorter(needs: Needs, length: int, room: int) -> list[str]:
    """The context length that `room` bytes of KV allow, as a flag; [] where it would change nothing."""
    longest = _longest(needs, room)
    if longest >= length or room < _kv_for(needs.groups, BLOCK_SIZE, needs.chunk):
        return []
    return [f"--max-model-len {longest}"]


def _narrower(needs: Needs, length: int, room: int) -> list[str]:
    """Keys and values of half the bytes, as a flag; [] where they are narrow, or that would not do."""
    if any(group.spec.dtype != "float32" for group in needs.groups):
        return []
    halved = tuple(
        replace(group, spec=replace(group.spec, dtype="bfloat16")) for group in needs.groups
    )
    if not halved or room < _kv_for(halved, length, needs.chunk):
        return []
    return ["--kv-cache-dtype bfloat16 (halves the KV cache)"]


def _gib(size: float) -> str:
    if size >= GIB or not size:
        return f"{size / GIB:.2f} GiB"
    if size >= GIB / 1024:
        return f"{size * 1024 / GIB:.1f} MiB"
    return f"{size / 1024:.1f} KiB" if size >= 1024 else f"{size:.0f} bytes"
