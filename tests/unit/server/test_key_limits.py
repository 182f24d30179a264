"""What a key may use at once, on every route that generates: refused in the shape of its API, and given back at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes import FakeEngine, InProcess, make_state
from octavo.core.errors import EngineError
from octavo.server.auth import KeyRing
from octavo.server.keys.rows import Limits
from octavo.server.keys.store import KeyStore
from octavo.server.response_store import ResponseStore
from octavo.server.responses import endpoint
from security.keyed import make_key

MESSAGES = [{"role": "user", "content": "hi"}]
ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a", "max_tokens": 3}),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "stream": True}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 3, "use_beam_search": True, "n": 2}),
    ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 3}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3, "stream": True}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 3, "background": True}),
    ("/v1/messages", {"model": "fake-model", "messages": MESSAGES, "max_tokens": 3}),
]


def limited(folder: Path, engine: FakeEngine, **limits: int) -> tuple[InProcess, dict[str, str]]:
    with KeyStore(folder / "keys", create=True) as keys:
        key = make_key(keys, "alice", tenant="one", limits=Limits(**limits))
    state = make_state(engine)
    state.keys = KeyRing((), folder / "keys")
    return InProcess(state), {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path, body", ROUTES)
def test_one_call_too_many_is_refused_and_leaves_nothing(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async def run() -> None:
        engine = FakeEngine()
        engine.pause_after = 0
        server, headers = limited(tmp_path, engine, max_concurrency=1)
        state = server.state
        first = asyncio.create_task(
            server.acall("POST", "/v1/completions", json=ROUTES[0][1], headers=headers)
        )
        while not engine.submitted:
            await asyncio.sleep(0)
        answer = await server.acall("POST", path, json=body, headers=headers)
        assert answer.status_code == 429, answer.text
        assert answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert error["type"] == "rate_limit_error" and error["retry_after_s"] == 1.0
        assert "at once" in error["message"]
        assert b'reason="key_concurrency"} 1.0' in state.metrics.render()
        assert len(engine.submitted) == 1 and not state.background
        assert not state.responses._used, "nobody asks for what was refused"
        engine.release.set()
        assert (await first).status_code == 200
        answer = await server.acall("POST", path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        for task in list(state.background.values()):
            await task
        accounts = state.admission.accounts
        assert (accounts.num_calls, accounts.tokens, accounts.held_bytes) == (0, 0, 0)
        guest = state.keys.guest_of("one")
        assert guest is not None and guest.allowance._num_running == 0
        assert state.num_in_flight == 0

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("kind", ["stream", "background"])
def test_a_response_that_cannot_be_kept_still_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The disk is full when it is done: a stream ends as one that failed, not in mid-air."""

    async def run() -> httpx.Response:
        server = InProcess(make_state())
        puts = ResponseStore.put

        def put(self: ResponseStore, tenant: str, row: Any, **options: Any) -> None:
            if b'"queued"' not in row.response:
                raise EngineError("disk is full.", code="storage_failed")
            puts(self, tenant, row, **options)

        monkeypatch.setattr(ResponseStore, "put", put)
        body = {"input": "hi", "max_output_tokens": 3, kind: True}
        answer = await server.acall("POST", "/v1/responses", json=body)
        for task in list(server.state.background.values()):
            await task
        return answer

    answer = asyncio.run(asyncio.wait_for(run(), 20))
    assert answer.status_code == 200
    if kind == "stream":
        assert "event: response.failed" in answer.text
    assert "not kept" in caplog.text


def test_too_much_in_the_background_is_told_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_BACKGROUND", 0)
    server = InProcess(make_state())
    answer = server.post("/v1/responses", {"input": "hi", "background": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert b'reason="background"} 1.0' in server.state.metrics.render()
