"""Deadlines and promises over a real engine: what expires ends, is never computed, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from direct_engine import DirectEngine, state_of
from octavo.core.assets import model_folder
from octavo.server.admission.calibration import LEAST
from octavo.server.admission.forecast import LEAST_STEPS
from octavo.server.app import create_app

COMPLETIONS = "/v1/completions"
LONG = {"prompt": "import os\n", "max_tokens": 1900, "ignore_eos": True}


class Calls:
    """A server over octavo-mini, one sequence at a time."""

    def __init__(self) -> None:
        folder = model_folder("octavo-mini")
        self.state = state_of(folder, max_num_seqs=1, kv_cache_memory_bytes=16 << 20)
        self.engine = self.state.engine
        assert isinstance(self.engine, DirectEngine)
        self.scheduler = self.engine.local.engine.scheduler
        transport = httpx.ASGITransport(create_app(self.state))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)

    async def post(self, body: dict[str, Any]) -> httpx.Response:
        return await self._http.post(COMPLETIONS, json=body)

    def is_at_rest(self) -> bool:
        """Whether nothing is left of any call."""
        accounts = self.state.admission.accounts
        left = (accounts.num_calls, accounts.tokens, accounts.held_bytes, len(accounts.lanes))
        free = self.scheduler.cache.num_free == self.scheduler.cache.num_blocks
        return left == (0, 0, 0, 0) and free and not self.scheduler.by_id


@pytest.fixture(scope="module")
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_what_runs(calls: Calls, stream: bool) -> None:
    async def scenario() -> None:
        answer = await calls.post({**LONG, "deadline_ms": 30, "stream": stream})
        if stream and answer.status_code == 200:
            events = [line for line in answer.text.split("\n\n") if '"error"' in line]
            error = json.loads(events[0].removeprefix("data: "))["error"]
        else:
            assert answer.status_code == 504
            error = answer.json()["error"]
        assert error["code"] == "deadline_exceeded"
        assert calls.is_at_rest()

    asyncio.run(scenario())


def test_what_expires_in_the_queue_is_never_computed(calls: Calls) -> None:
    async def scenario() -> None:
        before = calls.engine.stats.prompt_tokens
        runs = asyncio.create_task(calls.post({**LONG, "max_tokens": 300}))
        while not calls.scheduler.running:
            await asyncio.sleep(0)
        waits = await calls.post({"prompt": "x y z " * 50, "max_tokens": 2, "deadline_ms": 50})
        assert (waits.status_code, waits.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert "waited" in waits.json()["error"]["message"]
        done = (await runs).json()["usage"]
        assert done["completion_tokens"] == 300
        assert calls.engine.stats.prompt_tokens - before <= done["prompt_tokens"]
        assert calls.is_at_rest()

    asyncio.run(scenario())


def test_after_some_calls_a_queue_makes_promises(calls: Calls) -> None:
    async def scenario() -> None:
        for index in range(LEAST):
            await calls.post({"prompt": f"{index} = ", "max_tokens": 2})
        assert calls.engine.stats.step_time.num_steps >= LEAST_STEPS
        runs = asyncio.create_task(calls.post({**LONG, "max_tokens": 300}))
        while not calls.scheduler.running:
            await asyncio.sleep(0)
        refused = await calls.post({"prompt": "x " * 500, "max_tokens": 2, "ttft_slo_ms": 1})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        error = refused.json()["error"]
        assert error["code"] == "would_miss_deadline"
        low, high = error["interval_ms"]
        assert 0 < low <= error["predicted_ttft_ms"] <= high
        kept = await calls.post({"prompt": "x ", "max_tokens": 2, "ttft_slo_ms": 50_000})
        assert kept.status_code == (await runs).status_code == 200
        assert calls.state.metrics.value("octavo:promises_total", [("kind", "ttft_slo")]) == 1
        assert (
            calls.state.metrics.value("octavo:promises_broken_total", [("kind", "ttft_slo")]) == 0
        )
        assert calls.is_at_rest()

    asyncio.run(scenario())
