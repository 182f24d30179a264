"""Prompts of a thousand blocks that wait and are asked about in every step: what a step looks at, counted."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from octavo.cache.blocks import BlockPool
from octavo.cache.groups import KVCache, window_blocks
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Finished, SliceResult, StepResult
from octavo.scheduler import invariants
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler

FULL = KVSpec(num_kv_heads=1, head_dim=8)
WINDOW = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=512)
CHUNK = 1024
PROMPT = 16_000
NUM_BLOCKS = PROMPT // BLOCK_SIZE


class CountingPool(BlockPool):
    """Counts the blocks that it was asked about."""

    asked = 0

    def lookup(self, digest: bytes) -> int | None:
        self.asked += 1
        return super().lookup(digest)

    def find(self, digests: list[bytes]) -> list[int | None]:
        self.asked += len(digests)
        return super().find(digests)

    def num_unheld(self, blocks: Iterable[int]) -> int:
        blocks = list(blocks)
        self.asked += len(blocks) - blocks.count(0)
        return super().num_unheld(blocks)


def make(specs: tuple[KVSpec, ...]) -> Scheduler:
    """Pools for three prompts, and as many callers as there are prompts, so that many heads are looked at."""
    groups = tuple(KVGroup(spec=spec, layers=(i,)) for i, spec in enumerate(specs))
    groups = tuple(
        replace(g, num_blocks=1 + 3 * min(NUM_BLOCKS + 8, window_blocks(g, CHUNK))) for g in groups
    )
    cache = KVCache(groups)
    cache.pools = tuple(CountingPool.for_group(group) for group in groups)
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=CHUNK, max_model_len=2 * PROMPT)
    scheduler = Scheduler(limits, cache, POLICIES.load("fair")())
    rng = random.Random(1)
    common = [rng.randrange(1000) for _ in range(PROMPT * 3 // 4)]
    for number in range(20):
        own = [rng.randrange(1000) for _ in range(PROMPT - len(common))]
        scheduler.add(
            Request(
                id=f"r{number}",
                token_ids=(*common, *own) if number % 2 else (*own, *common),
                params=SamplingParams(max_tokens=40),
                max_tokens=40,
                seed=0,
                arrived=0.0,
                tenant=f"t{number}",
            )
        )
    return scheduler


@pytest.mark.parametrize("specs", [(WINDOW,), (FULL,), (FULL, WINDOW)], ids=str)
def test_a_step_looks_at_what_starts_and_not_at_all_that_waits(specs: tuple[KVSpec, ...]) -> None:
    scheduler = make(specs)
    pools = scheduler.cache.pools
    ended = steps = 0
    most = 0.0
    while scheduler.has_work:
        before = sum(pool.asked for pool in pools)
        plan = scheduler.schedule(float(steps))
        asked = sum(pool.asked for pool in pools) - before
        assert plan is not None and not invariants.check_plan(scheduler, plan)
        # Who starts is looked up, named and counted; of others a few are, step by step.
        started = sum(len(start.blocks[0]) for start in plan.starts)
        most = max(most, (asked - 8 * started) / NUM_BLOCKS)
        slices = tuple(
            SliceResult(row=each.row, token_ids=(7,) if each.sample else ()) for each in plan.slices
        )
        result = StepResult(step=plan.step, slices=slices, elapsed_s=0.01)
        events = scheduler.apply(plan, result, float(steps))
        ended += sum(isinstance(event, Finished) for event in events)
        steps += 1
    assert ended == 20 and scheduler.counters.prefix_hits
    print(f"{steps} steps; most looked at {most:.2f} prompts' blocks")
    assert most < 12
