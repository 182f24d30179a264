from __future__ import annotations

import torch

from octavo.cache.pool import KVPool
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.plan import BlockCopy

FULL = KVSpec(num_kv_heads=2, head_dim=4)
WINDOW = KVSpec(kind="window", num_kv_heads=2, head_dim=4, window=8)
GROUPS = (
    KVGroup(spec=FULL, layers=(1,), num_blocks=3),
    KVGroup(spec=WINDOW, layers=(0, 2), num_blocks=5),
)


def make() -> KVPool:
    return KVPool(GROUPS, 3, torch.device("cpu"), torch.bfloat16)


def test_shapes_and_zeros() -> None:
    pool = make()
    for layer, num_blocks in enumerate((5, 3, 5)):
        for tensor in pool.layer(layer):
            assert tensor.shape == (num_blocks, BLOCK_SIZE, 2, 4)
            assert tensor.dtype == torch.bfloat16
            assert not tensor.any()


def test_num_bytes_follows_the_specs() -> None:
    per_token = 2 * 2 * 4 * 2
    assert make().num_bytes == (3 * 1 + 5 * 2) * BLOCK_SIZE * per_token


def test_copy_touches_one_block_of_one_group() -> None:
    pool = make()
    for layer in range(3):
        for tensor in pool.layer(layer):
            tensor.normal_()
    before = [[tensor.clone() for tensor in pool.layer(layer)] for layer in range(3)]
    pool.copy(BlockCopy(group=1, source=4, target=2))
    for layer in range(3):
        for tensor, old in zip(pool.layer(layer), before[layer], strict=True):
            expected = old.clone()
            if layer in (0, 2):
                expected[2] = old[4]
            assert torch.equal(tensor, expected)
