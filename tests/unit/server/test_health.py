"""Each probe tells the truth about each state of the engine."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import get_args

import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.engine.page import Reading
from octavo.server.canary import Canary
from octavo.server.probes.trouble import Code
from octavo.server.state import AppState

PROBES = (
    "/health",
    "/healthz",
    "/ping",
    "/livez",
    "/readyz",
    "/startupz",
    "/version",
    "/metrics",
    "/load",
)


def reading(beat_age: float, step_age: float, allowed: float) -> Reading:
    return Reading(beat_age_s=beat_age, step_age_s=step_age, allowed_s=allowed, num_steps=3)


def statuses(state: AppState) -> dict[str, int]:
    server = InProcess(state)
    return {path: server.call("GET", path).status_code for path in PROBES}


@pytest.mark.parametrize(
    ("engine_state", "failing"),
    [
        ("ready", set()),
        ("loading", {"/health", "/healthz", "/ping", "/readyz", "/startupz"}),
        ("restarting", {"/health", "/healthz", "/ping", "/readyz"}),
        ("dead", {"/health", "/healthz", "/ping", "/livez", "/readyz", "/startupz"}),
    ],
)
def test_probes(engine_state: str, failing: set[str]) -> None:
    engine = FakeEngine()
    engine.state = engine_state
    found = statuses(make_state(engine))
    assert found == {path: 503 if path in failing else 200 for path in PROBES}


def test_reasons() -> None:
    engine = FakeEngine()
    server = InProcess(make_state(engine))
    engine.state = "loading"
    startup = server.call("GET", "/startupz").json()
    assert startup == {"state": "loading", "phase": "weights", "percent": 50.0, "reason": ""}
    assert server.call("GET", "/readyz").json()["reason"] == "loading: weights 50 %"
    engine.state = "dead"
    assert "killed by the test" in server.call("GET", "/livez").json()["reason"]
    engine.state = "ready"
    assert server.call("GET", "/startupz").json()["percent"] == 100.0


def test_a_restart_is_told_and_counted_and_calls_are_taken() -> None:
    engine = FakeEngine()
    state = make_state(engine)
    server = InProcess(state)
    engine.state, engine.restarts = "restarting", (("signal", 2),)
    reason = server.call("GET", "/readyz").json()["reason"]
    assert reason == "engine restarting: weights 50 %, after: killed by the test"
    metrics = server.call("GET", "/metrics").text
    assert (
        'octavo:engine_restarts_total{engine="0",model_name="fake-model",reason="signal"} 2.0'
        in metrics
    )
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 2}).status_code == 200


def test_draining_is_alive_and_healthy_and_not_ready() -> None:
    state = make_state()
    state.is_draining = True
    found = statuses(state)
    assert [path for path in PROBES if found[path] != 200] == ["/readyz"]
    refused = InProcess(state).post("/v1/completions", {"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


@pytest.mark.parametrize(
    ("pulse", "code"),
    [
        ((0.3, 0.0, 1.0), ""),
        ((0.3, 0.9, 1.0), ""),
        ((0.3, 1.1, 1.0), "engine_hung"),
        ((0.3, 30.0, 60.0), ""),
        ((0.9, 0.0, 1.0), ""),
        ((1.1, 0.0, 1.0), "engine_not_responding"),
        ((1.1, 9.0, 1.0), "engine_not_responding"),
    ],
)
def test_an_engine_that_does_not_get_on_is_not_ready(
    pulse: tuple[float, float, float], code: str
) -> None:
    engine = FakeEngine()
    engine.pulse = reading(*pulse)
    found = InProcess(make_state(engine)).call("GET", "/readyz")
    assert (found.status_code, found.json().get("code", "")) == (503 if code else 200, code)
    assert not code or re.search(r"\d\.\d s", found.json()["reason"])
    assert statuses(make_state(engine))["/livez"] == 200, "it may come back"


@pytest.mark.parametrize("pulse", [(16.5, 0.0, 1.0), (0.1, 80.0, 60.0)])
def test_one_that_stays_so_is_not_alive(pulse: tuple[float, float, float]) -> None:
    engine = FakeEngine()
    engine.pulse = reading(*pulse)
    assert statuses(make_state(engine))["/livez"] == 503
    engine.state = "loading"
    assert statuses(make_state(engine))["/livez"] == 200


def test_one_that_is_started_anew_is_alive_and_not_ready() -> None:
    engine = FakeEngine()
    engine.state = "restarting"
    server = InProcess(make_state(engine))
    assert server.call("GET", "/livez").status_code == 200
    assert server.call("GET", "/readyz").json()["code"] == "engine_restarting"


def test_every_trouble_has_its_row_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs/health.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \|", page, re.M)
    assert sorted(rows) == sorted(code for code in get_args(Code) if code)


def test_deep_health_says_what_it_is_read_from() -> None:
    engine = FakeEngine()
    engine.pulse = reading(0.1, 0.0, 1.0)
    state = make_state(engine)
    state.canary = Canary(engine, 30.0)
    server = InProcess(state)
    assert server.call("GET", "/healthz").json() == {"status": "ok"}
    before = server.call("GET", "/healthz?deep=1").json()
    assert before["canary"]["age_s"] is None and before["canary"]["tokens_expected"] == 0
    assert before["engine"]["steps"] == 3
    asyncio.run(state.canary.ask())
    engine.script = [5] * 8
    asyncio.run(state.canary.ask())
    answer = server.call("GET", "/healthz?deep=1")
    found = answer.json()
    assert (answer.status_code, found["code"]) == (503, "canary_mismatch")
    assert found["canary"]["tokens_expected"] == 8 and found["canary"]["failures"] == 1
    assert found["canary"]["tokens_matched"] < 8 and 0 <= found["canary"]["age_s"] < 5
    assert server.call("GET", "/readyz").json()["code"] == "canary_mismatch"
    text = server.call("GET", "/metrics").text
    assert re.search(r"^octavo:canary_failures_total\{.*\} 1.0$", text, re.M)
    assert not re.search(r"^octavo:requests_received_total\{.*\} [1-9]", text, re.M)
    engine.script = None
    asyncio.run(state.canary.ask())
    assert server.call("GET", "/readyz").status_code == 200


@pytest.mark.parametrize("query", ["deep=2", "deep=1&deep=1", "depth=1", "deep"])
def test_another_query_is_refused(query: str) -> None:
    assert InProcess(make_state()).call("GET", f"/healthz?{query}").status_code == 400


def test_the_canarys_age_is_no_number_until_there_is_one() -> None:
    text = InProcess(make_state()).call("GET", "/metrics").text
    assert re.search(r"^octavo:canary_age_seconds\{.*\} NaN$", text, re.M)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_calls_are_refused_until_ready(path: str) -> None:
    engine = FakeEngine()
    engine.state = "loading"
    body = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    answer = InProcess(make_state(engine)).post(path, body)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "service_unavailable_error"
    assert answer.headers["retry-after"] == "1"
    assert not engine.submitted
