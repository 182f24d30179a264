"""The ledger over a real engine process that is overfull, whose callers leave, and which is killed: it closes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.test_kills import config, until
from fakes import byte_tokenizer
from local_engine import write_tiny
from octavo.core.config import ServerConfig
from octavo.engine.client import EngineClient
from octavo.engine.frontend import Frontend
from octavo.meter.metrics import Metrics
from octavo.server.app import create_app
from octavo.server.auth import KeyRing
from octavo.server.costs.report import usage
from octavo.server.costs.store import LedgerStore
from octavo.server.costs.tags import ACCOUNTS
from octavo.server.keys.store import KeyStore
from octavo.server.state import AppState
from octavo.tools.cli import main
from security.keyed import make_key

MODEL = "tiny"


def state_of(client: EngineClient, folder: Path, url: str) -> AppState:
    state = AppState(
        config=ServerConfig(disable_access_log=True, canary_interval=0.0, device_price=3.6),
        engine=client,
        frontend=Frontend(client, byte_tokenizer()),
        chat_template=None,
        served_names=(MODEL,),
        metrics=Metrics(MODEL),
        scheduling_policy="fair",
        keys=KeyRing((), folder / "keys"),
    )
    state.costs.open(url)
    client.charge_to(state.costs.book)
    state.costs.set_pace = client.charge_every
    return state


async def ask(http: httpx.AsyncClient, key: str, feature: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-octavo-feature": feature}
    fields = {"prompt": "a" * 40, "max_tokens": 200, "ignore_eos": True, **body}
    return await http.post("/v1/completions", json=fields, headers=headers)


def test_it_closes_over_aborts_preemptions_and_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    with KeyStore(tmp_path / "keys", create=True) as keys:
        ann = make_key(keys, "ann", tenant="ann")
        bob = make_key(keys, "bob", tenant="bob")
        boss = make_key(keys, "boss", tenant="boss", role="operator")

    async def run() -> tuple[AppState, dict[str, Any], dict[str, Any], int]:
        folder = write_tiny(tmp_path / "model")
        client = EngineClient(config(folder, kv_cache_memory_bytes=96 << 10))
        state = state_of(client, tmp_path, url)
        transport = httpx.ASGITransport(create_app(state))
        beside = asyncio.create_task(state.costs.run())
        async with client, httpx.AsyncClient(transport=transport, base_url="http://t") as http:
            await client.wait_ready()
            await state.costs.opened()
            calls = [
                asyncio.create_task(
                    ask(http, key, feature, prompt=chr(97 + n) * (20 + n), max_tokens=100 + 20 * n)
                )
                for n in range(6)
                for key, feature in ((ann, "search"), (bob, "chat"))
            ]
            await until(lambda: client.stats.generation_tokens > 200)
            calls[0].cancel()
            calls[3].cancel()
            await until(lambda: client.stats.generation_tokens > 400)
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            good = [one for one in answers if isinstance(one, httpx.Response)]
            assert len(good) == 10 and all(one.status_code == 200 for one in good)
            await until(lambda: client.stats.num_running == 0)
            await asyncio.wait_for(state.costs.turn(), 10)
            mine, all_of_it = [
                (await http.get("/v1/usage?by=tenant,feature", headers=head)).json()
                for head in (
                    {"authorization": f"Bearer {ann}"},
                    {"authorization": f"Bearer {boss}"},
                )
            ]
            tokens = sum(one.json()["usage"]["completion_tokens"] for one in good)
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)
        await state.costs.close()
        return state, mine, all_of_it, tokens

    state, mine, all_of_it, tokens = asyncio.run(asyncio.wait_for(run(), 120))
    store = LedgerStore(url, create=False)
    report = usage(store, ["tenant"], 0.0)
    assert report.accounts is not None and report.covered_s is not None
    spent = {one.name: one.device_s for one in report.accounts}
    assert sum(spent.values()) == pytest.approx(report.covered_s, rel=1e-3)
    wall_s = time.time() - state.costs.book.began
    assert report.covered_s == pytest.approx(wall_s, abs=1.0)
    for account in ("prefill", "decode", "aborted", "failover", "startup", "idle", "overhead"):
        assert spent[account] > 0, (account, spent)
    assert set(spent) == set(ACCOUNTS)
    assert [line["by"] for line in mine["data"]] == [{"tenant": "ann", "feature": "search"}]
    assert mine["accounts"] is None
    assert {line["by"]["tenant"] for line in all_of_it["data"]} == {"ann", "bob"}
    rows = store.requests(100)
    store.close()
    assert len(rows) == 12 and sum(row["reason"] == "abort" for row in rows) == 2
    assert sum(row["output"] for row in rows if row["reason"] == "length") == tokens
    paid = sum(row["prefill_s"] + row["decode_s"] for row in rows)
    assert paid == pytest.approx(spent["prefill"] + spent["decode"] + spent["aborted"], rel=1e-6)
    assert sum(row["cost"] for row in rows) == pytest.approx(paid / 3600 * 3.6)
    _check_command(url, tmp_path, capsys)


def _check_command(url: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`octavo cost` over the same ledger."""
    assert main(["cost", "--ledger-url", url, "--by", "tenant,feature"]) == 0
    text = capsys.readouterr().out
    assert "search" in text and "failover" in text and "the accounts differ by" in text
    prices = folder / "prices.yaml"
    prices.write_text("prices: [{name: shop, input: 0.1, output: 0.4}]\n")
    words = ["cost", "--ledger-url", url, "--prices", str(prices), "--json"]
    assert main(words) == 0
    (offer,) = json.loads(capsys.readouterr().out)["prices"]
    assert offer["bought"] > 0 and offer["saved"] == pytest.approx(offer["bought"] - offer["own"])
    assert main(["cost", "--ledger-url", url, "--csv", "--by", "tenant"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("tenant,requests,prompt_tokens") and len(lines) == 2
    assert main(["cost", "--state-dir", str(folder / "none")]) == 2
    assert "E-COST-01" in capsys.readouterr().err
