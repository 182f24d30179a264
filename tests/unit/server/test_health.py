"""Each probe tells the truth about each state of the engine."""

from __future__ import annotations

import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.server.state import AppState

PROBES = ("/health", "/ping", "/livez", "/readyz", "/startupz", "/version", "/metrics", "/load")


def statuses(state: AppState) -> dict[str, int]:
    server = InProcess(state)
    return {path: server.call("GET", path).status_code for path in PROBES}


@pytest.mark.parametrize(
    ("engine_state", "failing"),
    [
        ("ready", set()),
        ("loading", {"/health", "/ping", "/readyz", "/startupz"}),
        ("restarting", {"/health", "/ping", "/readyz"}),
        ("dead", {"/health", "/ping", "/livez", "/readyz", "/startupz"}),
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
    state.begin_call()
    engine.seconds_since_progress = 3600.0
    assert state.stalled_for() is None, "an engine that restarts is waited for"


def test_draining_is_alive_and_healthy_and_not_ready() -> None:
    state = make_state()
    state.is_draining = True
    found = statuses(state)
    assert [path for path in PROBES if found[path] != 200] == ["/readyz"]
    refused = InProcess(state).post("/v1/completions", {"prompt": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


def test_a_hang_is_work_without_progress() -> None:
    engine = FakeEngine()
    state = make_state(engine)
    engine.seconds_since_progress = 3600.0
    assert state.stalled_for() is None, "idle is not hung"
    state.begin_call()
    assert state.stalled_for() is None, "the call has only just come"
    state.busy_since -= 120
    assert state.stalled_for() == pytest.approx(120, abs=1)
    assert statuses(state)["/livez"] == 503
    engine.seconds_since_progress = 5.0
    assert state.stalled_for() is None, "a step is under way"
    state.end_call()


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
