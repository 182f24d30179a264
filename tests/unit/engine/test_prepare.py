"""Packing: a step's tensors are what a loop over its tokens says, for decodes, chunks and both."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch

from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.plan import Decodes, NewBlocks, SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.engine.epochs import ForeignBlocks
from octavo.engine.faults import Faults
from octavo.engine.prepare import Rows, Spans
from octavo.engine.worker import calm_collector

NUM_ROWS, MAX_LEN, NUM_GROUPS = 12, 200, 2
CPU = torch.device("cpu")


def groups(count: int) -> tuple[KVGroup, ...]:
    specs = [KVSpec(num_kv_heads=1, head_dim=8 * (i + 1)) for i in range(count)]
    return tuple(KVGroup(spec=spec, layers=(i,), num_blocks=500) for i, spec in enumerate(specs))


def filled_rows(rng: random.Random, *, has_pairs: bool) -> Rows:
    """Every row has all its tokens and blocks."""
    rows = Rows(NUM_ROWS, MAX_LEN, groups(NUM_GROUPS))
    for row in range(NUM_ROWS):
        ids = tuple(rng.randrange(1000) for _ in range(MAX_LEN))
        blocks = tuple(
            tuple(rng.sample(range(1, 500), -(-MAX_LEN // BLOCK_SIZE))) for _ in range(NUM_GROUPS)
        )
        request = Request(
            id=str(row),
            token_ids=ids,
            params=SamplingParams(),
            max_tokens=1,
            seed=0,
            arrived=0.0,
            pair_start=rng.choice((0, MAX_LEN // 3)) if has_pairs else 0,
        )
        rows.start(
            SequenceStart(row=row, request=request, token_ids=ids, blocks=blocks, epochs=blocks)
        )
    return rows


@pytest.mark.parametrize("kind", ["decodes", "chunks", "both"])
@pytest.mark.parametrize("has_pairs", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_packed_tensors_are_what_a_loop_says(kind: str, seed: int, has_pairs: bool) -> None:
    rng = random.Random(seed)
    rows = filled_rows(rng, has_pairs=has_pairs)
    most = {"decodes": [1], "chunks": [2, 17, 50], "both": [1, 1, 40]}[kind]
    slices = tuple(
        Slice(row=row, start=rng.randrange(MAX_LEN - 50), count=rng.choice(most), sample=True)
        for row in rng.sample(range(NUM_ROWS), rng.randrange(1, NUM_ROWS))
    )
    spans = Spans.of(slices)
    wanted = spans.query_starts[1:] - 1
    batch = rows.pack(spans, wanted, CPU)
    tokens = [(p.row, at) for p in slices for at in range(p.start, p.start + p.count)]
    ends = [p.start + p.count for p in slices]
    assert batch.positions_T.tolist() == [at for _, at in tokens]
    assert batch.token_ids_T.tolist() == [int(rows.tokens_RL[row, at]) for row, at in tokens]
    assert batch.context_lens == tuple(ends)
    assert batch.logits_rows_N.tolist() == [
        sum(p.count for p in slices[: n + 1]) - 1 for n in range(len(slices))
    ]
    assert batch.num_tokens == len(tokens) == batch.query_starts[-1]
    pair_starts = [rows.requests[row].pair_start for row, _ in tokens]
    types = [int(0 < pair <= at) for pair, (_, at) in zip(pair_starts, tokens, strict=True)]
    assert (batch.type_ids_T is None) == (not any(pair_starts))
    assert batch.type_ids_T is None or batch.type_ids_T.tolist() == types
    width = -(-max(ends) // BLOCK_SIZE)
    for group, table_RB in zip(batch.groups, rows.tables_GRB, strict=True):
        slots = [
            int(table_RB[row, at // BLOCK_SIZE]) * BLOCK_SIZE + at % BLOCK_SIZE
            for row, at in tokens
        ]
        assert group.slots_T.tolist() == slots
        assert group.block_tables_SB.tolist() == [table_RB[p.row, :width].tolist() for p in slices]


def started(num_rows: int) -> Rows:
    """Rows with one full block in each group, whose numbers are their epochs."""
    rows = Rows(NUM_ROWS, MAX_LEN, groups(NUM_GROUPS))
    for row in range(num_rows):
        ids = tuple(range(BLOCK_SIZE))
        request = Request(
            id=str(row), token_ids=ids, params=SamplingParams(), max_tokens=1, seed=0, arrived=0.0
        )
        blocks = ((1 + row,), (101 + row,))
        rows.start(
            SequenceStart(row=row, request=request, token_ids=ids, blocks=blocks, epochs=blocks)
        )
    return rows


def take_over(rows: Rows, slices: Decodes | tuple[Slice, ...]) -> Faults:
    faults = Faults()
    rows.take_over(
        StepPlan(step=1, slices=slices), faults, begin=lambda _: None, end=lambda _: None
    )
    return faults


def grows(row: int) -> Slice:
    """One token behind a full block, with a new block in each of two groups."""
    return Slice(
        row=row,
        start=BLOCK_SIZE,
        count=1,
        sample=True,
        new_blocks=((50 + row,), (150 + row,)),
        new_epochs=((500 + row,), (600 + row,)),
    )


def growth(pieces: dict[int, Slice]) -> NewBlocks:
    """What these slices say of new blocks, of which each has one per group, as columns."""
    blocks = [piece.new_blocks for piece in pieces.values()]
    epochs = [piece.new_epochs for piece in pieces.values()]
    rows = np.array([piece.row for piece in pieces.values()])
    return NewBlocks(list(pieces), rows, np.array(blocks)[:, :, 0].T, np.array(epochs)[:, :, 0].T)


def test_blocks_given_together_are_those_given_one_by_one() -> None:
    order = (2, 0, 3)
    pieces = {index: grows(row) for index, row in enumerate(order) if row != 0}
    starts = np.array([BLOCK_SIZE, 3, BLOCK_SIZE])
    decodes = Decodes(order, np.array(order), starts, int(starts.sum()) + 3, growth(pieces))
    assert decodes.grown == pieces and tuple(decodes)[0] == pieces[0]
    together, singly = started(4), started(4)
    assert not take_over(together, decodes) and not take_over(singly, tuple(decodes))
    assert together.tables_GRB[:, 2, :2].tolist() == [[3, 52], [103, 152]]
    assert (together.tables_GRB == singly.tables_GRB).all()
    assert (together.num_blocks_GR == singly.num_blocks_GR).all()
    batches = [
        rows.pack(Spans.of(slices), np.arange(3), CPU)
        for rows, slices in ((together, decodes), (singly, tuple(decodes)))
    ]
    for one, other in zip(batches[0].groups, batches[1].groups, strict=True):
        assert one.slots_T.tolist() == other.slots_T.tolist()
        assert one.block_tables_SB.tolist() == other.block_tables_SB.tolist()


def test_a_full_table_is_its_own_rows_fault() -> None:
    rows = started(3)
    rows.num_blocks_GR[:, 1] = rows.tables_GRB.shape[2]
    pieces = {row: grows(row) for row in range(3)}
    starts = np.full(3, BLOCK_SIZE)
    assert set(take_over(rows, Decodes((0, 1, 2), np.arange(3), starts, 51, growth(pieces)))) == {1}
    assert rows.tables_GRB[:, 0, 1].tolist() == [50, 150]


def test_tables_that_were_kept_are_looked_at_again_once_a_block_is_anothers() -> None:
    rows = started(3)
    order, starts = np.arange(2), np.array([3, 4])
    kept = Decodes((0, 1), order, starts, 9)
    first = rows.pack(Spans.of(kept), np.arange(2), CPU)
    again = rows.pack(Spans.of(Decodes((0, 1), order, starts + 1, 11)), np.arange(2), CPU)
    assert again.groups[0].block_tables_SB is first.groups[0].block_tables_SB
    thief = Slice(
        row=2,
        start=16,
        count=1,
        sample=True,
        new_blocks=((1,), (150,)),
        new_epochs=((900,), (901,)),
    )
    assert not take_over(rows, (thief,))
    with pytest.raises(ForeignBlocks):
        rows.pack(Spans.of(kept), np.arange(2), CPU)


def test_sampled_tokens_go_behind_the_known_ones_and_none_is_none() -> None:
    rows = Rows(4, 8, groups(1))
    rows.num_tokens_R[:] = (1, 2, 3, 4)
    rows.append_tokens(np.array([3, 0, 2]), np.array([30, -1, 20]))
    assert rows.num_tokens_R.tolist() == [1, 2, 4, 5]
    assert (rows.tokens_RL[3, 4], rows.tokens_RL[2, 3], rows.tokens_RL.sum()) == (30, 20, 50)
    rows.append_tokens(np.empty(0, np.int64), np.empty(0, np.int64))
    assert rows.num_tokens_R.tolist() == [1, 2, 4, 5]


def test_the_collector_is_as_before_when_the_engine_ends() -> None:
    before = gc.get_threshold()
    with calm_collector():
        assert gc.get_freeze_count() > 0 and gc.get_threshold() != before
    assert gc.get_freeze_count() == 0 and gc.get_threshold() == before
