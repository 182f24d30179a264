"""Who may look at whose calls: a tenant at its own, an operator at everybody's times, an admin at all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from fakes import FakeEngine, InProcess, ServerThread, make_state
from octavo.server.auth import KeyRing
from octavo.server.keys.store import KeyStore
from octavo.server.replayed import Replays, WhatIfView
from security.keyed import keyed_state, make_key

SECRET = "a stop string is the caller's own words"


def test_an_operator_sees_the_times_of_all_and_the_words_of_none(tmp_path: Path) -> None:
    path, engine = tmp_path / "keys.sqlite3", FakeEngine()
    state, keys = keyed_state(path, engine)
    with KeyStore(path) as store:
        same = make_key(store, "same", tenant="two")
    state.keys = KeyRing((), path)  # which looks again once a second
    engine.pause_after = 2
    body = {"prompt": "my own prompt", "max_tokens": 9, "stream": True, "stop": [SECRET]}

    def call(method: str, name: str, key: str) -> httpx.Response:
        head = {"authorization": f"Bearer {key}"}
        url = f"{server.url}/v1/requests/{name}"
        return httpx.request(method, url, headers=head, timeout=10)

    with ServerThread(state) as server:
        head = {"authorization": f"Bearer {keys.other}"}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=head, timeout=10) as answer:
            name = answer.headers["x-request-id"]
            assert engine.paused.acquire(timeout=10)
            lines = answer.iter_lines()
            next(line for line in lines if line)
            assert call("GET", name, keys.user).status_code == 404
            for key, sees in ((keys.operator, False), (keys.admin, True), (same, True)):
                seen = call("GET", name, key)
                assert seen.status_code == 200
                timing = seen.json()["timing"]
                assert timing["total_s"] > 0 and timing["parts"]
                assert seen.json()["state"] == "generating" and seen.json()["prompt_tokens"] == 13
                assert ("params" in seen.json()) == (SECRET in seen.text) == sees
                assert body["prompt"] not in seen.text
            for key in (keys.user, keys.operator):
                assert call("DELETE", name, key).status_code == 404, "to look is not to end"
            assert call("DELETE", name, keys.admin).status_code == 200
            assert any("abort" in line for line in lines)
        past = {key: call("GET", name, key) for key in (keys.operator, keys.admin, same)}
        assert {one.json()["state"] for one in past.values()} == {"aborted"}
        assert call("GET", name, keys.user).status_code == 404


def test_who_is_left_out_of_a_replay_is_named_to_those_who_may_know(tmp_path: Path) -> None:
    state, keys = keyed_state(tmp_path / "keys.sqlite3", FakeEngine())
    other = "0" * 32

    class Told(Replays):
        async def what_if(self, folder: Path | None, request_id: str) -> WhatIfView:
            return WhatIfView(told=f"Without {other} sooner.", without=other, without_s=0.1)

    state.replays = Told()
    with ServerThread(state) as server:

        def call(method: str, path: str, key: str, **options: Any) -> httpx.Response:
            head = {"authorization": f"Bearer {key}"}
            return httpx.request(method, server.url + path, headers=head, timeout=10, **options)

        body = {"prompt": "hello", "max_tokens": 2}
        done = call("POST", "/v1/completions", keys.user, json=body)
        url = f"/v1/requests/{done.headers['x-request-id']}?what_if=true"
        seen = {key: call("GET", url, key).json()["what_if"] for key in (keys.user, keys.operator)}
    assert seen[keys.operator]["without"] == other and other in seen[keys.operator]["told"]
    assert seen[keys.user]["without"] is None and seen[keys.user]["without_s"] == 0.1
    assert seen[keys.user]["told"] == "Without another key's request sooner."


def test_a_prompt_that_is_only_scored_is_remembered_like_any_call() -> None:
    server = InProcess(make_state(FakeEngine()))
    body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
    name = server.post("/v1/completions", body).headers["x-request-id"]
    seen = server.call("GET", f"/v1/requests/{name}").json()
    assert (seen["state"], seen["prompt_tokens"], seen["completion_tokens"]) == ("ended", 3, 0)
    assert seen["timing"]["total_s"] > 0
