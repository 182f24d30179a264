"""What kernels over rows of logits share: reading under a mask, weights, random numbers, and the k-th largest without a
sort.

All of it does what `decoding/draw.py` and `decoding/rng.py` do, operation for operation, so that tokens are equal to
theirs. Kernels that weigh are compiled without fused multiply-adds, which round once where two are meant.

Shape letters: V vocabulary, X blocks of BLOCK logits, B logits of one block, C candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(64)
"""Logits that are looked at together: most of them can be passed over once the largest of each block is known."""
NO_TOKEN = tl.constexpr(-1)
PENDING = tl.constexpr(-2)
"""Stands for a token that a later kernel chooses."""
_NOTHING = tl.constexpr(-28.0)
_SHIFT = tl.constexpr(12582912.0)
_MINUS = tl.constexpr(-float("inf"))
_PLUS = tl.constexpr(float("inf"))
_LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def read(logits, words, mask, v, vocab, num_words, HAS_MASKS: tl.constexpr):
    """Logits at `v`: -inf beyond the vocabulary and where the bit of row `mask` of `words` is 0; +inf for NaN.

    `mask` below 0 allows all.
    """
    x = tl.load(logits + v, mask=v < vocab, other=_MINUS)
    if HAS_MASKS:
        row = tl.maximum(mask, 0) * num_words
        bits = tl.load(words + row + (v >> 5), mask=v < vocab, other=0)
        is_allowed = ((bits >> (v & 31)) & 1) != 0
        x = tl.where(is_allowed | (mask < 0), x, _MINUS)
    return tl.where(tl.abs(x) <= _PLUS, x, _PLUS)


@triton.jit
def weigh(x, largest, temperature, log_min_p):
    """int64: probabilities after temperature and min_p; the largest is 2**40. As `draw._weights`."""
    scaled = tl.div_rn(x - largest, temperature + tl.zeros_like(x))
    is_below = (scaled < log_min_p) | (scaled < _NOTHING)
    scaled = tl.maximum(scaled, _NOTHING)
    n = (scaled * 1.44269504088896341 + _SHIFT) - _SHIFT
    r = scaled - n * 0.693359375
    r = r + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * (r * r) + r
    p = p + 1.0
    power = ((n.to(tl.int32) + 167) << 23).to(tl.float32, bitcast=True)
    return tl.where(is_below, 0, (p * power).to(tl.int64))


@triton.jit
def key_of(x):
    """int64 from 0 to 2**32 - 1, in the order of float32; both zeros are one."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def largest_key_with(keys, weights, goal):
    """The largest key such that the weights of the keys not below it reach `goal`; 0 where all of them do not.

    With weights of 1 that is the `goal`-th largest key. Bit by bit, so that nothing is sorted.
    """
    found = tl.zeros_like(goal)
    for bit in range(32):
        tried = found + (tl.full([], 2147483648, tl.int64) >> bit)
        reached = tl.sum(tl.where(keys >= tried, weights, 0), 0)
        found = tl.where(reached >= goal, tried, found)
    return found


@triton.jit
def goal_of(mass, top_p):
    """The weight that the most likely tokens have to reach together."""
    wanted = tl.ceil(mass.to(tl.float64) * top_p).to(tl.int64)
    return tl.minimum(tl.maximum(wanted, 1), mass)


@triton.jit
def target_of(total, number):
    """int64 in [0, total): the token is the first whose cumulative weight exceeds it."""
    return tl.minimum((total.to(tl.float64) * number).to(tl.int64), total - 1)


@triton.jit
def uniform(seed, index, position):
    """float64 in (0, 1) of three int64: Philox4x32-10, as `rng.uniform`."""
    word0 = position.to(tl.uint64) & _LOW
    word1 = position.to(tl.uint64) >> 32
    word2 = index.to(tl.uint64) & _LOW
    word3 = index.to(tl.uint64) >> 32
    key0 = seed.to(tl.uint64) & _LOW
    key1 = seed.to(tl.uint64) >> 32
    for _ in tl.static_range(10):
        product0 = word0 * 0xD2511F53
        product1 = word2 * 0xCD9E8D57
        word0 = (product1 >> 32) ^ word1 ^ key0
        word1 = product1 & _LOW
        word2 = (product0 >> 32) ^ word3 ^ key1
        word3 = product0 & _LOW
        key0 = (key0 + 0x9E3779B9) & _LOW
        key1 = (key1 + 0xBB67AE85) & _LOW
    bits = ((word0 << 20) | (word1 >> 12)).to(tl.int64)
    return (bits.to(tl.float64) + 0.5) * 2.220446049250313e-16


@triton.jit
def list_blocks(blocks, is_wanted_X, X: tl.constexpr, MOST: tl.constexpr):
    """Write the numbers of the wanted blocks to `blocks`, ascending, at most MOST; how many are wanted."""
    is_wanted_X = is_wanted_X.to(tl.int32)
    place_X = tl.cumsum(is_wanted_X, 0) - 1
    is_kept_X = (is_wanted_X != 0) & (place_X < MOST)
    tl.store(blocks + place_X, tl.arange(0, X), mask=is_kept_X)
    return tl.sum(is_wanted_X, 0)
