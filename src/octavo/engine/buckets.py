"""Sizes of steps that are captured: padded up to the next of them. No torch.

Steps of one token per sequence: few sizes at the small end, where a padded row costs most of a step; then steps of eight,
which waste at most an eighth of sixty-four rows; then steps of sixteen up to 512 and of sixty-four beyond. Other steps, by
their tokens: fewer sizes, because each of them is a graph per layer.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache

LAYER_BYTES = 256 << 10
"""Of one captured layer: a dozen kernels and their parameters. An estimate from a driver's few KiB per node and its
allocations of 2 MiB; what captures really take is measured as they are made, and none is made beyond the plan."""
MOST_PIECE_TOKENS = 512
"""Of steps whose layers are captured one by one."""
_HOST_S_PER_LAYER = 1e-4
"""What the host needs to launch a layer's dozen kernels one by one."""
_FLOP_PER_S, _BYTES_PER_S = 6e14, 3e12
"""Of the fastest device that is served, an H100. On a slower one the device is busy for longer, and captured layers are only
of less use."""


@lru_cache(maxsize=8)
def sizes(max_num_seqs: int) -> tuple[int, ...]:
    """Ascending; the last is `max_num_seqs` itself."""
    small = (1, 2, 4, *range(8, 65, 8), *range(80, 513, 16), *range(576, 4097, 64))
    return (*(size for size in small if size < max_num_seqs), max_num_seqs)


@lru_cache(maxsize=8)
def token_sizes(most: int) -> tuple[int, ...]:
    """Ascending, up to `most` tokens, that one included; () for none. Beyond 64 a step wastes at most a third of its rows."""
    small = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)
    return (*(size for size in small if size < most), most) if most > 0 else ()


def piece_tokens(num_layers: int, weight_bytes: int, most: int) -> int:
    """Tokens up to which the host launches a mixed step more slowly than the fastest device computes it, at most `most`; 0
    where it never does. `weight_bytes` are in 16 bits.
    """
    host_s = num_layers * _HOST_S_PER_LAYER
    if weight_bytes / _BYTES_PER_S >= host_s:
        return 0
    return min(most, MOST_PIECE_TOKENS, int(host_s * _FLOP_PER_S / max(1, weight_bytes)))


def bucket_of(count: int, known: tuple[int, ...]) -> int:
    """The smallest of `known` that holds `count`; the caller's counts are within them."""
    return known[bisect_left(known, count)]
