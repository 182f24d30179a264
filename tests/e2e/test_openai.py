"""The real HTTP server under the official client: answers, disconnects, shutdown, and metrics that add up."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fakes import MODEL, FakeEngine, ServerThread, make_state, running
from octavo.core.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.listen.listening import bind
from octavo.server.listen.protocol import MAX_HEAD_BYTES
from octavo.server.listen.serve import Server

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with running(FakeEngine(chunks=(2, 1, 3)), keys=("sk-test",)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server: ServerThread) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-test", max_retries=0) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=20, seed=3, n=2, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 20
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert answer.usage is not None and answer.usage.completion_tokens == 40
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 12


def test_chat_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "max_tokens": 40, "seed": 3}
    whole = client.chat.completions.create(**ask)
    stream = client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert "\ufffd" not in text.strip("\ufffd")
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="alias/model",
        prompt=["one", "two"],
        max_tokens=30,
        logprobs=1,
        stop=["fox"],
        seed=0,
        logit_bias={"65": 1},
        extra_body={"top_k": 4, "min_p": 0.1, "return_token_ids": True},
    )
    assert answer.model == "alias/model"
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.logprobs is not None for choice in answer.choices)
    streamed = client.completions.create(model=MODEL, prompt="one", max_tokens=30, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed)


def test_async_client(server: ServerThread) -> None:
    async def ask() -> list[str]:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=MESSAGES, max_tokens=30, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            again = [seed % 4 for seed in range(12)]
            return await asyncio.gather(*[one(seed) for seed in again])

    texts = asyncio.run(ask())
    assert texts[:4] == texts[4:8] == texts[8:]
    assert len(set(texts)) == 4


def test_errors_reach_the_client_as_its_own_types(client: openai.OpenAI, server: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, extra_body={"temprature": 1.0}
        )
    assert bad.value.param == "temprature" and bad.value.code == "unknown_field"
    assert bad.value.request_id and len(bad.value.request_id) == 32
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "alias/model"]
    assert client.models.retrieve("alias/model").id == "alias/model"


def post(port: int, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    payload = json.dumps(body)
    connection.request("POST", path, payload, {"content-type": "application/json"})
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pause_after", [0, 3])
@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": ["a", "b"], "n": 2}])
def test_a_disconnect_cancels_at_once(stream: bool, pause_after: int, body: dict[str, Any]) -> None:
    """The engine never goes on by itself here, so only the disconnect can end its requests."""
    engine = FakeEngine()
    engine.pause_after = pause_after
    num_requests = 4 if "n" in body else 1
    with running(engine) as server:
        connection = post(server.port, "/v1/completions", {**body, "stream": stream})
        for _ in range(num_requests):
            assert engine.paused.acquire(timeout=10)
        connection.close()
        for _ in range(num_requests):
            assert engine.ended.acquire(timeout=10)
        assert server.on_loop(lambda: len(engine.cancelled)) == num_requests
        assert engine.stats.num_running == 0 and not engine.finished
    state = server.state
    assert state.num_in_flight == 0
    aborted = state.metrics.value("vllm:request_success_total", [("finished_reason", "abort")])
    assert aborted == num_requests
    assert state.metrics.value("octavo:client_disconnects_total") == 1


def test_a_disconnect_in_the_middle_of_the_body() -> None:
    engine = FakeEngine()
    with running(engine) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            sock.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert http_get(server.port, "/livez").status == 200
    assert not engine.submitted


def http_get(port: int, path: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_draining_finishes_running_calls_and_refuses_new_ones() -> None:
    engine = FakeEngine()
    engine.pause_after = 2
    server = ServerThread(make_state(engine, shutdown_timeout=30.0))
    with server:
        connection = post(server.port, "/v1/completions", {"prompt": "a", "max_tokens": 5})
        assert engine.paused.acquire(timeout=10)
        server.on_loop(server.server.drain)
        assert http_get(server.port, "/readyz").status == 503
        assert http_get(server.port, "/livez").status == 200
        late = post(server.port, "/v1/completions", {"prompt": "b"})
        assert late.getresponse().status == 503
        late.close()
        server.on_loop(engine.release.set)
        answer = json.loads(connection.getresponse().read())
        assert answer["usage"]["completion_tokens"] == 5
        connection.close()
    assert len(engine.submitted) == 1


def test_draining_gives_up_after_the_timeout(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.pause_after = 0
    with running(engine, shutdown_timeout=0.0) as server:
        connection = post(server.port, "/v1/completions", {"prompt": "a"})
        assert engine.paused.acquire(timeout=10)
    assert engine.cancelled and server.state.num_in_flight == 0
    assert "1 calls get 0 s to finish; a second signal ends at once" in caplog.text
    connection.close()


def test_the_engine_ends_what_did_not_finish_before_connections_are_cut() -> None:
    engine = FakeEngine()
    engine.pause_after = 0
    state = make_state(engine, shutdown_timeout=0.0)

    async def stop() -> None:
        engine.release.set()

    state.on_stop = stop
    with ServerThread(state) as server:
        connection = post(server.port, "/v1/completions", {"prompt": "a", "max_tokens": 2})
        assert engine.paused.acquire(timeout=10)
    assert connection.getresponse().status == 200
    connection.close()


def test_headers_without_end_are_cut_off(server: ServerThread) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * MAX_HEAD_BYTES)
        assert sock.recv(4096).startswith(b"HTTP/1.1 400")
    long = {"prompt": "a", "stop": ["b" * 1000] * 16, "allowed_token_ids": [65] * 200_000}
    connection = post(server.port, "/v1/completions", long)
    for _ in range(2):  # on one connection, heads are counted one by one
        assert connection.getresponse().read()
        connection.request("GET", "/health", headers={"X": "a" * (MAX_HEAD_BYTES - 4096)})
    assert connection.getresponse().status == 200
    connection.close()


def test_signals_drain_then_stop_then_drop() -> None:
    state = make_state()
    server = Server(create_app(state), state.config)
    seen = []
    for _ in range(3):
        server.handle_exit(signal.SIGINT, None)
        seen.append((server.state.is_draining, server.should_exit, server.force_exit))
    assert seen == [(True, False, False), (True, True, False), (True, True, True)]


def test_the_server_answers_while_the_engine_loads() -> None:
    engine = FakeEngine()
    engine.state = "loading"
    with running(engine) as server:
        assert http_get(server.port, "/startupz").status == 503
        assert http_get(server.port, "/livez").status == 200
        engine.state = "ready"
        assert http_get(server.port, "/startupz").status == 200


def test_an_engine_that_cannot_start_ends_the_server() -> None:
    state = make_state()
    server = ServerThread(state)

    async def fail() -> None:
        raise ConfigError("no such model.")

    state.on_start = fail
    server._thread.start()
    server.join()
    assert isinstance(state.failure, ConfigError)


def test_a_taken_port_is_an_operator_error(server: ServerThread) -> None:
    state = make_state()
    config = type(state.config)(port=server.port)
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}") as taken:
        bind(config)
    assert taken.value.code == "E-NET-01" and "Stop the process" in taken.value.fix
    with pytest.raises(ConfigError, match="cannot listen on 203") as elsewhere:
        bind(type(state.config)(host="203.0.113.1"))
    assert "--host" in elsewhere.value.fix and "Stop the process" not in elsewhere.value.fix


def test_metrics_add_up_after_a_chaotic_run() -> None:
    """requests = stop + length + abort + error; first tokens = requests with one; usage = tokens."""
    dice = random.Random(7)
    engine = FakeEngine(chunks=(1, 2))
    num_tokens = num_requests = 0
    with running(engine) as server:
        for _ in range(40):
            engine.eos_after = dice.choice([None, 0, 3])
            engine.fail_after = dice.choice([None, None, 0, 2])
            engine.pause_after = dice.choice([None, None, None, 0, 2])
            n = dice.choice([1, 1, 3])
            body = {"prompt": "abcd", "n": n, "max_tokens": 6, "stream": dice.random() < 0.5}
            before = len(engine.submitted)
            connection = post(server.port, "/v1/completions", body)
            if engine.pause_after is not None:
                assert engine.paused.acquire(timeout=10)
            else:
                raw = connection.getresponse().read().decode()
                if not body["stream"] and '"usage"' in raw:
                    num_tokens += json.loads(raw)["usage"]["completion_tokens"]
            connection.close()
            num_requests += n
            for _ in range(len(engine.submitted) - before):
                assert engine.ended.acquire(timeout=10)
            server.on_loop(lambda: None)
    value = server.state.metrics.value
    ended = {
        reason: value("vllm:request_success_total", [("finished_reason", reason)])
        for reason in ("stop", "length", "abort", "error")
    }
    assert sum(ended.values()) == value("octavo:requests_received_total") == num_requests
    assert all(ended.values()), ended
    assert value("octavo:requests_in_flight") == 0
    assert engine.stats.num_running == 0
    with_tokens = value("vllm:request_prefill_kv_computed_tokens_count")
    assert value("vllm:time_to_first_token_seconds_count") == with_tokens
    assert value("vllm:request_generation_tokens_sum") >= num_tokens
    assert value("vllm:e2e_request_latency_seconds_count") == num_requests
