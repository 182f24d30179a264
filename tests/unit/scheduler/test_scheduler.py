"""Named cases of what the simulator checks in bulk."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from octavo.cache.groups import KVCache, window_blocks
from octavo.core.errors import ContextLengthError, OverloadError
from octavo.core.kvspec import KVGroup, KVSpec
from octavo.core.params import SamplingParams
from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished, SliceResult, StepResult
from octavo.core.waits import BEHIND, HELD_BACK, NO_BUDGET, NO_ROOM, NO_ROW
from octavo.scheduler.invariants import check
from octavo.scheduler.limits import MAX_IN_VAIN, MAX_PASSED, Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from overcommit import overcommit


def make(policy: str = "fcfs", num_blocks: int = 200, **limits: object) -> Scheduler:
    options = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 1024} | limits
    group = KVGroup(spec=KVSpec(num_kv_heads=1, head_dim=8), layers=(0,), num_blocks=num_blocks)
    return Scheduler(Limits(**options), KVCache((group,)), POLICIES.load(policy)())  # type: ignore[arg-type]


def request(name: str, length: int, max_tokens: int = 50, **fields: object) -> Request:
    base = {
        "arrived": float(ord(name[0])),
        "seed": 0,
        "params": SamplingParams(),
        "max_tokens": max_tokens,
    }
    ids = tuple(hash((name, i)) % 1000 for i in range(length))
    return Request(id=name, token_ids=ids, **(base | fields))  # type: ignore[arg-type]


def step(scheduler: Scheduler) -> tuple[StepPlan, list[Event]]:
    plan = scheduler.schedule(0.0)
    assert plan is not None
    results = tuple(
        SliceResult(row=piece.row, token_ids=(3,) if piece.sample else ()) for piece in plan.slices
    )
    return plan, scheduler.apply(plan, StepResult(step=plan.step, slices=results), 0.0)


def test_a_long_prompt_never_keeps_decodes_waiting_and_takes_a_bounded_share() -> None:
    scheduler = make()
    scheduler.add(request("a", 4, max_tokens=200))
    step(scheduler)
    scheduler.add(request("b", 600))
    while any(sequence.num_pending > 1 for sequence in scheduler.running) or scheduler.waiting:
        plan, _ = step(scheduler)
        counts = sorted(piece.count for piece in plan.slices)
        assert counts[0] == 1, "the decode is in every step"
        assert sum(counts[1:]) <= 16, "a quarter of 64 tokens beside a decode"


def test_alone_a_prompt_takes_the_whole_budget() -> None:
    scheduler = make()
    scheduler.add(request("a", 600))
    assert step(scheduler)[0].slices[0].count == 64


def test_offline_prompts_fill_the_step_beside_decodes() -> None:
    scheduler = make(prefill_share=1.0)
    scheduler.add(request("a", 4, max_tokens=200))
    step(scheduler)
    scheduler.add(request("b", 600))
    plan, _ = step(scheduler)
    assert sorted(piece.count for piece in plan.slices) == [1, 63]


def test_without_chunking_prompts_run_whole() -> None:
    scheduler = make(enable_chunked_prefill=False, max_num_batched_tokens=1100)
    scheduler.add(request("a", 600))
    scheduler.add(request("b", 600))
    assert [piece.count for piece in step(scheduler)[0].slices] == [600]
    assert sorted(piece.count for piece in step(scheduler)[0].slices) == [1, 600]


def test_priority_overtakes_in_the_queue_and_fcfs_does_not() -> None:
    for policy, first in (("fcfs", "a"), ("priority", "b")):
        scheduler = make(policy, max_num_seqs=1)
        scheduler.add(request("a", 4, priority=5))
        scheduler.add(request("b", 4, priority=-5))
        assert step(scheduler)[0].starts[0].request.id == first


def test_the_youngest_gives_way_and_comes_back_to_its_place() -> None:
    scheduler = make(num_blocks=7, max_model_len=80)
    for _ in range(50):  # short answers are expected, and long ones come
        scheduler.room.growth.learn(request("z", 30, max_tokens=40), 2, cut_off=False)
    for name in "ab":
        scheduler.add(request(name, 30, max_tokens=40))
    ends = []
    while scheduler.has_work:
        ends += [event for event in step(scheduler)[1] if hasattr(event, "reason")]
    assert scheduler.counters.num_preemptions >= 1
    assert [end.id for end in ends] == ["a", "b"]
    assert ends[0].num_preemptions == 0, "the oldest is never the victim"


def test_a_full_queue_is_an_overload_and_a_too_long_request_is_refused() -> None:
    scheduler = make(max_num_waiting=2)
    scheduler.add(request("a", 4))
    scheduler.add(request("b", 4))
    with pytest.raises(OverloadError) as caught:
        scheduler.add(request("c", 4))
    assert caught.value.retry_after_s is not None
    with pytest.raises(ContextLengthError, match="1100"):
        make().add(request("d", 4, max_tokens=1100))


def test_idle_means_no_plan() -> None:
    assert make().schedule(0.0) is None


def test_a_hit_is_admitted_where_the_pool_just_holds_one_window_and_a_chunk() -> None:
    spec = KVSpec(kind="window", num_kv_heads=1, head_dim=8, window=64)
    group = KVGroup(spec=spec, layers=(0,))
    group = KVGroup(spec=spec, layers=(0,), num_blocks=1 + window_blocks(group, chunk=144))
    limits = Limits(max_num_seqs=8, max_num_batched_tokens=144, max_model_len=1024)
    scheduler = Scheduler(limits, KVCache((group,)), POLICIES.load("fcfs")())
    prompt = tuple(range(800))
    for name, ids in (("a", prompt[:200]), ("b", prompt[:190] + (5,) * 600)):
        scheduler.add(
            Request(
                id=name,
                token_ids=ids,
                params=SamplingParams(),
                max_tokens=2,
                seed=0,
                arrived=0.0,
            )
        )
        while scheduler.has_work:
            step(scheduler)
    assert scheduler.counters.prefix_hits > 0


def test_prompts_that_are_not_looked_up_are_no_queries_of_the_prefix_cache() -> None:
    scheduler = make()
    scheduler.add(request("a", 40, params=SamplingParams(prompt_logprobs=0)))
    step(scheduler)
    assert scheduler.stats().prefix_queries == 0
    scheduler.add(request("b", 40))
    step(scheduler)
    assert scheduler.stats().prefix_queries == 40


def test_a_resumed_request_goes_on_behind_what_its_caller_has() -> None:
    scheduler = make()
    assert scheduler.add(request("a", 20, max_tokens=6, resumed=(9, 8, 7, 6), restarts=1)) == []
    plan, events = step(scheduler)
    assert plan.starts[0].token_ids[20:] == (9, 8, 7, 6) and plan.slices[0].count == 24
    assert plan.slices[0].sample and [event.token_ids for event in events] == [(3,)]  # type: ignore[union-attr]
    _, events = step(scheduler)
    end = events[-1]
    assert isinstance(end, Finished) and (end.reason, end.num_output) == ("length", 6)
    assert scheduler.counters.generation_tokens == 2, "what was resumed was not generated again"


@pytest.mark.parametrize(
    ("resumed", "fields", "reason", "stop_token"),
    [
        ((9, 5), {"params": SamplingParams(stop_token_ids=(5,))}, "stop", 5),
        ((9, 2), {"eos_token_ids": (2,)}, "stop", None),
        ((9, 9, 9), {"max_tokens": 3}, "length", None),
    ],
)
def test_a_resumed_request_that_was_complete_ends_at_once(
    resumed: tuple[int, ...], fields: dict, reason: str, stop_token: int | None
) -> None:
    scheduler = make()
    [end] = scheduler.add(request("a", 20, resumed=resumed, restarts=1, **fields))
    assert isinstance(end, Finished) and (end.reason, end.stop_token) == (reason, stop_token)
    assert end.num_output == len(resumed) and not scheduler.has_work and not scheduler.by_id
    assert not check(scheduler)


def test_what_was_accepted_once_is_not_refused_by_a_full_queue() -> None:
    scheduler = make(max_num_waiting=1)
    scheduler.add(request("a", 4))
    scheduler.add(request("b", 4, restarts=1))
    with pytest.raises(OverloadError):
        scheduler.add(request("c", 4))


def test_tokens_found_in_the_cache_count_up_to_the_prompt() -> None:
    scheduler = make()
    base = request("a", 20, max_tokens=60)
    output = tuple(range(100, 145))
    scheduler.add(replace(base, resumed=output, restarts=1))
    while scheduler.has_work:
        step(scheduler)
    scheduler.add(replace(base, id="b", resumed=output, restarts=1))
    step(scheduler)
    assert scheduler.by_id["b"].num_cached == 20


def test_steps_are_measured_and_the_fitted_line_goes_out_with_the_statistics() -> None:
    scheduler = make()
    scheduler.add(request("a", 40, max_tokens=100))
    while scheduler.has_work:
        plan = scheduler.schedule(0.0)
        assert plan is not None
        results = tuple(
            SliceResult(row=piece.row, token_ids=(3,) if piece.sample else ())
            for piece in plan.slices
        )
        elapsed = 0.01 + 0.001 * plan.num_tokens
        scheduler.apply(plan, StepResult(step=plan.step, slices=results, elapsed_s=elapsed), 0.0)
    line = scheduler.stats().step_time
    assert line.num_steps >= 96
    assert line.predict(1, 80) == pytest.approx(0.011, rel=0.05)
    assert line.predict(40, 800) == pytest.approx(0.05, rel=0.1)


def test_deadlines_end_requests_before_they_run_and_while_they_do() -> None:
    scheduler = make(max_num_seqs=1)
    scheduler.add(request("a", 4, deadline=10.0))
    scheduler.add(request("b", 4, deadline=5.0))
    scheduler.add(request("c", 4))
    step(scheduler)
    assert scheduler.expire(5.0) == []
    (late,) = scheduler.expire(5.1)
    assert isinstance(late, Failed) and late.id == "b"
    assert (late.error.code, late.error.status) == ("deadline_exceeded", 504)
    assert "while it waited" in late.error.message
    (late,) = scheduler.expire(11.0)
    assert isinstance(late, Failed) and late.id == "a" and "while it ran" in late.error.message
    assert step(scheduler)[0].starts[0].request.id == "c"


def test_a_deadline_of_an_ended_request_is_nothing_even_when_its_name_comes_again() -> None:
    scheduler = make()
    scheduler.add(request("a", 4, deadline=5.0))
    scheduler.cancel("a")
    scheduler.add(request("a", 4))
    assert scheduler.expire(6.0) == []
    assert scheduler.has_work


def test_a_passed_deadline_is_no_fault_and_leaves_cached_prefixes_as_they_are() -> None:
    scheduler = make()
    ids = tuple(range(2, 66))
    scheduler.add(request("a", 4, deadline=10.0))
    scheduler.add(replace(request("b", 1, deadline=10.0), token_ids=ids))
    step(scheduler)
    step(scheduler)
    assert len(scheduler.expire(11.0)) == 2
    assert scheduler.stats().faults == ()
    scheduler.add(replace(request("c", 1), token_ids=(*ids, 5)))
    assert step(scheduler)[0].slices[0].start == 64
    assert check(scheduler) == []


def test_deadlines_of_ended_requests_are_not_kept() -> None:
    scheduler = make()
    for number in range(1000):
        scheduler.add(request(f"r{number}", 4, deadline=1e9))
        scheduler.cancel(f"r{number}")
    assert len(scheduler._deadlines) < 100
    scheduler.add(request("a", 4, deadline=5.0))
    assert [event.id for event in scheduler.expire(6.0)] == ["a"]


def test_tokens_computed_before_a_preemption_are_aborted_with_the_rest() -> None:
    scheduler = make()
    scheduler.add(request("a", 40))
    step(scheduler)
    scheduler.places.preempt(scheduler.by_id["a"])
    scheduler.cancel("a")
    assert scheduler.stats().aborted_tokens == 40


def test_what_waits_and_what_is_pending_is_counted() -> None:
    scheduler = make()
    scheduler.add(request("a", 100))
    scheduler.add(request("b", 40))
    assert scheduler.stats().queued_tokens == 140
    step(scheduler)
    stats = scheduler.stats()
    assert (stats.queued_tokens, stats.pending_tokens) == (40, 36)
    scheduler.cancel("b")
    assert scheduler.stats().queued_tokens == 0


def test_a_preempted_prompt_is_counted_once_and_the_rest_as_waste() -> None:
    scheduler = make(num_blocks=7, max_model_len=80)
    overcommit(scheduler)
    for name in "ab":
        scheduler.add(request(name, 30, max_tokens=40))
    while scheduler.has_work:
        step(scheduler)
    stats = scheduler.stats()
    assert stats.num_preemptions == 1
    assert stats.prompt_tokens == 60
    assert stats.recomputed_tokens > 0


def test_a_head_that_finds_no_room_is_passed_by_others_so_often_and_then_is_next() -> None:
    scheduler = make("fair", num_blocks=41, max_num_seqs=8, max_num_batched_tokens=600)
    overcommit(scheduler)
    scheduler.add(request("a", 100, max_tokens=200, tenant="x"))
    step(scheduler)
    scheduler.add(request("b", 560, max_tokens=2, tenant="y", arrived=99.0))
    for number in range(60):
        scheduler.add(request(f"c{number}", 30, max_tokens=3, tenant="z", arrived=100.0 + number))
    started: list[str] = []
    while "b" not in started:
        plan, _ = step(scheduler)
        started += [start.request.id for start in plan.starts]
    assert 1 < len(started) <= MAX_PASSED + 4, "some passed it, not all"


def test_a_burst_of_equal_prompts_is_not_looked_through_whole_in_every_step() -> None:
    scheduler = make(max_num_batched_tokens=64)
    for number in range(200):
        scheduler.add(replace(request("a", 600), id=f"a{number}", index=number))
    looked = []
    match = scheduler.cache.match
    scheduler.cache.match = lambda sequence: looked.append(1) or match(sequence)  # type: ignore
    step(scheduler)
    assert len(looked) <= MAX_IN_VAIN + 3


def test_of_many_accounts_without_room_a_step_looks_at_a_few() -> None:
    scheduler = make("fair", num_blocks=41, max_num_seqs=8, max_num_batched_tokens=600)
    overcommit(scheduler)
    scheduler.add(request("a", 100, max_tokens=200))
    step(scheduler)
    for number in range(200):
        scheduler.add(request(f"b{number}", 560, max_tokens=2, tenant=f"t{number}"))
    looked = []
    match = scheduler.cache.match
    scheduler.cache.match = lambda sequence: looked.append(1) or match(sequence)  # type: ignore
    plan, _ = step(scheduler)
    assert not plan.starts
    assert len(looked) == MAX_IN_VAIN + 1


def test_a_full_step_does_not_go_through_the_chunks_that_are_left() -> None:
    scheduler = make("fair", max_itl_s=1e-4, num_blocks=400)
    scheduler.add(request("a", 4, max_tokens=200))
    for number in range(30):
        step(scheduler)
        scheduler.step_time.observe(10 + number, 100 * number, 0.01 + 0.001 * number)
    for number in range(6):
        scheduler.add(request(f"b{number}", 600, tenant=f"t{number}"))
        step(scheduler)
    while scheduler.waiting:
        step(scheduler)
    ran = []
    run_chunk = scheduler._run_chunk
    scheduler._run_chunk = lambda *given: ran.append(1) or run_chunk(*given)  # type: ignore
    plan, _ = step(scheduler)
    assert len([s for s in scheduler.running if s.num_pending > 1]) > 1
    assert len(ran) == len([piece for piece in plan.slices if piece.count > 1]) < 3


def test_a_step_says_why_those_who_wait_did_not_run() -> None:
    scheduler = make(max_num_seqs=2)
    for name in "abcd":
        scheduler.add(request(name, 8))
    step(scheduler)
    assert scheduler.waits.heads == (("c", NO_ROW),)
    assert scheduler.waits.reasons(2) == ((NO_ROW, 1), (BEHIND, 1))
    scheduler = make(num_blocks=12)
    scheduler.add(request("a", 100, max_tokens=4))
    while scheduler.counters.generation_tokens < 1:
        step(scheduler)
    scheduler.add(request("b", 150))
    step(scheduler)
    assert scheduler.waits.heads == (("b", NO_ROOM),) and scheduler.waits.reasons(1)[0][1] == 1
    assert sum(count for _, count in scheduler.waits.reasons(1)) == 1
    scheduler = make()
    for name in "abc":
        scheduler.add(request(name, 200))
    step(scheduler)
    assert scheduler.waits.reasons(2) == ((NO_BUDGET, 2),), "the step was full of the first's"
    while scheduler.waiting:
        step(scheduler)
    assert scheduler.waits.reasons(0) == ()
    twin = request("d", 200)
    scheduler = make(max_num_batched_tokens=512)
    scheduler.add(twin)
    scheduler.add(replace(twin, id="e"))
    scheduler.schedule(0.0)
    assert scheduler.waits.heads == (("e", HELD_BACK),)
