"""Budgets in time, learned lengths, victims: the parts of admission and preemption, one by one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from octavo.cache.groups import KVCache, Match
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.sequence import Sequence, SequenceState
from octavo.core.steptime import StepTime, attended
from octavo.scheduler import victims
from octavo.scheduler.accounts import Accounts
from octavo.scheduler.budget import PrefillBudget, fits_row
from octavo.scheduler.growth import MOST_KINDS, Growth, Lengths
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.room import Room

LINE = StepTime(base_s=0.02, token_s=0.001, context_s=1e-6, num_steps=100)
SHARE = 128
"""A quarter of 512 tokens."""


def limits(**fields: object) -> Limits:
    base = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 8192}
    return Limits(**(base | fields))  # type: ignore[arg-type]


def make_cache(blocks: int = 100) -> KVCache:
    spec = KVSpec(num_kv_heads=1, head_dim=8)
    return KVCache((KVGroup(spec=spec, layers=(0,), num_blocks=blocks + 1),))


def running(
    cache: KVCache, name: str, prompt: int, *, output: int = 0, same: int = 0, tenant: str = ""
) -> Sequence:
    """A sequence that has computed all its tokens; its first `same` ones are everybody's."""
    ids = [*range(same), *(hash((name, i)) % 1000 + 5000 for i in range(prompt - same))]
    request = Request(
        id=name,
        token_ids=tuple(ids),
        params=SamplingParams(),
        max_tokens=500,
        seed=0,
        arrived=0.0,
        tenant=tenant,
    )
    sequence = Sequence(request=request, token_ids=[*ids, *([7] * output)])
    match = cache.match(sequence)
    cache.admit(sequence, match)
    sequence.num_matched = match.num_tokens
    cache.extend(sequence, sequence.num_tokens)
    sequence.num_computed = sequence.num_tokens - (1 if output else 0)
    cache.advance(sequence)
    sequence.state = SequenceState.RUNNING
    return sequence


def test_without_decodes_or_a_line_only_tokens_count() -> None:
    assert PrefillBudget(limits(), LINE, 0, 0.0).most(0) == 512
    assert PrefillBudget(limits(), None, 4, 0.0).most(7000) == SHARE
    assert PrefillBudget(limits(prefill_share=1.0), LINE, 4, 0.0).most(7000) == 508


def test_a_chunk_late_in_a_long_prompt_gets_fewer_tokens_for_the_same_time() -> None:
    budget = PrefillBudget(limits(), LINE, 4, 1000.0)
    assert budget.most(0) in (SHARE - 1, SHARE)
    count = budget.most(7000)
    most = LINE.token_s * SHARE + LINE.context_s * attended(0, SHARE)
    for tokens, fits in ((count, True), (count + 1, False)):
        cost = LINE.token_s * tokens + LINE.context_s * attended(7000, tokens)
        assert (cost <= most * 1.0001) == fits
    budget.spend(7000, count)
    assert budget.most(0) <= 1


def test_max_itl_bounds_the_whole_step_but_never_starves_prompts() -> None:
    budget = PrefillBudget(limits(max_itl_s=0.1), LINE, 10, 5000.0)
    count = budget.most(2000)
    total = LINE.predict(10 + count, 5000 + attended(2000, count))
    assert 0.098 < total <= 0.1
    assert PrefillBudget(limits(max_itl_s=0.01), LINE, 10, 5000.0).most(2000) == BLOCK_SIZE
    unsure = StepTime(base_s=0.02, token_s=0.001, context_s=1e-6, num_steps=100, error=0.2)
    assert PrefillBudget(limits(max_itl_s=0.1), unsure, 10, 5000.0).most(2000) < count
    assert fits_row(limits(max_itl_s=0.1), LINE, 10, 60_000)
    assert not fits_row(limits(max_itl_s=0.1), LINE, 10, 90_000)
    assert fits_row(limits(), LINE, 10, 90_000)


def test_lengths_are_learned_and_a_limit_of_the_caller_is_no_end() -> None:
    lengths = Lengths()
    for _ in range(300):
        lengths.learn(100, cut_off=False)
    assert chance(lengths, 90) > 0.9 > 0.1 > chance(lengths, 130)
    cut = Lengths()
    for _ in range(300):
        cut.learn(100, cut_off=True)
    assert chance(cut, 90) > 0.9
    for _ in range(1000):
        lengths.learn(1000, cut_off=False)
    assert chance(lengths, 130) > 0.8, "the old is forgotten"


def chance(lengths: Lengths, reached: int) -> float:
    from octavo.scheduler.growth import _buckets

    return float(lengths.survival[_buckets(np.array([reached]))[0]])


def fits(growth: Growth, cache: KVCache, others: list[Sequence], prompt: int = 160) -> bool:
    growth.forget_step()
    ids = tuple(range(90_000, 90_000 + prompt))
    request = Request(
        id="new", token_ids=ids, params=SamplingParams(), max_tokens=500, seed=0, arrived=9.0
    )
    new = Sequence(request=request, token_ids=list(ids))
    return growth.fits(new, Match(0, ((),)), others)


