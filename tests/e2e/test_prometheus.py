"""A real Prometheus scrapes a loaded server and runs the rules and the dashboard's queries. Skipped where there is none."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from direct_engine import state_of
from fakes import TEMPLATE, ServerThread, byte_tokenizer
from local_engine import write_tiny
from octavo.text.chat import ChatTemplate

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = shutil.which("prometheus")
WITHIN_S = 20

pytestmark = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus is not installed (Debian: apt-get install prometheus)"
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """One that scrapes the target every second, with our own configuration otherwise."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "octavo.rules.yml", folder)
    port = free_port()
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            str(PROMETHEUS),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.kill()
        process.wait()
        log.close()


def ask(client: httpx.Client, path: str, **params: str) -> Any:
    try:
        answer = client.get(f"/api/v1/{path}", params=params).json()
    except (httpx.TransportError, json.JSONDecodeError):
        return None  # not up yet
    assert answer["status"] == "success", answer
    return answer["data"]


def eventually(what: Callable[[], Any]) -> Any:
    """What it says as soon as it says something: scrapes come when Prometheus makes them."""
    until = time.monotonic() + WITHIN_S
    while not (said := what()):
        assert time.monotonic() < until, "Prometheus never saw it"
        time.sleep(0.1)
    return said


def load(url: str, count: int) -> int:
    """Make calls; tokens that they were answered with."""
    total = 0
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in range(count):
            body = {"prompt": "abc" * (1 + number % 9), "max_tokens": 8, "n": 1 + number % 2}
            answer = client.post("/v1/completions", json=body).json()
            total += answer["usage"]["completion_tokens"]
    return total


def queries() -> Iterator[tuple[str, str]]:
    """(title, query) of all panels, with what Grafana would put in."""
    for panel in json.loads((DEPLOY / "grafana" / "octavo.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "10s")
            yield panel["title"], query.replace("$model", ".*").replace("$instance", ".*")


@pytest.mark.slow
def test_prometheus_scrapes_a_loaded_server(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model", vocab_size=260)
    tokenizer, template = byte_tokenizer(), ChatTemplate(TEMPLATE)
    state = state_of(tmp_path / "model", tokenizer, template, load_format="dummy")
    with (
        ServerThread(state) as server,
        prometheus(tmp_path, f"127.0.0.1:{server.port}") as client,
    ):

        def told(query: str) -> list[float]:
            found = ask(client, "query", query=query)
            return [float(one["value"][1]) for one in found["result"]] if found else []

        eventually(lambda: told("up == 1"))
        tokens = load(server.url, 6)
        eventually(lambda: told(f"vllm:generation_tokens_total == {tokens}"))
        tokens += load(server.url, 6)
        eventually(lambda: told(f"vllm:generation_tokens_total == {tokens}"))
        [target] = ask(client, "targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        [group] = ask(client, "rules")["groups"]
        eventually(
            lambda: all(r["health"] == "ok" for r in ask(client, "rules")["groups"][0]["rules"])
        )
        assert len(group["rules"]) == 13
        firing = [one["labels"]["alertname"] for one in ask(client, "alerts")["alerts"]]
        assert not firing, "nothing is wrong with this server"
        empty = []
        for title, query in queries():
            found = ask(client, "query", query=query)
            assert found is not None, query
            if not found["result"]:
                empty.append(title)
    # Series that begin with the first event of their kind, none of which happened here.
    assert set(empty) <= {
        "Requests that failed inside the engine",
        "Lost with callers who left",
        "Device time by account",
        "Cost per million tokens",
        "Budgets used",
        "Promises broken",
    }
