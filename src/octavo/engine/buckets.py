"""Sizes of steps that are captured: how many sequences, padded up to the next of them. No torch.

Few sizes at the small end, where a padded row costs most of a step; then steps of eight, which waste at most an eighth
of sixty-four rows; then steps of sixteen up to 512 and of sixty-four beyond.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

LAYER_BYTES = 256 << 10
"""Of one captured layer: a dozen kernels and their parameters. An estimate from a driver's few KiB per node and its
allocations of 2 MiB; what captures really take is measured as they are made, and none is made beyond the plan."""


@lru_cache(maxsize=8)
def sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Ascending; the last is `max_num_seqs` itself."""
    small = (1, 2, 4, *range(8, 65, 8), *range(80, 513, 16), *range(576, 4097, 64))
    return (*(size for size in small if size < max_num_seqs), max_num_seqs)


def bucket_of(count: int, known: tuple[int, ...]) -> int:
    """The smallest of `known` that holds `count`; the caller's counts are within them."""
    return known[bisect_left(known, count)]
