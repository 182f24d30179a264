"""One fixture for each way in which a benchmark has been wrong (needs.md 24)."""

import json

import msgspec
import pytest

from octavo.tools.bench import report, validity
from octavo.tools.bench.stats import Record
from octavo.tools.bench.validity import ClientHealth, Declared

IDLE = ClientHealth(cpu_share=0.2, lag_p99_s=0.002, late_p99_s=0.003)


def record(index: int, *, ttft=0.1, gap=0.01, **fields) -> Record:
    sent = index * 0.1
    times = tuple(sent + ttft + gap * i for i in range(16))
    shape = {"output_tokens": 16, "asked_tokens": 16, "prompt_tokens": 8, "cached_tokens": 0}
    return Record(
        index=index,
        due=sent,
        sent=sent,
        done=times[-1],
        chunk_times=times,
        **(shape | fields),
    )


def causes(records, client=IDLE, declared=None, repeated_share=0.0) -> set[str]:
    found = validity.invalid_because(records, client, declared or Declared(), repeated_share)
    assert all(reason.text for reason in found)
    return {reason.cause for reason in found}


def good(count=100, **fields) -> list[Record]:
    return [record(index, **fields) for index in range(count)]


def test_a_good_run_is_valid():
    assert causes(good()) == set()
    assert validity.warnings(good()) == []


@pytest.mark.parametrize("field", ["cpu_share", "lag_p99_s", "late_p99_s"])
def test_saturated_client(field):
    client = msgspec.structs.replace(IDLE, **{field: 0.95})
    assert causes(good(), client) == {"client-saturated"}


def test_outputs_that_ran_short():
    # TRT-LLM#6294: "128/128" delivered 28 tokens per request.
    records = good(output_tokens=28, asked_tokens=128)
    assert causes(records) == {"short-outputs"}
    assert causes(records, declared=Declared(allow_short=True)) == set()


def test_errors():
    # guidellm#444: failed requests counted as if they had been served.
    assert causes([*good(), record(100, error="boom")]) == {"errors"}


def test_warm_cache_that_the_server_reports():
    # vllm#52884: a warm prefix cache gave +86 % on "random" prompts.
    records = good(cached_tokens=4)
    assert causes(records) == {"warm-cache"}
    assert causes(records, declared=Declared(warm_cache=True)) == set()


def test_repeated_prompts():
    assert causes(good(), repeated_share=0.5) == {"warm-cache"}
    assert causes(good(), declared=Declared(warm_cache=True), repeated_share=0.5) == set()


def test_too_few_requests():
    assert causes(good(19)) == {"too-few-requests"}
    assert causes([]) == {"too-few-requests"}


def test_drift():
    # vllm#43078: the first requests paid for a missing warm-up.
    slow_first = [record(i, gap=0.05 if i < 60 else 0.01) for i in range(100)]
    assert causes(slow_first) == {"drift"}


def test_a_growing_queue_is_drift_only_where_arrivals_are_spread():
    records = [record(i, ttft=0.1 + i * 0.02) for i in range(100)]
    assert causes(records) == set()
    assert causes(records, declared=Declared(is_rate_limited=True)) == {"drift"}


def test_small_differences_are_no_drift():
    assert causes([record(i, gap=0.0001 if i < 50 else 0.0003) for i in range(100)]) == set()


def test_answers_in_one_piece():
    # hungchun week-01: a "TTFT" that is the e2e time.
    records = [
        Record(
            index=i,
            due=i,
            sent=i,
            done=i + 1,
            chunk_times=(i + 1,),
            output_tokens=128,
            asked_tokens=128,
            prompt_tokens=1,
        )
        for i in range(30)
    ]
    assert causes(records) == {"not-streamed"}


def test_warnings():
    texts = " ".join(validity.warnings(good(30, cached_tokens=None, prompt_tokens=0)))
    assert "fewer than 100" in texts
    assert "would go unseen" in texts
    assert "counted as chunks" in texts


def make(records, **declared) -> report.Report:
    return report.make(
        records,
        IDLE,
        Declared(**declared),
        repeated_share=0.0,
        objectives_ms={"ttft": 500},
        origin=report.Origin({"num_prompts": len(records)}, {"cpu": "x"}),
    )


def test_the_stamp_stands_before_and_after_the_numbers():
    text = report.to_text(make([*good(), record(100, error="boom")]))
    lines = text.splitlines()
    assert lines[0].startswith("INVALID (errors): 1 of 101 requests failed; the first: boom")
    assert lines[-1] == lines[0]


def test_a_valid_report():
    text = report.to_text(make(good()))
    assert "INVALID" not in text
    assert text.endswith("VALID")
    assert "goodput" in text
    assert "TTFT (ms)" in text
    assert report.to_text(make([]))


def test_json_holds_everything():
    made = make([*good(), record(100, error="boom")])
    data = json.loads(report.to_json(made))
    assert data["valid"] is False
    assert data["invalid_because"][0]["cause"] == "errors"
    assert data["environment"] == {"cpu": "x"}
    assert data["arguments"] == {"num_prompts": 101}
    assert len(data["requests"]) == 101
    assert data["latencies_ms"]["ttft"]["p50"] == pytest.approx(100)
    assert data["goodput"]["good"] == 100
