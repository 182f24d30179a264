"""Tables beside the epochs of their blocks: what differs is found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.cache.blocks import BlockPool
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.engine.epochs import BlockEpochs, ForeignBlocks

WINDOW = 2 * BLOCK_SIZE


class Tables:
    """Rows of two groups, full and window, as `Rows` keeps them."""

    def __init__(self) -> None:
        full = KVSpec(num_kv_heads=1, head_dim=8)
        window = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=WINDOW)
        groups = tuple(
            KVGroup(spec=spec, layers=(i,), num_blocks=50) for i, spec in enumerate((full, window))
        )
        self.epochs = BlockEpochs(groups, 4, 10)
        self.tables_GRB = np.zeros((2, 4, 10), np.int32)
        self.pools = [BlockPool(50), BlockPool(50)]

    def give(self, row: int, count: int, at: int = 0) -> list[list[int]]:
        given = []
        for group, pool in enumerate(self.pools):
            blocks = pool.allocate(count)
            self.put(group, row, at, blocks)
            given.append(blocks)
        return given

    def put(self, group: int, row: int, at: int, blocks: list[int]) -> None:
        self.tables_GRB[group, row, at : at + len(blocks)] = blocks
        epochs = [self.pools[group].epoch(block) for block in blocks]
        self.epochs.give(group, row, at, blocks, epochs)

    def wrong(self, *rows: int, start: int = 0) -> list[int]:
        row_S = np.array(rows)
        try:
            self.epochs.check(
                [table_RB[row_S, :8] for table_RB in self.tables_GRB],
                self.tables_GRB,
                row_S,
                np.full(len(rows), start),
            )
        except ForeignBlocks as error:
            return sorted(error.rows)
        return []


def test_epochs_are_of_each_handing_out() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert sorted(pool.epoch(block) for block in first) == [1, 2, 3]
    pool.share(first[:1])
    assert pool.epoch(first[0]) == 1
    pool.release(first[1:])
    assert pool.epoch(first[1]) == 2, "freed, and nobody else's yet"
    again = pool.allocate(2)
    assert sorted(pool.epoch(block) for block in again) == [4, 5] and pool.epoch(0) == 0


def test_owners_and_sharers_pass() -> None:
    tables = Tables()
    blocks = tables.give(0, 5)
    tables.give(2, 3)
    for group, own in enumerate(blocks):
        tables.put(group, 1, 0, own[:2])  # a prefix that is shared
    tables.give(1, 1, at=2)
    assert tables.wrong(0, 1, 2) == [] == tables.wrong(2)


@pytest.mark.parametrize("group", [0, 1])
def test_a_freed_block_is_found_when_it_is_another_s(group: int) -> None:
    tables = Tables()
    blocks = tables.give(0, 4)
    tables.pools[group].release(blocks[group][1:2])
    assert tables.wrong(0) == [], "it still holds what it held"
    [stolen] = tables.pools[group].allocate(1)
    assert stolen == blocks[group][1]
    tables.put(group, 3, 0, [stolen])
    assert tables.wrong(0, 3) == [0] and tables.wrong(3) == []


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("found", [0, 3, 49, 1 << 30, -5])
def test_a_wrong_entry_is_found_whatever_it_is(group: int, found: int) -> None:
    tables = Tables()
    tables.give(0, 4)
    tables.give(1, 4)
    before = int(tables.tables_GRB[group, 1, 2])
    assert before != found
    tables.tables_GRB[group, 1, 2] = found
    assert tables.wrong(0, 1) == [1] and tables.wrong(0) == []
    tables.tables_GRB[group, 1, 2] = before
    own = tables.tables_GRB[group, 1]
    own[[1, 2]] = own[[2, 1]]
    assert tables.wrong(0, 1) == [1], "nor may its own blocks change places"


def test_what_a_window_has_passed_may_be_anyone_s() -> None:
    tables = Tables()
    blocks = tables.give(0, 6)
    for group in (0, 1):
        tables.pools[group].release(blocks[group][:2])
        tables.put(group, 1, 0, tables.pools[group].allocate(2))
    start = 4 * BLOCK_SIZE  # sees back to 2 * BLOCK_SIZE + 1
    assert tables.wrong(0, start=start) == [0], "of the group that sees everything"
    tables.put(0, 0, 0, blocks[0][:2])
    assert tables.wrong(0, start=start) == []
    assert tables.tables_GRB[1, 0, :3].tolist() == [0, 0, blocks[1][2]], "null where it has passed"
    assert tables.wrong(0, start=start) == []
    tables.pools[1].release(blocks[1][2:3])
    tables.put(1, 1, 2, tables.pools[1].allocate(1))
    assert tables.wrong(0, start=start) == [0], "but what it still sees may not"


def test_an_old_epoch_takes_no_block_back() -> None:
    tables = Tables()
    [stolen] = tables.pools[0].allocate(1)
    old = tables.pools[0].epoch(stolen)
    tables.pools[0].release([stolen])
    tables.put(0, 1, 0, tables.pools[0].allocate(1))
    tables.tables_GRB[0, 0, 0] = stolen
    tables.epochs.give(0, 0, 0, [stolen], [old])
    assert tables.wrong(0, 1) == [0]


def test_a_row_begins_empty() -> None:
    tables = Tables()
    tables.give(0, 8)
    tables.tables_GRB[:, 0] = 0
    tables.epochs.clear(0)
    tables.give(0, 2)
    assert tables.wrong(0) == []
