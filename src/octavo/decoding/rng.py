"""Counter-based random numbers: no state, so a token's number depends on (seed, index, position)
alone.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
2011 (https://doi.org/10.1145/2063384.2063405); constants and known answers from Random123
(https://github.com/DEShawResearch/random123, `include/Random123/philox.h`, `tests/kat_vectors`).

Runs on the host in numpy: one number per sampled token, made from numbers that the host already
has. It knows nothing of logits. Shape letter: N numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10


def philox4x32(
    counter: tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array],
    key: tuple[UInt64Array, UInt64Array],
) -> tuple[UInt64Array, UInt64Array, UInt64Array, UInt64Array]:
    """Ten rounds of Philox4x32 on four counter words and two key words.

    Every array is uint64 [N] and holds 32-bit words, so that a product of two of them does not
    overflow.
    """
    word0, word1, word2, word3 = counter
    key0, key1 = key
    for _ in range(_ROUNDS):
        product0 = word0 * _MULTIPLIERS[0]
        product1 = word2 * _MULTIPLIERS[1]
        word0, word1, word2, word3 = (
            (product1 >> _HALF) ^ word1 ^ key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ word3 ^ key1,
            product0 & _LOW,
        )
        key0 = (key0 + _WEYL[0]) & _LOW
        key1 = (key1 + _WEYL[1]) & _LOW
    return word0, word1, word2, word3


def uniform(seeds: Int64Array, indexes: Int64Array, positions: Int64Array) -> Float64Array:
    """One number in the open interval (0, 1) per (seed, index, position); all arrays [N].

    52 random bits and a half: the most for which neither end rounds to 0 or 1 in float64.
    """
    seed_low, seed_high = _words(seeds)
    index_low, index_high = _words(indexes)
    position_low, position_high = _words(positions)
    word0, word1, _, _ = philox4x32(
        (position_low, position_high, index_low, index_high), (seed_low, seed_high)
    )
    bits_N = (word0 << np.uint64(20)) | (word1 >> np.uint64(12))
    return (bits_N.astype(np.float64) + 0.5) * 2.0**-52


def _words(values: Int64Array) -> tuple[UInt64Array, UInt64Array]:
    """Low and high 32 bits of int64 [N] in two's complement."""
    bits = np.ascontiguousarray(values, dtype=np.int64).view(np.uint64)
    return bits & _LOW, bits >> _HALF
