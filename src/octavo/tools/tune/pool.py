"""How large a KV cache has to be for what was found. Pure over what simulates.

More of it is never worse, so it is no flag to search by rate: asked is the least with which the SLO still holds at the
highest rate, and, where the cache itself sets that rate, what twice as much would bring.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from octavo.core.kvspec import BLOCK_SIZE, KVGroup
from octavo.tools.tune.search import MOST
from octavo.tools.tune.simulate import Machine

_CLOSE = 1.1
_MORE = 1.1
"""Times the rate that twice the cache must allow to be told: less may be chance."""
_MIB = 1 << 20
_WORTH = 0.8
"""Of the cache; needing more than that, there is nothing to save."""

Meets = Callable[[float, float], bool]
"""Whether the SLO holds at so many times the traffic's rate with so many times the KV cache."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache of the flags that were found."""

    num_bytes: int
    """As the server has it."""
    least_bytes: int
    """With which the SLO holds at the same rate, simulated; whole MiB."""
    capacity: float
    """Times the traffic's rate at which that is."""
    doubled: float | None
    """The same with twice the cache; None: no more."""

    @property
    def is_spare(self) -> bool:
        """Whether a good part is not needed."""
        return self.least_bytes <= _WORTH * self.num_bytes


def pool_of(machine: Machine, capacity: float, meets: Meets) -> Pool:
    """Search both ways, from a rate at which the SLO holds with the whole cache."""
    low, high = _least_share(machine), 1.0
    if low < high and meets(capacity, low):
        high = low
    while high / low > _CLOSE:
        middle = (low * high) ** 0.5
        if meets(capacity, middle):
            high = middle
        else:
            low = middle
    whole = bytes_of(machine.groups)
    doubled = None
    if capacity * _MORE <= MOST and meets(capacity * _MORE, 2.0):
        doubled = capacity * _MORE
        while doubled * _MORE <= MOST and meets(doubled * _MORE, 2.0):
            doubled *= _MORE
    least = -(-bytes_of(shared_out(machine, high).groups) // _MIB) * _MIB
    return Pool(num_bytes=whole, least_bytes=min(whole, least), capacity=capacity, doubled=doubled)


def shared_out(machine: Machine, share: float) -> Machine:
    """The machine with so many times the blocks; never fewer than one longest sequence needs."""
    return machine._replace(groups=tuple([_group(machine, g, share) for g in machine.groups]))


def bytes_of(groups: tuple[KVGroup, ...]) -> int:
    """Of all blocks."""
    return sum(group.num_blocks * group.bytes_per_block for group in groups)


def _group(machine: Machine, group: KVGroup, share: float) -> KVGroup:
    least = min(group.num_blocks, _blocks(machine))
    return msgspec.structs.replace(group, num_blocks=max(least, round(group.num_blocks * share)))


def _blocks(machine: Machine) -> int:
    """Of one longest sequence, and the null block."""
    return -(-machine.limits.max_model_len // BLOCK_SIZE) + 1


def _least_share(machine: Machine) -> float:
    least = _blocks(machine)
    return min(1.0, *[least / group.num_blocks for group in machine.groups])
