"""The laws of the metrics again, over an engine process that is killed among aborts, bad calls and calls that are turned away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from e2e.test_conservation import REASONS, check, scrape
from e2e.test_kills import config, until
from fakes import byte_tokenizer
from local_engine import write_tiny
from octavo.core.config import ServerConfig
from octavo.engine.client import EngineClient
from octavo.engine.frontend import Frontend
from octavo.meter.metrics import Metrics
from octavo.server.app import create_app
from octavo.server.auth import KeyRing
from octavo.server.state import AppState

GOOD: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0.0}
BAD = {"max_tokens": -1}
UNKNOWN = {"surely_not": 1}


def test_laws_hold_through_a_kill(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    told: Counter[int] = Counter()
    usage: Counter[str] = Counter()

    async def run() -> str:
        client = EngineClient(config(write_tiny(tmp_path, vocab_size=260), max_num_seqs=4))
        state = AppState(
            config=ServerConfig(disable_access_log=True, canary_interval=0.0),
            engine=client,
            frontend=Frontend(client, byte_tokenizer()),
            chat_template=None,
            served_names=("tiny",),
            metrics=Metrics("tiny"),
            scheduling_policy="fair",
            keys=KeyRing(),
        )
        client.watch(state.metrics.observe_stats)
        transport = httpx.ASGITransport(create_app(state))

        async def look() -> str:
            text = (await http.get("/metrics")).text
            seen.update(check(text))
            return text

        async def call(number: int, **options: Any) -> None:
            body = {"prompt": chr(97 + number % 26) * 30, **GOOD, "seed": number, **options}
            answer = await http.post("/v1/completions", json=body)
            told[answer.status_code] += 1
            if answer.status_code == 200:
                counts = answer.json()["usage"]
                usage.update({k: v for k, v in counts.items() if isinstance(v, int)})

        async with client, httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            await client.wait_ready()
            await look()
            calls = [asyncio.create_task(call(n)) for n in range(12)]
            gone = [asyncio.create_task(call(n, max_tokens=450)) for n in range(12, 15)]
            bad = [asyncio.create_task(call(n, **wrong)) for n, wrong in enumerate((BAD, UNKNOWN))]
            late = asyncio.create_task(call(20, ttft_slo_ms=1))  # a 429 where steps are timed yet
            await until(lambda: client.stats.generation_tokens > 100)
            await look()
            gone[0].cancel()
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: client.status().state == "restarting")
            gone[1].cancel()
            await look()
            await until(lambda: client.status().state == "ready")
            await look()
            gone[2].cancel()
            await asyncio.gather(*calls, *gone, *bad, late, return_exceptions=True)
            await until(lambda: client.stats.num_running + client.stats.num_waiting == 0)
            text = await look()
        state.frontend.close()
        return text

    text = asyncio.run(asyncio.wait_for(run(), 120))
    assert check(text).total() == 0, "nothing is in flight any more"
    at = scrape(text)
    ended = {reason: at["vllm:request_success_total", reason] for reason in REASONS}
    assert told[200] == ended["length"] >= 12 and ended["abort"] == 3
    assert told[400] == 2 and told.total() == 15 and told[200] + told[429] == 13
    received = at["octavo:requests_received_total", ""]
    assert received == told[200] + 3, "not those that were refused"
    assert seen["waiting"] and seen["running"]
    assert usage["completion_tokens"] == told[200] * 120
    given = at["vllm:generation_tokens_total", ""]
    wasted = at["vllm:request_generation_tokens_sum", ""] - usage["completion_tokens"]
    assert given == usage["completion_tokens"] + wasted, "each token once, whoever made it"
    assert at["octavo:engine_restarts_total", "signal"] == 1
