"""Timeline, step log and metrics: parts that sum to the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from octavo.core.params import SamplingParams
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import EngineStats, RequestTiming, SliceResult, StepResult
from octavo.meter.catalogue import ALIASES, ROWS
from octavo.meter.metrics import Metrics, Outcome
from octavo.meter.steplog import StepLog, read_steplog
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


def test_step_log_knows_who_sat_in_which_row(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(capacity=2, path=path)
    prefill = Slice(row=0, start=0, count=4, sample=True)
    decode = Slice(row=0, start=4, count=1, sample=True, draft=(5, 6))
    done = StepResult(step=1, slices=(SliceResult(row=0, token_ids=(9,)),), elapsed_s=0.5)
    log.add(plan(1, [prefill], {0: "a"}, []), done)
    log.add(plan(2, [decode], {}, []), done)
    log.add(plan(3, [prefill], {0: "b"}, [0]), StepResult(step=3, slices=()))
    log.close()
    [last] = log.tail(1)
    assert (last.started, last.ended) == (("b",), ("a",))
    assert [record.step for record in log.tail(5)] == [2, 3], "a ring"
    assert log.tail(0) == [] and len(log) == 2
    everything = read_steplog(path)
    assert [record.slices[0].id for record in everything] == ["a", "a", "b"]
    assert [record.slices[0].num_sampled for record in everything] == [1, 1, 0]
    for record in everything:
        assert record.num_tokens == sum(piece.num_tokens for piece in record.slices)


def test_the_step_log_is_on_file_at_once_and_a_full_disk_ends_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(path=path)
    log.add(plan(1, [], {}, []), StepResult(step=1, slices=()))
    assert len(read_steplog(path)) == 1, "nobody closed it yet"
    log.close()
    full = StepLog(path=Path("/dev/full"))
    for step in (1, 2):
        full.add(plan(step, [], {}, []), StepResult(step=step, slices=()))
    assert len(full) == 2


def test_counters_grow_by_differences() -> None:
    metrics = Metrics("m")
    first = EngineStats(num_steps=5, generation_tokens=10, prefix_hits=3, last_step_tokens=2)
    metrics.observe_stats(first)
    metrics.observe_stats(first)
    assert metrics.value("vllm:generation_tokens_total") == 10
    assert metrics.value("vllm:iteration_tokens_total_count") == 1
    metrics.observe_stats(
        EngineStats(num_steps=6, generation_tokens=14, prefix_hits=3, num_blocks=10)
    )
    assert metrics.value("vllm:generation_tokens_total") == 14
    assert metrics.value("vllm:prompt_tokens_cached_total") == 3
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


def families() -> dict[str, str]:
    metrics = Metrics("m")
    metrics.observe_config(block_size=16, num_blocks=7, cache_dtype="float32")
    metrics.observe_startup([("weights", 1.5)])
    text = metrics.render().decode()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


# A name that dashboards read does not change: rows may be added here, not removed.
SNAPSHOT = {
    "octavo:build_info": "gauge",
    "octavo:canary_age_seconds": "gauge",
    "octavo:canary_failures": "counter",
    "octavo:canary_latency_seconds": "gauge",
    "octavo:canary_tokens_matched": "gauge",
    "octavo:aborted_computed_tokens": "counter",
    "octavo:aborted_tokens": "counter",
    "octavo:client_disconnects": "counter",
    "octavo:engine_restarts": "counter",
    "octavo:http_responses": "counter",
    "octavo:budget_used_ratio": "gauge",
    "octavo:charged_tokens": "counter",
    "octavo:cost_per_million_tokens": "gauge",
    "octavo:device_seconds": "counter",
    "octavo:ledger_up": "gauge",
    "octavo:wasted_device_seconds": "counter",
    "octavo:kv_epoch_mismatches": "counter",
    "octavo:request_faults": "counter",
    "octavo:predicted_ttft_seconds": "histogram",
    "octavo:promises": "counter",
    "octavo:promises_broken": "counter",
    "octavo:requests_in_flight": "gauge",
    "octavo:requests_received": "counter",
    "octavo:startup_seconds": "gauge",
    "octavo:tool_parse_errors": "counter",
    "octavo:ttft_interval_coverage": "gauge",
    "octavo:ttft_prediction_ratio": "histogram",
    "vllm:admission_rejections": "counter",
    "vllm:cache_config_info": "gauge",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:generation_tokens": "counter",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:iteration_tokens_total": "histogram",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:num_preemptions": "counter",
    "octavo:recomputed_tokens": "counter",
    "octavo:recomputed_seconds": "counter",
    "octavo:num_queued_tokens": "gauge",
    "octavo:num_pending_tokens": "gauge",
    "octavo:step_time_error_ratio": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:prefix_cache_hits": "counter",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:prompt_tokens_cached": "counter",
    "vllm:request_decode_time_seconds": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "vllm:request_inference_time_seconds": "histogram",
    "vllm:request_max_num_generation_tokens": "histogram",
    "vllm:request_num_preemptions": "histogram",
    "vllm:request_params_max_tokens": "histogram",
    "vllm:request_params_n": "histogram",
    "vllm:request_prefill_kv_computed_tokens": "histogram",
    "vllm:request_prefill_time_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_queue_time_seconds": "histogram",
    "vllm:request_success": "counter",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:time_to_first_token_seconds": "histogram",
}


def test_metric_names_and_types_snapshot() -> None:
    assert families() == SNAPSHOT
    assert {row.name for row in ROWS} | set(ALIASES) == set(SNAPSHOT)


def test_restarts_are_counted_by_what_the_engine_ended_from() -> None:
    metrics = Metrics("m")
    metrics.observe_restarts([("signal", 2)])
    metrics.observe_restarts([("signal", 2), ("fatal", 1)])
    assert metrics.value("octavo:engine_restarts_total", [("reason", "signal")]) == 2
    assert metrics.value("octavo:engine_restarts_total", [("reason", "fatal")]) == 1


def test_old_names_repeat_the_new_and_labels_are_everywhere() -> None:
    metrics = Metrics("m")
    metrics.observe_gap(0.3)
    metrics.observe_stats(EngineStats(num_blocks=4, num_free_blocks=1))
    text = metrics.render().decode()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('model_name="m"' in line and 'engine="0"' in line for line in samples)
    assert 'vllm:gpu_cache_usage_perc{engine="0",model_name="m"} 0.75' in text
    assert 'vllm:time_per_output_token_seconds_sum{engine="0",model_name="m"} 0.3' in text
    assert "_created" not in text
