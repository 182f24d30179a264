"""Block pool, hash chain and tables of several groups."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from octavo.cache.blocks import BlockPool
from octavo.cache.groups import KVCache
from octavo.cache.prefix import extend_chain, root_digest
from octavo.core.kvspec import KVGroup, KVSpec, group_layers
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.sequence import Sequence

FULL = KVSpec(num_kv_heads=1, head_dim=8)
WINDOW = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=20)
WIDE = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=70)


def sequence(token_ids: list[int], scope: str = "") -> Sequence:
    request = Request(
        id="x",
        token_ids=tuple(token_ids),
        params=SamplingParams(),
        max_tokens=16,
        seed=0,
        arrived=0.0,
        cache_scope=scope,
    )
    return Sequence(request=request, token_ids=list(token_ids))


def cache(*specs: KVSpec, num_blocks: int = 40, enable: bool = True) -> KVCache:
    groups = tuple(KVGroup(spec=s, layers=(i,), num_blocks=num_blocks) for i, s in enumerate(specs))
    return KVCache(groups, enable_prefix_caching=enable)


def compute(kv: KVCache, seq: Sequence) -> None:
    """Admit, extend and advance to the end, as the scheduler would."""
    kv.admit(seq, kv.match(seq))
    kv.extend(seq, seq.num_tokens)
    seq.num_computed = seq.num_tokens
    kv.advance(seq)


def test_allocation_prefers_blank_blocks_then_the_least_recently_used() -> None:
    pool = BlockPool(5)
    first = pool.allocate(3)
    for i, block in enumerate(first):
        pool.publish(block, bytes([i]) * 16)
    pool.release(first)
    assert pool.num_free == 4
    [blank] = pool.allocate(1)
    assert blank not in first
    assert pool.allocate(2) == first[:2], "released first, evicted first"
    assert pool.lookup(bytes([0]) * 16) is None and pool.lookup(bytes([2]) * 16) == first[2]
    assert pool.check(Counter([blank, *first[:2]])) == []


def test_check_finds_leaks_and_double_frees() -> None:
    pool = BlockPool(4)
    [block] = pool.allocate(1)
    assert pool.check({}) != []
    pool.release([block])
    assert pool.check({block: 1}) != []
    with pytest.raises(AssertionError, match="released more often"):
        pool.release([block])


def test_chain_depends_on_everything_that_keys_and_values_depend_on() -> None:
    roots = {
        root_digest(*fields)
        for fields in [
            ("", "m", None),
            ("t", "m", None),
            ("", "m2", None),
            ("", "m", "a"),
            ("m", "", None),
        ]
    }
    assert len(roots) == 5
    one: list[bytes] = []
    two: list[bytes] = []
    extend_chain(one, b"r" * 16, list(range(64)), 64)
    extend_chain(two, b"r" * 16, [7, *range(1, 64)], 64)
    assert len(one) == 4 and all(len(digest) == 16 for digest in one)
    assert not set(one) & set(two), "a change in the first block changes every digest after it"


def test_a_second_prompt_shares_full_blocks_without_copying() -> None:
    kv = cache(FULL)
    first, second = (
        sequence(list(range(50))),
        sequence([*range(40), 99, 98, 97, 96, 95, 94, 93, 92, 91]),
    )
    compute(kv, first)
    match = kv.match(second)
    assert match.num_tokens == 32 and list(match.tables[0]) == first.blocks[0][:2]
    compute(kv, second)
    assert kv.pools[0].references(first.blocks[0][0]) == 2
    kv.release(first)
    kv.release(second)
    assert kv.num_free == kv.num_blocks


def test_at_least_one_token_is_always_computed() -> None:
    kv = cache(FULL)
    first = sequence(list(range(32)))
    compute(kv, first)
    assert kv.match(sequence(list(range(32)))).num_tokens == 16
    assert kv.match(sequence(list(range(33)))).num_tokens == 32


def test_scopes_and_the_switch_keep_prefixes_apart() -> None:
    kv = cache(FULL)
    compute(kv, sequence(list(range(40)), scope="a"))
    assert kv.match(sequence(list(range(40)), scope="b")).num_tokens == 0
    off = cache(FULL, enable=False)
    compute(off, sequence(list(range(40))))
    assert off.match(sequence(list(range(40)))).num_tokens == 0


def test_window_layers_free_what_they_no_longer_see() -> None:
    kv = cache(FULL, WINDOW)
    seq = sequence(list(range(100)))
    compute(kv, seq)
    # The next query, at 100, sees positions 81 and later: blocks 5 and 6.
    assert seq.blocks[1][:5] == [0] * 5 and 0 not in seq.blocks[1][5:]
    assert 0 not in seq.blocks[0]


def test_a_hit_needs_only_the_window_of_window_layers() -> None:
    kv = cache(FULL, WINDOW)
    first = sequence(list(range(100)))
    compute(kv, first)
    kv.release(first)
    assert kv.forget_prefixes() > 0
    first = sequence(list(range(100)))
    compute(kv, first)
    again = sequence([*range(96), 500, 501])
    match = kv.match(again)
    assert match.num_tokens == 96
    assert (
        match.tables[1][:4] == (0, 0, 0, 0) and match.tables[1][4] == 0 or match.tables[1][4] != 0
    )


def test_groups_are_by_spec_with_full_attention_first() -> None:
    groups = group_layers((WINDOW, FULL, WINDOW, FULL))
    assert [group.layers for group in groups] == [(1, 3), (0, 2)]


def test_a_prompt_is_hashed_as_far_as_it_is_cached_and_little_further() -> None:
    kv = cache(FULL)
    compute(kv, sequence(list(range(64))))
    long = sequence([*range(32), *range(1000, 1400)])
    assert kv.match(long).num_tokens == 32
    assert len(long.hashes) == 8
    windows = cache(WINDOW)
    assert windows.match(sequence(list(range(100)))).num_tokens == 0


def test_sequences_are_alike_as_far_as_their_tokens_are() -> None:
    kv = cache(FULL)
    one, other = sequence(list(range(100))), sequence([*range(50), *range(500, 550)])
    kv.hash_up_to(one, 100)
    assert [kv.is_alike(one, other, index) for index in range(5)] == [True] * 3 + [False] * 2
    assert len(other.hashes) == 4, "no further than the first difference"
    assert not kv.is_alike(one, sequence(list(range(20))), 1)
    assert not kv.is_alike(one, sequence(list(range(100)), scope="b"), 0)


class Known(BlockPool):
    """Has the blocks whose names it was told."""

    def __init__(self, names: dict[bytes, int]) -> None:
        super().__init__(2)
        self._block_of = names


@pytest.mark.parametrize("specs", [(WINDOW,), (FULL, WINDOW), (WIDE, WINDOW), (WIDE,)])
def test_the_longest_prefix_is_the_one_that_trying_all_finds(specs: tuple[KVSpec, ...]) -> None:
    rng = random.Random(str(specs))
    found_some = 0
    for _ in range(300):
        kv = cache(*specs)
        seq = sequence(list(range(rng.randint(1, 330))))
        most = (seq.num_tokens - 1) // 16
        kv.hash_up_to(seq, seq.num_tokens)
        rows = [[rng.choice([0, 1, 1, 1, 1]) for _ in range(most)] for _ in specs]
        kv.pools = tuple(
            Known({seq.hashes[i]: 1 for i, is_there in enumerate(row) if is_there}) for row in rows
        )

        def sees(length: int, rows: list[list[int]] = rows) -> bool:
            firsts = [max(0, length * 16 - (s.window or 999) + 1) // 16 for s in specs]
            return all(0 not in row[a:length] for a, row in zip(firsts, rows, strict=True))

        expected = max(length for length in range(most + 1) if not length or sees(length))
        match = kv.match(seq)
        assert match.num_tokens == 16 * expected <= kv.reach(seq)
        assert all(len(table) == expected for table in match.tables)
        if FULL not in specs:
            assert kv.reach(seq) == match.num_tokens
        found_some += expected > 1
    assert found_some > 50


@pytest.mark.parametrize("enable", [True, False])
def test_blocks_that_many_fill_at_once_get_the_names_that_one_by_one_gives(enable: bool) -> None:
    """First blocks, one more, two more and none, of sequences that are alike and that are not."""
    kvs = [cache(FULL, WINDOW, enable=enable) for _ in range(2)]
    told = []
    for kv, is_each in zip(kvs, (False, True), strict=True):
        everyone = [sequence(list(range(at, at + 64))) for at in (0, 0, 500)]
        for each in everyone:
            kv.admit(each, kv.match(each))
            kv.extend(each, each.num_tokens)
        for computed in ((16, 15, 33), (32, 31, 48), (47, 64, 64)):
            for each, count in zip(everyone, computed, strict=True):
                each.num_computed = count
                if not is_each:
                    kv.publish(each)
            if is_each:
                kv.publish_each(everyone)
        found = [kv.match(sequence(list(range(at, at + 65)))) for at in (0, 500)]
        told.append((kv.num_named, [(s.hashes, s.num_published) for s in everyone], found))
    assert told[0] == told[1]
    assert [match.num_tokens for match in told[1][2]] == ([64, 64] if enable else [0, 0])
