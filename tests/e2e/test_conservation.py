"""Laws of the metrics, at every scrape of a mixed run over the real engine: streams, choices, stop strings, aborts, errors."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from direct_engine import DirectEngine, state_of
from fakes import TEMPLATE, byte_tokenizer
from local_engine import write_tiny
from octavo.core.result import EngineStats
from octavo.server.app import create_app
from octavo.text.chat import ChatTemplate

REASONS = ("stop", "length", "abort", "error")
STAGES = ("waiting", "running", "elsewhere")
NUM_CALLS = 64
POISON = "~"
SAMPLE = re.compile(r"^([a-z:_0-9]+)\{([^}]*)\} (\S+)$", re.M)
OWN = re.compile(r'(?<![a-z_])(?!model_name|engine)[a-z_]+="([^"]*)"')


def scrape(text: str) -> dict[tuple[str, str], float]:
    """(sample, value of its own label) -> value."""
    return {
        (name, "".join(OWN.findall(labels))): float(value)
        for name, labels, value in SAMPLE.findall(text)
    }


def check(text: str) -> Counter[str]:
    """What holds at any moment; what was in flight, by stage."""
    at = scrape(text)
    ended = sum(at["vllm:request_success_total", reason] for reason in REASONS)
    in_flight = at["octavo:requests_in_flight", ""]
    stages = {stage: at["octavo:requests_by_stage", stage] for stage in STAGES}
    assert at["octavo:requests_received_total", ""] == ended + in_flight
    assert in_flight == sum(stages.values())
    for name in ("e2e_request_latency_seconds", "request_prompt_tokens"):
        assert at[f"vllm:{name}_count", ""] == ended
    assert at["vllm:request_generation_tokens_count", ""] == ended
    assert at["vllm:request_num_preemptions_count", ""] == ended
    received = at["octavo:requests_received_total", ""]
    assert at["vllm:request_max_num_generation_tokens_count", ""] == received
    waiting = [at["vllm:num_requests_waiting_by_reason", r] for r in ("capacity", "deferred")]
    assert at["vllm:num_requests_waiting", ""] == sum(waiting)
    given, chosen = at["vllm:generation_tokens_total", ""], at["octavo:sampled_tokens_total", ""]
    assert at["vllm:request_generation_tokens_sum", ""] <= given <= chosen
    begun = at["vllm:request_prefill_kv_computed_tokens_count", ""]
    assert at["vllm:time_to_first_token_seconds_count", ""] <= begun
    by_source = {
        source: at["vllm:prompt_tokens_by_source_total", source]
        for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
    }
    assert at["vllm:prompt_tokens_total", ""] == sum(by_source.values())
    assert at["vllm:prompt_tokens_cached_total", ""] == by_source["local_cache_hit"]
    computed = at["vllm:request_prefill_kv_computed_tokens_sum", ""]
    assert computed == by_source["local_compute"] <= at["octavo:computed_prompt_tokens_total", ""]
    return Counter({stage: int(value) for stage, value in stages.items()})


class Run:
    """Calls of all kinds, and what their callers were told."""

    def __init__(self, folder: Path) -> None:
        write_tiny(folder, vocab_size=260)
        options: dict[str, Any] = {
            "load_format": "dummy",
            "max_num_batched_tokens": 48,
            "max_num_seqs": 5,
            "inject": (f"nan:token={ord(POISON)}",),
            "fault_dir": str(folder / "faults"),
        }
        self.state = state_of(folder, byte_tokenizer(), ChatTemplate(TEMPLATE), **options)
        assert isinstance(self.state.engine, DirectEngine)
        self.engine = self.state.engine
        self.engine.watch(self.step)
        self.usage: Counter[str] = Counter()
        self.told: Counter[str] = Counter()
        self.dice = random.Random(11)
        self.seen: Counter[str] = Counter()
        self.num_scrapes = 0

    def body(self, kind: str) -> dict[str, Any]:
        prompt = "".join(self.dice.choice("abc") for _ in range(self.dice.randint(2, 90)))
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": self.dice.randint(1, 12), "seed": 1}
        match kind:
            case "choices":
                body["n"] = 3
            case "stop":
                body |= {"max_tokens": 200, "stop": ["e", "\x01", "\x02", " ", "t"], "seed": 5}
            case "poison":
                body["prompt"] = f"ab{POISON}"
            case "late":
                body |= {"max_tokens": 400, "ignore_eos": True, "deadline_ms": 30}
            case "gone":
                body |= {"max_tokens": 300, "ignore_eos": True, "stream": True}
                body["stream_options"] = {"include_usage": True}
            case "stream":
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            case "grammar":
                body["structured_outputs"] = {"regex": f"[a-z]{{{self.dice.randint(1, 4)}}}"}
            case "shared":
                body["prompt"] = "the same beginning of thirty-two and more characters" + prompt
        return body

    async def call(self, client: httpx.AsyncClient, kind: str) -> None:
        body = self.body(kind)
        if kind == "gone":
            task = asyncio.create_task(client.post("/v1/completions", json=body))
            for _ in range(self.dice.randint(5, 30)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if task.cancelled():
                return
            answer = task.result()  # it was done before
        else:
            answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            self.told["error"] += 1
            return
        if body.get("stream"):
            events = [part.removeprefix("data: ") for part in answer.text.split("\n\n") if part]
            chunks = [json.loads(part) for part in events[:-1]]
            self.usage.update({k: v for k, v in chunks[-1]["usage"].items() if isinstance(v, int)})
            ends = [c["finish_reason"] for part in chunks for c in part["choices"]]
        else:
            answered = answer.json()
            self.usage.update({k: v for k, v in answered["usage"].items() if isinstance(v, int)})
            ends = [choice["finish_reason"] for choice in answered["choices"]]
        self.told.update(end for end in ends if end is not None)

    def step(self, stats: EngineStats) -> None:
        """After a step of the engine, whose events nobody has read yet."""
        metrics = self.state.metrics
        metrics.observe_stats(stats)
        if stats.num_steps % 3 == 0:
            metrics.observe_stages(self.engine.stage)
            self.seen |= check(metrics.render().decode())
            self.num_scrapes += 1

    async def run(self) -> str:
        kinds = ["choices", "stop", "poison", "late", "gone", "stream", "grammar", "shared"]
        transport = httpx.ASGITransport(create_app(self.state))
        # A metrics reader is an operator; here nobody asks for keys.
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await self.state.frontend.prepare_grammars()
            calls = [self.call(client, kinds[i % len(kinds)]) for i in range(NUM_CALLS)]
            await asyncio.gather(*calls)
            while self.engine.local.link.inbox or self.engine.local.engine.scheduler.has_work:
                self.engine.local.step()  # what was cancelled last
            self.engine.tell()
            text = (await client.get("/metrics")).text
        self.state.frontend.close()
        return text


def test_laws_hold_at_every_scrape_of_a_mixed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCTAVO_TEST_BUILD", "1")
    run = Run(tmp_path)
    text = asyncio.run(run.run())
    assert check(text).total() == 0, "nothing is in flight any more"
    at = scrape(text)
    assert run.num_scrapes > 50, "while it ran"
    assert run.seen["waiting"] and run.seen["running"] > 1 and run.seen["elsewhere"], run.seen
    told = {reason: at["vllm:request_success_total", reason] for reason in REASONS}
    assert told["stop"] == run.told["stop"] > 0 and told["length"] == run.told["length"] > 0
    assert told["error"] == run.told["error"] > 0 and told["abort"] > 0
    assert at["vllm:corrupted_requests_total", ""] > 0
    answered = run.usage["completion_tokens"]
    assert (
        answered
        < at["vllm:generation_tokens_total", ""]
        == (at["vllm:request_generation_tokens_sum", ""])
    )
    wasted = at["vllm:generation_tokens_total", ""] - answered
    label = "octavo:aborted_tokens_total"
    aborted = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(label) and 'kind="output"' in line
    ]
    assert wasted == sum(aborted), "what was generated is in a usage, or was lost with its caller"
    assert at["vllm:iteration_tokens_total_count", ""] == run.engine.num_steps
    assert at["vllm:iteration_tokens_total_sum", ""] == run.engine.num_step_tokens
    admitted = at["vllm:request_queue_time_seconds_count", ""]
    begun = at["vllm:time_to_first_token_seconds_count", ""]
    assert admitted == begun > 0
    assert at["vllm:request_prefill_time_seconds_count", ""] == begun
    assert at["vllm:request_inference_time_seconds_count", ""] == begun
    assert at["vllm:request_decode_time_seconds_count", ""] == begun


def test_a_stop_string_is_no_abort(tmp_path: Path) -> None:
    """The engine is told to end, and what it computed for the answer was not in vain."""
    write_tiny(tmp_path, vocab_size=260)
    state = state_of(tmp_path, byte_tokenizer(), ChatTemplate(TEMPLATE), load_format="dummy")
    assert isinstance(state.engine, DirectEngine)
    scheduler = state.engine.local.engine.scheduler
    body = {"prompt": "abcd", "max_tokens": 100, "seed": 1, "ignore_eos": True}

    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        transport = httpx.ASGITransport(create_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            whole = (await client.post("/v1/completions", json=body)).json()
            stop = whole["choices"][0]["text"][10]
            cut = (await client.post("/v1/completions", json=body | {"stop": stop})).json()
        return whole, cut

    whole, cut = asyncio.run(ask())
    assert cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < whole["usage"]["completion_tokens"]
    state.engine.local.step()
    assert not scheduler.has_work
    assert scheduler.counters.aborted_tokens == 0
    state.metrics.observe_stats(scheduler.stats())
    assert state.metrics.value("octavo:aborted_computed_tokens_total") == 0
    value = state.metrics.value
    assert value("vllm:request_queue_time_seconds_count") == 2, "its times are known all the same"
    assert value("vllm:request_decode_time_seconds_count") == 2
    assert value("octavo:sampled_tokens_total") > value("vllm:generation_tokens_total") - 1
