"""How much of a chain of block names is cached, without looking at every one of them. No torch.

A long prompt has thousands of blocks and is asked about in every step that it waits. Where everything is seen, blocks are
given up from the end of a chain, so that its beginning is there as far as anything is: halving finds the end. Windows need
only the last blocks, and one that is missing rules out every prefix that would see it: the search goes down by whole windows.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from octavo.cache.blocks import BlockPool
from octavo.core.kvspec import BLOCK_SIZE, KVGroup


def first_visible(group: KVGroup, position: int) -> int:
    """Index of the first block that a query at `position` sees."""
    if group.spec.kind != "window" or group.spec.window is None:
        return 0
    return max(0, position - group.spec.window + 1) // BLOCK_SIZE


def leading(pool: BlockPool, hashes: list[bytes], most: int) -> int:
    """How many of the first `most` blocks the pool has, without a gap; more where there is one and blocks behind it."""
    return bisect.bisect_left(
        range(most), True, key=lambda index: pool.lookup(hashes[index]) is None
    )


def longest(groups: Iterable[tuple[KVGroup, BlockPool]], hashes: list[bytes], most: int) -> int:
    """Blocks of the longest prefix, `most` at most, of which every group has what the query behind it sees.

    Groups that see everything are taken to have the first `most`.
    """
    windows = [each for each in groups if each[0].spec.kind == "window"]
    length = -1
    while length != most:
        length = most
        for group, pool in windows:
            most = _windowed(group, pool, hashes, most)
    return length


def _windowed(group: KVGroup, pool: BlockPool, hashes: list[bytes], most: int) -> int:
    """`longest` of one group."""
    length = known_from = most  # it has the blocks from `known_from` to `length`
    while length:
        index = first = first_visible(group, length * BLOCK_SIZE)
        while index < known_from and pool.lookup(hashes[index]) is not None:
            index += 1
        if index >= known_from:
            return length
        # Whatever ends behind a block that is missing here sees it, too.
        length, known_from = index, first
    return 0
