"""Calls ended at every state, in every way, leave nothing behind and change nothing for others.

`benchmarks/soak/cancel.py` is the long form: ten thousand rounds at random states.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cut_cases import CHATS, GOLDEN, POOLS, SCORES, TALKS, USER, offload, pooler, scorer, talker
from cuts import WAYS, Bench, Line, awaits, unnamed
from fakes import MODEL, FakeEngine, InProcess, ServerThread, make_state, running, sse_chunks

FILES = (
    "core/aio.py",
    "engine/beam.py",
    "engine/frontend.py",
    "engine/pooled.py",
    "server/call.py",
    "server/limits.py",
    "server/metered.py",
    "server/stream.py",
    "server/anthropic/*.py",
    "server/openai/[!bf]*.py",  # uploads and batch jobs ask no engine
    "server/responses/*.py",
)
NOT_WAITED = {
    "await close()": "what is closed has ended, or ends at once",
    "await source.aclose()": "the same",
    "await asyncio.gather(*waiting, return_exceptions=True)": "the same",
    "await _start(send)": "of a stream without a frame",
    "await self._frontend.with_grammar(request)": "compiled before, when the body was checked",
    "await self.grammars.compile(wanted)": "the same",
    "await self.grammars.learn()": "before the first call",
    "await self._app(scope, receive, send)": "no call but the server's own start and end",
    "await error_response(hidden, self._error_body)(scope, receive, watched)": "a defect of ours",
    "await _more(send, self._on_error(error))": "the engine failed",
    "await encode(state.frontend, body.suffix, add_special_tokens=False)": "needs a model that fills in",
    "await _stop(call, response_id)": "waits for another call, which is told to end",
    "await asyncio.gather(task, return_exceptions=True)": "the same",
}
"""Code -> why no call is ended there."""


async def every_state(bench: Bench, cases: dict[str, Any]) -> set[Line]:
    """End each call at each state in each way; where it stood."""
    seen: set[Line] = set()
    for name, case in cases.items():
        for way in WAYS:
            at, is_reached = 0, True
            while is_reached:
                try:
                    cut = await bench.round(case, at, way)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {way} at state {at}: {error}") from error
                seen |= cut.lines
                is_reached = cut.reached
                at += 1
            assert at > 2, f"{name} has no states"
    return seen


@pytest.mark.slow
def test_at_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in offload():
        monkeypatch.setattr(*one)
    seen = asyncio.run(every_state(talker(tmp_path / "talks"), TALKS))
    seen |= asyncio.run(every_state(pooler(tmp_path / "pools"), POOLS))
    seen |= asyncio.run(every_state(scorer(tmp_path / "scores"), SCORES))
    listed = {line: code for line, code in awaits(*FILES).items() if code not in NOT_WAITED}
    assert len(listed) > 50
    missed = [f"{line}: {code}" for line, code in listed.items() if line not in seen]
    assert not missed, "\n".join(missed)


def raw(path: str, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


def hang_up(server: ServerThread, sent: bytes, received: int, how: str) -> None:
    """Send a request, read so many bytes of its answer, then leave."""
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.settimeout(10)
        sock.sendall(sent)
        while received > 0 and (part := sock.recv(received)):
            received -= len(part)
        if how == "half":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_real_connections_end(tmp_path: Path) -> None:
    """Resets, half-closed and closed connections, in the middle of the request, before and within the answer."""
    bench = talker(tmp_path)
    long = {**GOLDEN.body, "max_tokens": 300, "ignore_eos": True}
    with ServerThread(bench.state) as server:
        for how in ("reset", "half", "close"):
            for stream in (True, False):
                whole = raw(CHATS, {**long, "stream": stream})
                cuts = [(40, 0), (len(whole) - 5, 0), (len(whole), 0)]
                cuts += [(len(whole), size) for size in (1, 200, 900, 5000) if stream]
                for sent, received in cuts:
                    hang_up(server, whole[:sent], received, how)

        def left() -> tuple[int, int, bool]:
            state = bench.state
            return len(state.calls), state.num_in_flight, bench.scheduler.has_work

        for _ in range(1000):  # each asks the server's own loop, which turns meanwhile
            if server.on_loop(left) == (0, 0, False):
                break
            if server.on_loop(left)[:2] == (0, 0):
                server.on_loop(lambda: bench.local.link.inbox and bench.local.step())
        assert server.on_loop(left) == (0, 0, False)
        assert bench.scheduler.cache.num_free == bench.num_free
        assert bench.scheduler.counters.aborted_tokens > 0
        aborted = (("reason", "disconnect"), ("kind", "output"))
        assert bench.state.metrics.value("octavo:aborted_tokens_total", aborted) > 0
        assert bench.state.metrics.value("octavo:client_disconnects_total") >= 20
        server.on_loop(lambda: bench.local.link.inbox and bench.local.step())


# -- by id ---------------------------------------------------------------------------------------------------------


def by_id(server: ServerThread, method: str, name: str, key: str = "one") -> httpx.Response:
    head = {"authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}/v1/requests/{name}", headers=head, timeout=10)


def test_end_a_stream_by_its_id() -> None:
    engine = FakeEngine()
    engine.pause_after = 4
    body = {**TALKS["chat stream"].body, "n": 2, "max_tokens": 9}
    body["stream_options"] = {"include_usage": True}
    with running(engine, keys=("one", "two")) as server:
        head = {"authorization": "Bearer one"}
        url = f"{server.url}{CHATS}"
        with httpx.stream("POST", url, json=body, headers=head, timeout=10) as answer:
            for _ in range(2):
                assert engine.paused.acquire(timeout=10)
            name = answer.headers["x-request-id"]
            for path, key, status in (
                (name, "two", 404),
                ("0" * 32, "one", 404),
                ("x", "one", 404),
            ):
                assert by_id(server, "DELETE", path, key).status_code == status
            seen = by_id(server, "GET", f"chatcmpl-{name}").json()
            assert (seen["state"], seen["num_choices"], seen["completion_tokens"]) == (
                "generating", 2, 8,
            )  # fmt: skip
            assert seen["params"]["temperature"] == 0 and seen["route"] == CHATS
            assert by_id(server, "DELETE", name).json()["state"] == "aborted"
            *chunks, last = sse_chunks(answer.read().decode())
        ends = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
        assert [end for end in ends if end] == ["abort", "abort"]
        assert last["usage"]["completion_tokens"] == 8
        assert by_id(server, "GET", name).json()["state"] == "aborted"
        assert (
            by_id(server, "GET", name, "two").json().keys()
            == by_id(server, "GET", name).json().keys()
        )
        assert by_id(server, "DELETE", name).status_code == 404, "there is nothing to end"
        metrics = server.state.metrics
        for kind, count in (("output", 8), ("prompt", last["usage"]["prompt_tokens"])):
            labels = (("reason", "api"), ("kind", kind))
            assert metrics.value("octavo:aborted_tokens_total", labels) == count
        ended = (("finished_reason", "abort"),)
        assert metrics.value("vllm:request_success_total", ended) == 2
        assert metrics.value("octavo:client_disconnects_total") == 0
    assert len(engine.cancelled) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_end_a_response_and_a_message(stream: bool) -> None:
    """Their answers say so in the words of their APIs."""
    engine = FakeEngine()
    engine.pause_after = 4
    for path, body in (
        ("/v1/responses", {"input": "hi", "stream": stream}),
        ("/v1/messages", {"model": MODEL, "messages": USER, "max_tokens": 9, "stream": stream}),
    ):
        with running(engine) as server, ThreadPoolExecutor(1) as threads:
            job = threads.submit(httpx.post, f"{server.url}{path}", json=body, timeout=10)
            assert engine.paused.acquire(timeout=10)
            (call,) = server.on_loop(lambda: list(server.state.calls))
            assert by_id(server, "DELETE", call.id).status_code == 200
            text = job.result().text
        engine.release = asyncio.Event()
        if stream:
            events = [json.loads(one.split("data: ")[1]) for one in text.strip().split("\n\n")]
            last = [
                one for one in events if one["type"] in ("response.incomplete", "message_delta")
            ]
            said = last[-1].get("response") or last[-1]["delta"]
        else:
            said = json.loads(text)
        assert said.get("status", "cancelled") == "cancelled"
        assert said.get("stop_reason", "abort") == "abort"


def test_ended_before_it_says_anything() -> None:
    """While the body is read, and while texts are embedded."""
    server = InProcess(make_state())

    async def half_a_body() -> tuple[int, dict[str, Any]]:
        parts = [{"type": "http.request", "body": b"{", "more_body": True}]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop() if parts else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CHATS, "query_string": b""}
        scope |= {"raw_path": b"", "headers": [(b"content-type", b"application/json")]}
        task = asyncio.ensure_future(server.app(scope, receive, send))
        while not len(server.state.calls):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        (call,) = server.state.calls
        answer = await server.acall("DELETE", f"/v1/requests/{call.id}")
        assert answer.json()["state"] == "aborted"
        await task
        return sent[0]["status"], json.loads(sent[1]["body"])

    status, body = asyncio.run(half_a_body())
    assert status == 499 and body["error"]["code"] == "request_aborted"
    assert len(server.state.calls) == 0


def test_ids_and_times_do_not_matter_to_the_comparison() -> None:
    assert unnamed(b'{"id":"cmpl-' + b"0f" * 16 + b'","created":123}') == b'{"id":"cmpl-",}'
    assert GOLDEN.body["stream"]
