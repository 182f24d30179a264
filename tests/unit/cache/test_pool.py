from __future__ import annotations

import torch

from octavo.cache.pool import KVPool
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.plan import BlockCopy

FULL = KVSpec(num_kv_heads=2, head_dim=4, dtype="bfloat16")
WINDOW = KVSpec(kind="window", num_kv_heads=2, head_dim=4, dtype="int8", window=8)
GROUPS = (
    KVGroup(spec=FULL, layers=(1,), num_blocks=3),
    KVGroup(spec=WINDOW, layers=(0, 2), num_blocks=5),
)


def make() -> KVPool:
    return KVPool(GROUPS, 3, torch.device("cpu"))


def test_shapes_and_zeros() -> None:
    pool = make()
    for layer, num_blocks in enumerate((5, 3, 5)):
        cache = pool.layer(layer)
        for tensor in (cache.k, cache.v):
            assert tensor.shape == (num_blocks, BLOCK_SIZE, 2, 4)
            assert tensor.dtype == (torch.bfloat16 if layer == 1 else torch.int8)
        assert len(cache.tensors()) == (2 if layer == 1 else 4)
        for tensor in cache.tensors()[2:]:
            assert tensor.shape == (num_blocks, BLOCK_SIZE, 2) and tensor.dtype == torch.float32
        assert not any(tensor.any() for tensor in cache.tensors())


def test_num_bytes_follows_the_specs() -> None:
    assert FULL.bytes_per_token == 2 * 2 * 4 * 2
    assert WINDOW.bytes_per_token == 2 * 2 * (4 + 4)
    assert make().num_bytes == sum(group.bytes_per_block * group.num_blocks for group in GROUPS)


def test_copy_touches_one_block_of_one_group() -> None:
    pool = make()
    for layer in range(3):
        for tensor in pool.layer(layer).tensors():
            tensor.copy_(torch.randint(-9, 9, tensor.shape))
    before = [[tensor.clone() for tensor in pool.layer(layer).tensors()] for layer in range(3)]
    pool.copy(BlockCopy(group=1, source=4, target=2))
    for layer in range(3):
        for tensor, old in zip(pool.layer(layer).tensors(), before[layer], strict=True):
            expected = old.clone()
            if layer in (0, 2):
                expected[2] = old[4]
            assert torch.equal(tensor, expected)
