"""Bounds and promises over HTTP: what is refused, what it is told, and that nothing stays in the accounts."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from fakes import FakeEngine, InProcess, make_state
from octavo.core.errors import ErrorInfo
from octavo.core.result import EngineStats
from octavo.core.steptime import StepTime
from octavo.engine.frontend import Caller
from octavo.meter.metrics import Metrics
from octavo.server import limits
from octavo.server.admission.calibration import LEAST
from octavo.server.admission.desk import Admission, Bounds
from octavo.server.app import create_app

COMPLETIONS, CHATS, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
RESPONSES = "/v1/responses"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "hi", "max_tokens": 4},
    CHATS: CHAT,
    MESSAGES: {**CHAT, "model": "fake-model"},
    RESPONSES: {"input": "hi", "max_output_tokens": 4},
}
SECOND = StepTime(base_s=1.0, token_s=0.001, num_steps=1000)
"""A step takes a second: nothing comes sooner."""


def held(engine: FakeEngine, **options: Any) -> InProcess:
    """A server whose calls stop before their first token until `engine.release` is set."""
    engine.pause_after = 0
    return InProcess(make_state(engine, **options))


def taught(admission: Admission, factor: float = 1.0) -> None:
    """Let it know that predictions come true."""
    for calibration in (*admission._firsts, admission._outputs_s):
        for _ in range(LEAST):
            calibration.learn(factor, None)


async def until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


class Client:
    """Calls on one event loop, so that some can wait while others come."""

    def __init__(self, server: InProcess) -> None:
        transport = httpx.ASGITransport(server.app)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://test")

    def start(self, path: str, body: dict[str, Any]) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self._http.post(path, json=body))

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._http.post(path, json=body)


async def queue(server: InProcess, client: Client, body: dict[str, Any]) -> Any:
    """One call that waits in the engine, as the engine's statistics say."""
    engine: FakeEngine = server.state.engine  # type: ignore[assignment]  # made by the test
    task = client.start(COMPLETIONS, body)
    await until(lambda: engine.submitted)
    engine.stats = EngineStats(
        num_waiting=1, queued_tokens=engine.submitted[0].num_prompt, num_steps=1, step_time=SECOND
    )
    return task


