"""Timeline, step log and metrics: parts that sum to the whole."""

from __future__ import annotations

import pytest

from octavo.core.params import SamplingParams
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import EngineStats, RequestTiming, SliceResult, StepResult
from octavo.meter.metrics import Metrics, Outcome
from octavo.meter.steplog import StepLog, Waits
from octavo.meter.timeline import Timeline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request(request_id: str, index: int = 0) -> Request:
    return Request(
        id=request_id,
        token_ids=(1, 2, 3, 4),
        params=SamplingParams(max_tokens=8),
        max_tokens=8,
        seed=1,
        arrived=10.0,
        index=index,
    )


def test_timeline_sums_to_the_whole() -> None:
    clock = Clock()
    timeline = Timeline(started=99.5, clock=clock)
    for name, seconds in (("imports", 1.0), ("config", 0.25), ("engine", 4.0), ("imports", 0.5)):
        timeline.phase(name)
        clock.now += seconds
        if name == "engine":
            timeline.explain([("weights", 2.5), ("warm up", 1.0)])
    timeline.stop()
    clock.now += 50
    assert timeline.total == pytest.approx(6.25)
    assert timeline.unexplained == pytest.approx(0.5)
    assert dict(timeline.parts()) == pytest.approx(
        {"imports": 1.5, "config": 0.25, "weights": 2.5, "warm up": 1.0, "engine": 0.5}
    )
    assert sum(part.seconds for part in timeline.parts()) + timeline.unexplained == timeline.total
    assert timeline.line() == (
        "imports 1.50 | config 0.25 | weights 2.50 | warm up 1.00 | engine 0.50"
        " | unexplained 0.50 = 6.25 s"
    )
    assert timeline.table().splitlines()[-1].split() == ["total", "6.25", "s", "100.0", "%"]


def plan(step: int, slices: list[Slice], starts: dict[int, str], ended: list[int]) -> StepPlan:
    begun = [
        SequenceStart(
            row=row,
            request=request(name),
            token_ids=(1, 2, 3, 4),
            blocks=((1,),),
            epochs=((1,),),
        )
        for row, name in starts.items()
    ]
    return StepPlan(step=step, slices=tuple(slices), starts=tuple(begun), ended=tuple(ended))


def test_step_log_knows_who_sat_in_which_row() -> None:
    log = StepLog(capacity=2)
    everything = []
    prefill = Slice(row=0, start=0, count=4, sample=True)
    decode = Slice(row=0, start=4, count=1, sample=True, draft=(5, 6))
    done = StepResult(step=1, slices=(SliceResult(row=0, token_ids=(9,)),), elapsed_s=0.5)
    for ran, result in (
        (plan(1, [prefill], {0: "a"}, []), done),
        (plan(2, [decode], {}, []), done),
        (plan(3, [prefill], {0: "b"}, [0]), StepResult(step=3, slices=())),
    ):
        log.add(ran, result)
        everything += log.tail(1)
    [last] = log.tail(1)
    assert (last.started, last.ended) == (("b",), ("a",))
    assert [record.step for record in log.tail(5)] == [2, 3], "a ring"
    assert log.tail(0) == [] and len(log) == 2
    assert [record.slices[0].id for record in everything] == ["a", "a", "b"]
    assert [record.slices[0].num_sampled for record in everything] == [1, 1, 0]
    for record in everything:
        assert record.num_tokens == sum(piece.num_tokens for piece in record.slices)


def test_steps_and_gaps_sum_to_the_clock() -> None:
    now = 50.0
    log = StepLog(clock=lambda: now)
    piece = Slice(
        row=0, start=4, count=1, sample=True, new_blocks=((7, 8), (3,)), new_epochs=((1, 2), (3,))
    )
    waits = Waits((("no_row", 1), ("behind", 2)), (("x", "no_row"),))
    prefill = Slice(row=0, start=0, count=4, sample=True)
    for step, (begun, pieces) in enumerate([(50.5, [prefill]), (52.0, [piece])], 1):
        result = StepResult(step=step, slices=(), elapsed_s=0.25)
        begins = {0: "a"} if step == 1 else {}
        log.add(
            plan(step, pieces, begins, []),
            result,
            begun,
            waits=waits,
            num_blocks=9,
            num_free_blocks=4,
        )
    first, second = log.tail(2)
    assert (first.gap_s, second.gap_s) == (0.5, 1.25)
    assert second.at == pytest.approx(first.at + first.elapsed_s + second.gap_s, abs=1e-6)
    assert (first.slices[0].blocks, second.slices[0].blocks) == ((1,), (7, 8)), "group 0 alone"
    assert second.waiting == waits.reasons and second.heads == waits.heads
    assert (second.num_blocks, second.num_free_blocks) == (9, 4)
    assert log.since(0, 1) == ((first,), 1, 0) and log.since(2, 5) == ((), 2, 0)


def test_counters_grow_by_differences() -> None:
    metrics = Metrics("m")
    first = EngineStats(num_steps=5, generation_tokens=10, prefix_hits=3, last_step_tokens=2)
    metrics.observe_stats(first)
    metrics.observe_stats(first)
    assert metrics.value("octavo:sampled_tokens_total") == 10
    assert metrics.value("vllm:iteration_tokens_total_count") == 1
    metrics.observe_stats(
        EngineStats(num_steps=6, generation_tokens=14, prefix_hits=3, num_blocks=10)
    )
    assert metrics.value("octavo:sampled_tokens_total") == 14
    assert metrics.value("vllm:prefix_cache_hits_total") == 3
    assert metrics.value("vllm:kv_cache_usage_perc") == 1.0


def outcome(reason: str, num_output: int) -> Outcome:
    timing = RequestTiming(arrived=10.0, admitted=11.0, first_token=12.0, last_token=15.0)
    none = RequestTiming(arrived=10.0, admitted=None, first_token=None, last_token=None)
    return Outcome(
        reason=reason,
        num_output=num_output,
        timing=timing if num_output else none,
        ended=16.0,
    )


def test_spans_of_a_request() -> None:
    metrics = Metrics("m")
    metrics.observe_started(request("a"))
    assert metrics.value("octavo:requests_in_flight") == 1
    metrics.observe_finished(request("a"), outcome("stop", 4))
    found = {
        name: metrics.value(f"vllm:request_{name}_seconds_sum")
        for name in ("queue_time", "prefill_time", "decode_time", "inference_time")
    }
    assert found == {
        "queue_time": 1.0,
        "prefill_time": 1.0,
        "decode_time": 3.0,
        "inference_time": 4.0,
    }
    assert metrics.value("vllm:request_time_per_output_token_seconds_sum") == 1.0
    assert metrics.value("vllm:e2e_request_latency_seconds_sum") == 6.0
    metrics.observe_started(request("b", index=1))
    metrics.observe_finished(request("b", index=1), outcome("error", 0))
    assert metrics.value("vllm:request_queue_time_seconds_count") == 1
    assert metrics.value("vllm:request_params_n_count") == 1
    assert metrics.value("octavo:requests_in_flight") == 0
