"""Access lines: who called what, with the id; probes only when they fail; prompts only where the operator wants them."""

from __future__ import annotations

import logging

import pytest

from fakes import FakeEngine, InProcess, make_state

SAID = "tell me\na secret"
ASK = {"prompt": SAID, "max_tokens": 3}


def lines(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == name]


def test_calls_are_logged_and_quiet_probes_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    engine = FakeEngine()
    server = InProcess(make_state(engine, disable_access_log=False))
    for path in ("/livez", "/readyz", "/metrics", "/health", "/load"):
        server.call("GET", path)
    answer = server.call("POST", "/v1/completions?key=hidden", json=ASK)
    server.call("GET", "/nowhere%0A%22x")
    for engine.state in ("dead", "dead", "ready", "ready"):
        server.call("GET", "/livez")
    found = lines(caplog, "octavo.access")
    fields = [vars(record)["fields"] for record in found]
    assert [(one["path"], one["status"]) for one in fields] == [
        ("/v1/completions", 200),
        ("/nowhere%0A%22x", 404),
        ("/livez", 503),
        ("/livez", 200),
    ]
    assert answer.headers["x-request-id"] in found[0].getMessage()
    assert answer.headers["x-request-id"] in fields[0].values()
    assert "hidden" not in caplog.text and "secret" not in caplog.text
    assert "\n" not in found[1].getMessage()


def test_no_access_lines_where_they_are_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "octavo")
    InProcess(make_state()).call("POST", "/v1/completions", json=ASK)
    assert not lines(caplog, "octavo.access")


@pytest.mark.parametrize(
    ("limit", "shown"), [(0, None), (7, "tell me"), (12, "tell me\na se"), (99, SAID)]
)
def test_a_prompt_is_logged_as_far_as_the_operator_says(
    caplog: pytest.LogCaptureFixture, limit: int, shown: str | None
) -> None:
    caplog.set_level(logging.INFO, "octavo")
    state = make_state(enable_log_requests=True, max_log_len=limit)
    answer = InProcess(state).call("POST", "/v1/completions", json=ASK)
    [line] = lines(caplog, "octavo.server.metered")
    fields = vars(line)["fields"]
    assert shown in fields.values() if shown else "tell" not in str(fields)
    assert ("secret" in caplog.text) == (limit == 99)
    assert answer.headers["x-request-id"] in fields.values() and fields["num_output"] == 3
    assert "\n" not in line.getMessage()


def test_calls_are_counted_as_dashboards_read_them() -> None:
    engine = FakeEngine()
    state = make_state(engine)
    server = InProcess(state)
    server.call("POST", "/v1/completions", json=ASK)
    server.call("POST", "/v1/completions", json={})
    engine.fail_after = 0
    server.call("POST", "/v1/completions", json=ASK)
    where = [("handler", "/v1/completions"), ("method", "POST")]
    value = state.metrics.value
    found = [value("http_requests_total", [*where, ("status", f"{n}xx")]) for n in (2, 4, 5)]
    assert found == [1, 1, 1]
    assert value("http_request_duration_seconds_count", where) == 3
