"""Pages found ahead of the blocks that are handed out."""

from __future__ import annotations

import errno
import resource
import threading

import numpy as np
import pytest
import torch

from octavo.cache.pages import LARGE_PAGE, PagesAhead, Region
from octavo.cache.pool import KVPool
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.plan import Slice, StepPlan

BASE = 16 * LARGE_PAGE + 4096
BLOCK = LARGE_PAGE // 32


class Found:
    """Stands for the system."""

    def __init__(self, answer: int = 0) -> None:
        self.pieces: list[tuple[int, int]] = []
        self.answer = answer

    def __call__(self, address: int, num_bytes: int) -> int:
        self.pieces.append((address, num_bytes))
        return self.answer


def ahead(found: Found, count: int = 4, num_blocks: int = 256) -> tuple[PagesAhead, list[Region]]:
    stride = 1 << 30
    regions = [Region(BASE + at * stride, num_blocks * BLOCK, BLOCK) for at in range(count)]
    return PagesAhead(regions, None, found), regions


def reach(pages: PagesAhead, block: int) -> None:
    pages.reach(block)
    pages.wait()


def test_they_are_found_a_little_ahead_each_once_and_to_the_end() -> None:
    found = Found()
    pages, regions = ahead(found)
    for block in range(1, 256):
        reach(pages, block)
        for region in regions:
            lead = region.done - (region.address + (block + 1) * BLOCK)
            end = region.done == region.address + region.num_bytes
            assert end or LARGE_PAGE // 2 <= lead <= 4 * LARGE_PAGE
    for region in regions:
        mine = sorted(p for p in found.pieces if 0 <= p[0] - region.address < region.num_bytes)
        starts = [address for address, _ in mine]
        ends = [address + size for address, size in mine]
        assert [region.address, *ends] == [*starts, region.address + region.num_bytes]
        assert all(end % LARGE_PAGE == 0 for end in ends[:-1])
        assert max(size for _, size in mine) <= LARGE_PAGE
    count = len(found.pieces)
    reach(pages, 300)
    assert len(found.pieces) == count, "nothing is left to find"


def test_layers_do_not_reach_their_next_large_page_with_the_same_block() -> None:
    found = Found()
    pages, _ = ahead(found, count=32)
    reach(pages, 1)
    most = 0
    for block in range(2, 200):
        before = len(found.pieces)
        reach(pages, block)
        most = max(most, len(found.pieces) - before)
    assert 1 <= most <= 2, "32 layers, and 32 blocks to a page: one each"


@pytest.mark.parametrize("num_regions", [1, 4, 61])
def test_regions_are_looked_at_where_one_of_them_wants_something(num_regions: int) -> None:
    """What is found at each block is what is found where every block has a look."""
    told = []
    for looks_always in (False, True):
        found = Found()
        pages, _ = ahead(found, count=num_regions)
        counts, num_looks = [], 0
        for block in range(1, 256, 1 + num_regions % 2):
            if looks_always:
                pages._enough_to = 0
            num_looks += not pages._is_over and block > pages._enough_to
            reach(pages, block)
            counts.append(len(found.pieces))
        told.append((counts, found.pieces, num_looks))
    assert told[0][:2] == told[1][:2]
    assert told[0][2] <= told[1][2]
    assert num_regions > 4 or told[0][2] < told[1][2] / 2


def test_a_system_that_cannot_is_asked_once() -> None:
    found = Found(errno.EINVAL)
    pages, _ = ahead(found)
    for block in range(1, 100):
        reach(pages, block)
    assert len(found.pieces) == 1


def test_what_was_found_is_written_without_a_fault_and_holds_zeros() -> None:
    group = KVGroup(
        spec=KVSpec(num_kv_heads=4, head_dim=64, dtype="float32"), layers=(0, 1), num_blocks=512
    )
    pool = KVPool((group,), 2, torch.device("cpu"))
    piece = Slice(row=0, start=0, count=1, sample=True, new_blocks=((2, 40),))
    pool.update(StepPlan(step=1, slices=(piece,)))
    (pages,) = pool.pages
    pages.wait()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for layer in range(2):
        for tensor in pool.layer(layer).tensors():
            values = tensor[:41].numpy()
            assert not np.any(values)
            values[:] = 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    num_pages = 4 * 41 * BLOCK_SIZE * 4 * 64 * 4 // 4096
    assert faults < num_pages / 4, f"{num_pages} small pages were written"


def test_the_whole_pool_of_a_small_model_is_found_at_once() -> None:
    found = Found()
    pages = PagesAhead([Region(BASE, 8 * 1024, 1024)], None, found)
    reach(pages, 1)
    assert found.pieces == [(BASE, 8 * 1024)]


def test_with_nothing_else_to_do_the_first_blocks_are_found_piece_by_piece() -> None:
    found = Found()
    pages, regions = ahead(found)
    num_calls = 1
    while pages.find_one(100):
        assert len(found.pieces) == num_calls, "one piece a time"
        num_calls += 1
    for region in regions:
        assert region.done >= region.address + 101 * BLOCK
    count = len(found.pieces)
    reach(pages, 99)
    assert len(found.pieces) == count, "what was found is not looked for again"
    reach(pages, 255)
    assert len(found.pieces) > count
    assert not pages.find_one(255), "all are found"


def test_idle_moments_go_on_where_the_thread_that_finds_ends() -> None:
    found = Found()
    may_go_on = threading.Event()
    first = [True]

    def find(address: int, num_bytes: int) -> int:
        if first.pop():
            assert may_go_on.wait(60)
        first.append(False)
        return found(address, num_bytes)

    pages = PagesAhead([Region(BASE, 256 * BLOCK, BLOCK)], None, find)
    pages.reach(1)
    assert pages.find_one(200), "there may be more while the thread is at work"
    assert not found.pieces
    may_go_on.set()
    while pages.find_one(200):
        pass
    assert sum(size for _, size in found.pieces) >= 201 * BLOCK
    addresses = [address for address, _ in found.pieces]
    assert len(set(addresses)) == len(addresses), "each once"


def test_where_no_thread_can_start_pages_are_found_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found()
    pages, _ = ahead(found)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    pages.reach(1)
    pages.reach(100)
    assert not found.pieces and not pages.find_one(100)


def test_what_cannot_be_found_ahead_is_not_looked_for_in_idle_moments() -> None:
    found = Found(errno.EINVAL)
    pages, _ = ahead(found)
    assert not pages.find_one(100)
    assert not pages.find_one(100)
    assert len(found.pieces) == 1


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_pool_finds_what_so_many_tokens_take_and_no_more(is_idle: bool) -> None:
    group = KVGroup(
        spec=KVSpec(num_kv_heads=8, head_dim=128, dtype="float32"), layers=(0,), num_blocks=4096
    )
    pool = KVPool((group,), 1, torch.device("cpu"))
    (pages,) = pool.pages
    if is_idle:
        while pool.find_pages(1024):
            pass
    else:
        pool.expect(1024)
        pages.wait()
    for region in pages._regions:
        wanted = 1024 * 8 * 128 * 4
        assert wanted <= region.done - region.address <= wanted + 3 * LARGE_PAGE


@pytest.mark.parametrize("block", [0, -1])
def test_the_null_block_asks_for_nothing(block: int) -> None:
    found = Found()
    pages, _ = ahead(found)
    reach(pages, block)
    assert found.pieces == []
