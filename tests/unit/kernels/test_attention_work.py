"""Cutting a step's attention into items: every query sees every key it should, once; ranges and rows are in bounds."""

from __future__ import annotations

import random
from itertools import accumulate

import numpy as np
import pytest

from octavo.kernels.attention.work import (
    ALIGNMENT,
    MAX_CHUNK_ITEMS,
    MAX_SPLITS,
    Cut,
    lay_out,
    max_work,
)


def steps(seed: int, *, single: bool = False) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    counts, lens = [], []
    for _ in range(rng.randint(1, 6)):
        length = rng.choice((1, 2, 63, 64, 65, 255, 256, 257, 1024, 5000, rng.randint(1, 20_000)))
        counts.append(1 if single else min(length, rng.choice((0, 1, 1, 2, 15, 16, 17, 300))))
        lens.append(length)
    return [0, *accumulate(counts)], lens


def cuts(seed: int) -> Cut:
    rng = random.Random(seed)
    window = rng.choice((None, None, 1, 40, 4096))
    ahead = rng.choice((0, 0, 0, 8))
    return Cut(
        rng.choice((1, 2, 4, 32)), rng.choice((1, 4, 7)), window, ahead, rng.choice((0, 1024))
    )


@pytest.mark.parametrize("seed", range(60))
def test_every_query_sees_its_keys_once(seed: int) -> None:
    starts, lens = steps(seed)
    cut = cuts(seed)
    work = lay_out(starts, lens, cut)
    seen: dict[int, list[tuple[int, int]]] = {}
    rows: set[int] = set()
    partials: dict[int, list[int]] = {}
    for i, first, tokens, position, begin, end, partial, _ in work.items.tolist():
        assert 1 <= tokens <= cut.tokens and 0 <= begin < end <= lens[i] and begin % ALIGNMENT == 0
        assert starts[i] <= first and first + tokens <= starts[i + 1]
        assert position == lens[i] - (starts[i + 1] - starts[i]) + first - starts[i]
        own = set(range(partial, partial + tokens * cut.group)) if partial >= 0 else set()
        assert not own & rows and (not own or max(own) < work.num_partials)
        rows |= own
        for token in range(first, first + tokens):
            seen.setdefault(token, []).append((begin, end))
            if own:
                partials.setdefault(token, []).append(partial + (token - first) * cut.group)
    assert len(rows) == work.num_partials
    assert sorted(seen) == list(range(starts[-1]))
    for i, length in enumerate(lens):
        for token in range(starts[i], starts[i + 1]):
            position = length - (starts[i + 1] - token)
            low = 0 if cut.window is None else max(0, position - cut.window + 1)
            high = min(length, position + cut.ahead + 1)
            ranges = sorted(seen[token])
            assert ranges[0][0] <= low and ranges[-1][1] >= high
            assert all(one[1] == other[0] for one, other in zip(ranges, ranges[1:], strict=False))
    found = {}
    for token, base, stride, count in work.merges.tolist():
        found[token] = [base + k * stride for k in range(count)]
    assert found == {token: sorted(each) for token, each in partials.items()}


@pytest.mark.parametrize("seed", range(40))
def test_a_plan_with_room_has_enough(seed: int) -> None:
    starts, lens = steps(seed, single=True)
    cut = cuts(seed)._replace(ahead=0)
    work = lay_out(starts, lens, cut)
    items, partials = max_work(len(lens), max(lens), sum(lens), cut)
    assert len(work.items) <= items and work.num_partials <= partials


def test_where_a_slice_is_cut_depends_on_it_alone() -> None:
    cut = Cut(4, 4, None, 0)
    alone = lay_out([0, 1], [9000], cut).items[:, 4:6]
    among = lay_out([0, 1, 40, 41], [9000, 500, 20_000], cut).items
    assert np.array_equal(np.sort(among[among[:, 0] == 0][:, 4:6], 0), np.sort(alone, 0))


def test_splits_are_few() -> None:
    cut = Cut(32, 4, None, 0)
    assert len(lay_out([0, 1], [131_072], cut).items) == MAX_SPLITS
    assert len(lay_out([0, 1], [256], cut).items) == 1
    assert len(lay_out([0, 320], [32_000], cut).items) <= MAX_CHUNK_ITEMS + 10
    assert lay_out([0, 8192], [8192], cut).num_partials == 0
    fixed = lay_out([0, 1], [131_072], cut._replace(split=1024)).items
    assert sorted(fixed[:, 4]) == list(range(0, 131_072, 1024))