def test_what_runs_is_spared_what_it_is_expected_to_grow_by() -> None:
    cache = make_cache(100)
    others = [running(cache, f"s{i}", 160, output=1) for i in range(5)]  # 55 blocks held
    growth = Growth(cache, 512)
    for _ in range(100):
        growth.learn(others[0].request, 30, cut_off=False)
    assert fits(growth, cache, others), "two blocks more for each"
    for _ in range(800):
        growth.learn(others[0].request, 400, cut_off=False)
    assert not fits(growth, cache, others), "25 blocks more for each"


class Asked(Growth):
    """Notes whether it was asked."""

    was = False

    def fits(self, sequence: Sequence, match: Match, running: Iterable[Sequence]) -> bool:
        self.was = True
        return super().fits(sequence, match, running)


@pytest.mark.parametrize(("num_blocks", "is_asked"), [(126, False), (125, True)])
def test_nothing_is_predicted_where_all_can_become_as_long_as_they_may(
    num_blocks: int, is_asked: bool
) -> None:
    """Each comes to 42 blocks, and one of three has ended."""
    cache = make_cache(num_blocks)
    room = Room(cache, limits())
    growth = room.growth = Asked(cache, 512)
    others = [running(cache, f"s{i}", 160, output=1) for i in range(3)]
    for each in others:
        room.start(each)
    cache.release(others[2])
    room.leave(others[2])
    new = running(make_cache(), "new", 160)
    assert room.admits(new, Match(0, ((),)), others[:2]), "it fits either way"
    assert growth.was == is_asked


def test_kinds_are_learned_apart_in_bounded_number() -> None:
    cache = make_cache(100)
    others = [running(cache, f"s{i}", 160, output=1, tenant="long") for i in range(5)]
    growth = Growth(cache, 512)
    for tenant, length in (("long", 400), ("short", 5)):
        request = running(make_cache(), "x", 16, tenant=tenant).request
        for _ in range(400):
            growth.learn(request, length, cut_off=False)
    assert not fits(growth, cache, others)
    short = [running(make_cache(), f"t{i}", 160, output=1, tenant="short") for i in range(5)]
    assert fits(growth, cache, short)
    for number in range(2 * MOST_KINDS):
        growth.learn(running(make_cache(), "x", 16, tenant=f"k{number}").request, 1, cut_off=False)
    assert len(growth._kinds) == MOST_KINDS


def accounts_of(sequences: list[Sequence]) -> Accounts:
    accounts = Accounts(POLICIES.load("fair")())
    accounts.line = LINE
    for sequence in sequences:
        accounts.enqueue(sequence, 0)
        accounts.dequeue(sequence)
        accounts.start(sequence)
    return accounts


def test_the_victim_is_the_cheapest_to_compute_again() -> None:
    cache = make_cache(200)
    all_of = [
        running(cache, "first", 32),
        running(cache, "long", 600),
        running(cache, "shares", 320, same=304),
        running(cache, "with", 320, same=304),
        running(cache, "short", 100),
    ]
    costs = [victims.recompute_s(sequence, cache, LINE) for sequence in all_of]
    assert costs[2] == costs[3] == pytest.approx(0.016 + LINE.context_s * attended(304, 16))
    accounts = accounts_of(all_of)
    assert victims.for_blocks(all_of, {}, all_of[1], cache, accounts) in all_of[2:4]
    all_of[2].num_preemptions = all_of[3].num_preemptions = 1
    assert victims.for_blocks(all_of, {}, all_of[1], cache, accounts) is all_of[4]
    kept = {s.id: s for s in all_of[1:]}
    assert victims.for_blocks(all_of, kept, all_of[0], cache, accounts) is None


def test_the_account_that_holds_most_gives_way() -> None:
    cache = make_cache(400)
    small = [running(cache, f"b{i}", 32, tenant="b") for i in range(3)]
    large = [running(cache, f"a{i}", 900, tenant="a") for i in range(3)]
    all_of = [small[0], *large, *small[1:]]
    accounts = accounts_of(all_of)
    assert victims.for_blocks(all_of, {}, small[1], cache, accounts) in large


def test_a_row_is_taken_from_above_a_share_for_below_a_half_and_once_from_each() -> None:
    cache = make_cache(400)
    theirs = [running(cache, f"a{i}", 64 + 16 * i, tenant="a") for i in range(8)]
    accounts = accounts_of(theirs)
    waiting = Sequence(request=running(make_cache(), "b", 16, tenant="b").request, token_ids=[1])
    accounts.enqueue(waiting, 1)
    starved = accounts.live["b"]
    assert victims.for_row(starved, theirs, {}, cache, accounts) is theirs[1]
    theirs[1].num_preemptions = 1
    assert victims.for_row(starved, theirs, {}, cache, accounts) is theirs[2]
    starved.rows = 3
    assert victims.for_row(starved, theirs, {}, cache, accounts) is None
    starved.rows = 0
    assert victims.for_row(starved, theirs[:1], {}, cache, accounts) is None
