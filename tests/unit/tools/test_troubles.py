"""The troubles that `octavo doctor --url` looks for: each is seen where it is, and the docs show this very table.

Run as a script to write the page again.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.meter.catalogue import ROWS
from octavo.meter.metrics import Metrics
from octavo.tools import cli, troubles
from octavo.tools.cli import parser_of
from octavo.tools.flags import flags_of
from octavo.tools.samples import Samples
from octavo.tools.troubles import TROUBLES

PAGE = Path(__file__).parents[3] / "docs" / "troubleshooting.md"
HEADINGS = {
    "first token slow": "The first token comes late",
    "stutter": "Tokens come slowly, or in bursts",
    "memory": "Memory is short",
    "timeouts": "Calls are refused, time out or are given up",
    "low hit rate": "Few prompts are found in the prefix cache",
    "faults": "The engine fails",
}


def page() -> str:
    """docs/troubleshooting.md."""
    lines = [
        "# Troubleshooting",
        "",
        "`octavo doctor` looks at a machine before a start, `octavo doctor --security` at what a server exposes, and",
        "`octavo doctor --url http://HOST:PORT` at a server that runs: it reads `/healthz` and `/metrics` (an operator's key",
        "goes with `--api-key` or `OCTAVO_API_KEY`), looks for every row below, and ends with 1 when it finds one. Metrics",
        "count from the start of the server; `--seconds 60` looks at the next minute alone. Latencies and shares of fewer",
        f"than {troubles.LEAST} requests say nothing and are not judged.",
        "",
        "What a start refuses, or the log has with a code, is in [errors.md](errors.md).",
        "",
        "Written from `tools/troubles.py` by `tests/unit/tools/test_troubles.py`.",
    ]
    for symptom, heading in HEADINGS.items():
        lines += ["", f"## {heading}", "", "| looked for | cause | what to do |", "|---|---|---|"]
        lines += [f"| {t.sign} | {t.cause} | {t.fix} |" for t in TROUBLES if t.symptom == symptom]
    return "\n".join([*lines, ""])


def histogram(name: str, values: dict[float, int]) -> str:
    """Prometheus text of observations: value -> how often; bounds at powers of two of a millisecond."""
    bounds = [0.001 * 2**exponent for exponent in range(18)]
    lines = [f"# TYPE {name} histogram"]
    for bound in [*bounds, float("inf")]:
        below = sum(times for value, times in values.items() if value <= bound)
        le = "+Inf" if bound == float("inf") else repr(bound)
        lines.append(f'{name}_bucket{{le="{le}"}} {below}')
    total = sum(value * times for value, times in values.items())
    return "\n".join([*lines, f"{name}_sum {total}", f"{name}_count {sum(values.values())}"])


def counter(name: str, value: float) -> str:
    return f"# TYPE {name} counter\n{name}_total {value}"


def gauge(name: str, value: float) -> str:
    return f"# TYPE {name} gauge\n{name} {value}"


SLOW_FIRST = histogram(troubles.TTFT, {0.2: 5, 6.0: 95})
QUEUED = SLOW_FIRST + "\n" + histogram(troubles.QUEUE, {0.1: 5, 5.0: 95})
ENDED = counter("vllm:request_success", 100)
SIGNS: dict[str, list[str]] = {
    "queue: places": [QUEUED, gauge(troubles.KV, 0.4)],
    "queue: memory": [QUEUED, gauge(troubles.KV, 0.93)],
    "long prompts": [SLOW_FIRST, histogram(troubles.PREFILL, {0.1: 5, 5.0: 95})],
    "prompts in between": [histogram(troubles.ITL, {0.03: 950, 0.9: 50})],
    "slow steps": [histogram(troubles.ITL, {0.5: 1000})],
    "uneven steps": [
        gauge("octavo:step_time_error_ratio", 3.5),
        histogram("vllm:iteration_tokens_total", {1.0: 500}),
    ],
    "preemptions": [ENDED, counter("vllm:num_preemptions", 30)],
    "full cache": [gauge(troubles.KV, 0.99), gauge("vllm:num_requests_waiting", 4)],
    "refused": [
        counter("octavo:requests_received", 100),
        counter("vllm:admission_rejections", 9),
    ],
    "promises broken": [counter("octavo:promises", 50), counter("octavo:promises_broken", 9)],
    "clients hang up": [ENDED, counter("octavo:client_disconnects", 12)],
    "nothing shared": [
        counter("vllm:prefix_cache_queries", 50_000),
        counter("vllm:prefix_cache_hits", 100),
        gauge(troubles.KV, 0.4),
    ],
    "evicted": [
        counter("vllm:prefix_cache_queries", 50_000),
        counter("vllm:prefix_cache_hits", 100),
        gauge(troubles.KV, 0.94),
    ],
    "cache off": [counter("vllm:prompt_tokens", 50_000)],
    "engine restarts": [counter("octavo:engine_restarts", 1)],
    "failed requests": [counter("octavo:request_faults", 1)],
    "foreign blocks": [counter("octavo:kv_epoch_mismatches", 1)],
    "canary": [counter("octavo:canary_failures", 2)],
    "ledger": [gauge("octavo:ledger_up", 0)],
}


def seen(text: str) -> list[str]:
    samples = Samples.parse(text)
    return [trouble.name for trouble in TROUBLES if trouble.look(samples) is not None]


def test_the_page() -> None:
    assert PAGE.read_text() == page()
    assert {trouble.symptom for trouble in TROUBLES} == set(HEADINGS)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_each_trouble_is_seen_alone_and_told_with_a_fix(trouble: troubles.Trouble) -> None:
    text = "\n".join(SIGNS[trouble.name]) + "\n"
    assert seen(text) == [trouble.name]
    told = trouble.look(Samples.parse(text))
    assert told is not None
    assert re.search(r"\d", told), "no number"
    assert trouble.fix.endswith(".")


def test_a_server_without_load_has_no_troubles() -> None:
    assert seen(Metrics("m").render().decode()) == []


def test_metrics_and_flags_that_are_named_exist() -> None:
    source = inspect.getsource(troubles)
    known = {row.name for row in ROWS}
    for name in set(re.findall(r"(?:vllm|octavo):[a-z_]+", source)):
        plain = re.sub(r"_(total|count|sum|bucket)$", "", name)
        assert name in known or plain in known or re.sub(r"_count$", "", name) in known, name
    options = {option for action in parser_of("serve")._actions for option in action.option_strings}
    for name in set(re.findall(r"--[a-z-]+", source)) - {"--url"}:
        assert name in options, name
    assert "max_itl_ms" in {flag.field for flag in flags_of(EngineConfig)}


def test_quantiles_lie_within_their_bucket() -> None:
    samples = Samples.parse(histogram("x", {0.0015: 50, 0.1: 50}) + "\n")
    assert samples.quantile("x", 0.25) == pytest.approx(0.0015)
    assert 0.064 < (samples.quantile("x", 0.9) or 0) < 0.128
    assert samples.quantile("y", 0.5) is None
    beyond = Samples.parse(histogram("x", {1000.0: 3}) + "\n")
    assert beyond.quantile("x", 0.5) == pytest.approx(0.001 * 2**17)


def test_a_change_between_two_readings() -> None:
    early = counter("c", 10) + "\n" + gauge("g", 5) + "\n" + histogram("h", {0.1: 5}) + "\n"
    late = counter("c", 14) + "\n" + gauge("g", 2) + "\n" + histogram("h", {0.1: 5, 9.0: 1}) + "\n"
    change = Samples.parse(late).since(Samples.parse(early))
    assert (change.total("c_total"), change.total("g")) == (4, 2)
    assert change.total("h_count") == 1
    assert (change.quantile("h", 0.5) or 0) > 8
    again = Samples.parse(early).since(Samples.parse(late))
    assert again.total("c_total") == 10, "it was restarted between the readings"


class Server(BaseHTTPRequestHandler):
    """Says what a test put in."""

    health: tuple[int, str] = (200, '{"status": "ok"}')
    metrics = ""
    key: str | None = None

    def do_GET(self) -> None:
        status, body = self.health
        if self.path == "/metrics":
            is_known = self.key in (None, (self.headers["authorization"] or "")[7:])
            status, body = (200, self.metrics) if is_known else (401, "{}")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_live_server(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "metrics", Metrics("m").render().decode())
    assert cli.main(["doctor", "--url", url]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    monkeypatch.setattr(Server, "metrics", "\n".join(SIGNS["preemptions"]) + "\n")
    assert cli.main(["doctor", "--url", url]) == 1
    out = capsys.readouterr().out
    assert "memory: preemptions" in out
    assert "Lower --max-num-seqs" in out
    assert "stutter" not in out
    monkeypatch.setattr(
        Server, "health", (503, '{"code": "engine_dead", "reason": "killed by signal 9"}')
    )
    assert cli.main(["doctor", "--url", url, "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert data["checks"][0]["status"] == "fail"
    assert "killed by signal 9" in data["checks"][0]["detail"]
    assert len(data["checks"]) == 1 + len(TROUBLES)
    assert cli.main(["doctor", "--url", url, "--seconds", "0.01"]) == 1
    assert "preemptions" not in capsys.readouterr().out, "it was before"


def test_keys_and_what_is_no_server(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "metrics", Metrics("m").render().decode())
    monkeypatch.setattr(Server, "key", "operator-key")
    assert cli.main(["doctor", "--url", url]) == 2
    assert "--api-key" in capsys.readouterr().err
    assert cli.main(["doctor", "--url", url, "--api-key", "operator-key"]) == 0
    monkeypatch.setenv("OCTAVO_API_KEY", "operator-key")
    assert cli.main(["doctor", "--url", url]) == 0
    monkeypatch.setattr(Server, "metrics", "<html>{{{")
    assert cli.main(["doctor", "--url", url]) == 2
    monkeypatch.setattr(Server, "health", (200, "<html>"))
    assert cli.main(["doctor", "--url", url]) == 2
    assert cli.main(["doctor", "--url", "ftp://x"]) == 2
    assert cli.main(["doctor", "--url", "http://127.0.0.1:9"]) == 2
    assert cli.main(["doctor", "--url", url, "--flags", ""]) == 2
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        monkeypatch.setattr("octavo.tools.doctor_live._MAX_BYTES", 100)
        monkeypatch.setattr(Server, "health", (200, "x" * 101))
        from octavo.tools import doctor_live

        doctor_live.examine(url)


if __name__ == "__main__":
    PAGE.write_text(page())