@pytest.mark.parametrize(
    ("bounds", "body", "reason"),
    [
        (Bounds(num_requests=1), {"prompt": "more"}, "queued_reqs"),
        (Bounds(num_requests=2), {"prompt": "more", "n": 2}, "queued_reqs"),
        (Bounds(num_tokens=12), {"prompt": "more"}, "queued_tokens"),
        (Bounds(num_bytes=50), {"prompt": "more"}, "queued_bytes"),
    ],
)
def test_a_full_queue_is_429_at_once(bounds: Bounds, body: dict[str, Any], reason: str) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        server = held(engine, bounds=bounds)
        client = Client(server)
        first = await queue(server, client, {"prompt": "a" * 10, "max_tokens": 2})
        refused = await client.post(COMPLETIONS, body)
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == ("overloaded", "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        assert error["retry_after_s"] > 0
        assert len(engine.submitted) == 1, "the engine never hears of it"
        reasons = [("reason", reason)]
        assert server.state.metrics.value("vllm:admission_rejections_total", reasons) == 1
        engine.release.set()
        assert (await first).status_code == 200
        assert (await client.post(COMPLETIONS, {"prompt": "more"})).status_code == 200

    asyncio.run(scenario())


def test_a_call_that_no_queue_holds_is_the_callers_mistake() -> None:
    server = InProcess(make_state(bounds=Bounds(num_requests=3)))
    answer = server.post(COMPLETIONS, {"prompt": "a", "n": 4})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
    one = InProcess(make_state(bounds=Bounds(num_tokens=3)))
    assert one.post(COMPLETIONS, {"prompt": "longer than 3"}).status_code == 200, "an empty queue"


def test_what_waited_for_a_restart_teaches_nothing() -> None:
    now = 100.0
    engine = FakeEngine()
    engine.stats = EngineStats(num_steps=90, step_time=replace(SECOND, num_steps=90))
    admission = Admission(engine, Metrics("m"), clock=lambda: now)
    taught(admission)
    caller = Caller()
    before = [admission.quote(caller, 50, 1, 8) for _ in range(LEAST)]
    now = 160.0
    engine.stats = EngineStats(num_steps=91, step_time=replace(SECOND, num_steps=1))
    for quote in before:
        admission.learn_first(quote, 60.0, learns=True)
        admission.learn_output(quote, 60.0, [8])
    engine.stats = EngineStats(num_steps=180, step_time=replace(SECOND, num_steps=90))
    after = admission.quote(caller, 50, 1, 8)
    assert (after.factors, after.output_factor) == (before[0].factors, 1.0)
    now = 170.0
    for _ in range(LEAST):
        admission.learn_first(after, 9.0, learns=True)
    later = admission.quote(caller, 50, 1, 8)
    assert later.factors is not None and later.factors.high > 5, (
        "it is slow, and no restart says why"
    )


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", ["ttft_slo_ms", "deadline_ms"])
def test_what_would_miss_is_refused_with_the_prediction(path: str, field: str) -> None:
    async def scenario() -> None:
        server = held(FakeEngine())
        client = Client(server)
        taught(server.state.admission)
        first = await queue(server, client, {"prompt": "a" * 500, "max_tokens": 2})
        refused = await client.post(path, {**BODIES[path], field: 1200})
        assert refused.status_code == 429
        error = refused.json()["error"]
        if path != MESSAGES:  # whose errors have no code
            assert (error["code"], error["param"]) == ("would_miss_deadline", field)
        assert 1500 <= error["predicted_ttft_ms"] <= 2600
        assert error["predicted_finish_ms"] >= error["predicted_ttft_ms"]
        low, high = error["interval_ms"]
        assert low <= error["predicted_ttft_ms"] <= high
        assert error["queue_tokens"] == 500
        assert error["retry_after_s"] >= 1
        assert field.removesuffix("_ms") in str(server.state.metrics.render())
        taken = client.start(path, {**BODIES[path], field: 60_000})
        engine: FakeEngine = server.state.engine  # type: ignore[assignment]  # made above
        await until(lambda: len(engine.submitted) == 2)
        engine.release.set()
        assert {(await first).status_code, (await taken).status_code} == {200}
        assert server.state.admission.accounts.num_calls == 0

    asyncio.run(scenario())


def test_a_long_text_is_refused_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        server = held(FakeEngine())
        client = Client(server)
        taught(server.state.admission)
        first = await queue(server, client, {"prompt": "a" * 500, "max_tokens": 2})
        monkeypatch.setattr(server.state.frontend, "encode", None)
        refused = await client.post(COMPLETIONS, {"prompt": "x" * 1000, "ttft_slo_ms": 1000})
        assert refused.status_code == 429
        server.state.engine.release.set()  # type: ignore[attr-defined]  # a fake engine
        await first

    asyncio.run(scenario())


@pytest.mark.parametrize("path", BODIES)
def test_times_reach_the_engine(path: str) -> None:
    engine = FakeEngine()
    before = time.monotonic()
    body = {**BODIES[path], "deadline_ms": 5000, "ttft_slo_ms": 2000}
    assert InProcess(make_state(engine)).post(path, body).status_code == 200
    (request,) = engine.submitted
    assert request.deadline is not None and request.first_token_by is not None
    assert before + 5 <= request.deadline <= time.monotonic() + 5
    assert request.deadline - request.first_token_by == pytest.approx(3.0)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", ["deadline_ms", "ttft_slo_ms"])
@pytest.mark.parametrize("value", [0, -1, 10**18, 1.5, "5", True, [1], float("nan"), float("inf")])
def test_bad_times_are_refused_by_name(path: str, field: str, value: Any) -> None:
    engine = FakeEngine()
    # json writes NaN and Infinity, which no client should
    body = {**BODIES[path], field: value}
    answer = InProcess(make_state(engine)).call(
        "POST",
        path,
        content=str(body)
        .replace("'", '"')
        .replace("True", "true")
        .replace("nan", "NaN")
        .replace("inf", "Infinity"),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert not engine.submitted


def test_a_first_token_cannot_be_wanted_of_a_beam_search() -> None:
    body = {"prompt": "a", "use_beam_search": True, "n": 2, "ttft_slo_ms": 1000}
    answer = InProcess(make_state()).post(COMPLETIONS, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ttft_slo_ms")


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_that_passes_in_the_engine_is_504_or_an_error_in_the_stream(
    stream: bool,
) -> None:
    engine = FakeEngine()
    engine.failure = ErrorInfo(code="deadline_exceeded", message="over.", status=504)
    server = InProcess(make_state(engine))
    engine.fail_after = 0
    answer = server.post(COMPLETIONS, {"prompt": "a", "deadline_ms": 1000, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert answer.json()["error"]["type"] == "timeout_error"
    engine.fail_after = 2
    answer = server.post(COMPLETIONS, {"prompt": "a", "deadline_ms": 1000, "stream": stream})
    assert answer.status_code == (200 if stream else 504)
    assert '"code":"deadline_exceeded"' in answer.text
    assert not server.state.admission.accounts.lanes


def test_a_promise_that_is_broken_is_counted() -> None:
    engine = FakeEngine()
    engine.stats = EngineStats(num_steps=1, step_time=replace(SECOND, base_s=1e-9, token_s=0.0))
    state = make_state(engine)
    taught(state.admission)
    server = InProcess(state)
    assert server.post(COMPLETIONS, {"prompt": "a", "ttft_slo_ms": 60_000}).status_code == 200
    assert state.metrics.value("octavo:promises_total", [("kind", "ttft_slo")]) == 1
    assert state.metrics.value("octavo:promises_broken_total", [("kind", "ttft_slo")]) == 0
    assert state.metrics.value("octavo:ttft_prediction_ratio_count") == 1
    assert state.metrics.value("octavo:predicted_ttft_seconds_count") == 1

    async def late() -> None:
        engine.pause_after = 0
        body = {"prompt": "a", "ttft_slo_ms": 1000, "deadline_ms": 1000}
        call = Client(server).start(COMPLETIONS, body)
        await until(lambda: len(engine.submitted) == 2)
        state.admission.clock = lambda: time.monotonic() + 100
        engine.release.set()
        assert (await call).status_code == 200

    asyncio.run(late())
    for kind in ("ttft_slo", "deadline"):
        assert state.metrics.value("octavo:promises_broken_total", [("kind", kind)]) == 1
    assert state.metrics.value("octavo:ttft_interval_coverage") == 0.0, "its factor was 1"


def test_a_call_let_in_against_the_forecast_is_promised_nothing() -> None:
    engine = FakeEngine()
    engine.stats = EngineStats(num_steps=1, step_time=SECOND)
    state = make_state(engine)
    taught(state.admission)
    body = {"prompt": "a", "ttft_slo_ms": 10, "deadline_ms": 60_000}
    assert InProcess(state).post(COMPLETIONS, body).status_code == 200, "nothing else is under way"
    made = [
        state.metrics.value("octavo:promises_total", [("kind", kind)])
        for kind in ("ttft_slo", "deadline")
    ]
    assert made == [0, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_is_out_of_the_accounts_at_once(stream: bool) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        server = held(engine)
        accounts = server.state.admission.accounts
        gone = asyncio.Event()
        sent = [
            {
                "type": "http.request",
                "body": b'{"prompt": "a", "n": 3, "stream": %s}'
                % (b"true" if stream else b"false"),
            }
        ]

        async def receive() -> Any:
            if sent:
                return sent.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nothing is sent before a first token")

        scope = {
            "type": "http",
            "method": "POST",
            "path": COMPLETIONS,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        call = asyncio.ensure_future(create_app(server.state)(scope, receive, send))
        await until(lambda: len(engine.submitted) == 3)
        assert (accounts.num_calls, accounts.num_prompts, accounts.tokens) == (1, 3, 3)
        assert accounts.held_bytes > 0
        gone.set()
        await call
        assert (accounts.num_calls, accounts.num_prompts, accounts.tokens) == (0, 0, 0)
        assert (accounts.handed_tokens, accounts.held_bytes, accounts.lanes) == (0, 0, {})

    asyncio.run(scenario())


def test_work_in_the_background_stays_in_the_accounts_until_its_end() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        server = held(engine)
        accounts = server.state.admission.accounts
        client = Client(server)
        answer = await client.post(RESPONSES, {"input": "hi", "background": True})
        assert answer.json()["status"] in ("queued", "in_progress")
        assert (accounts.num_calls, accounts.held_bytes) == (1, 0)
        engine.release.set()
        await until(lambda: not accounts.num_calls)
        assert not accounts.lanes

    asyncio.run(scenario())


def test_load_tells_routers_what_waits_and_for_how_long() -> None:
    engine = FakeEngine()
    engine.stats = EngineStats(num_waiting=1, num_steps=1, step_time=SECOND)
    server = InProcess(make_state(engine))
    assert server.call("GET", "/load").json()["predicted_ttft_ms"] is None
    taught(server.state.admission)
    load = server.call("GET", "/load").json()
    assert (load["queued_tokens"], load["predicted_ttft_ms"]) == (0, 1001.0)
    engine.state = "loading"
    assert server.call("GET", "/load").json()["predicted_ttft_ms"] is None


def test_bytes_are_given_back_whatever_comes_of_the_call() -> None:
    server = InProcess(make_state())
    for body in (b"{", b'{"prompt": 5}', b'{"prompt": "a"}', b"x" * (limits.MAX_BODY_BYTES + 1)):
        server.call("POST", COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert server.state.admission.accounts.held_bytes == 0
