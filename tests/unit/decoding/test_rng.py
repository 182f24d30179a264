"""The random numbers: known answers, range, and what they depend on."""

import numpy as np
import pytest

from octavo.decoding.rng import philox4x32, uniform

# Random123, tests/kat_vectors, rows "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _words(text: str) -> list[np.ndarray]:
    return [np.array([int(word, 16)], np.uint64) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = _words(counter)
    k0, k1 = _words(key)
    assert list(philox4x32((c0, c1, c2, c3), (k0, k1))) == _words(expected)


def test_uniform_is_pinned() -> None:
    """These numbers decide users' seeded outputs: they may never change."""
    zero = np.zeros(1, np.int64)
    word0, word1 = 0x6627E8D5, 0xE169C58D
    expected = ((word0 << 20 | word1 >> 12) + 0.5) / 2**52
    assert uniform(zero, zero, zero)[0] == expected


def test_uniform_depends_on_each_key_alone() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, (3, 512), dtype=np.int64)
    together = uniform(*keys)
    alone = [uniform(*keys[:, i : i + 1])[0] for i in range(512)]
    assert together.tolist() == alone
    assert len(set(together)) == 512
    for changed in range(3):
        other = keys.copy()
        other[changed] ^= 1 << 40
        assert not np.any(uniform(*other) == together)


def test_uniform_is_uniform_and_open() -> None:
    positions = np.arange(100_000, dtype=np.int64)
    numbers = uniform(np.full_like(positions, 7), np.zeros_like(positions), positions)
    assert 0.0 < numbers.min() < numbers.max() < 1.0
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert 60 < chi_square < 150  # 99 degrees of freedom: 0.1 % and 99.9 % are 61 and 149
