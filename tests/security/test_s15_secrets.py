"""S15, gateway: keys are hashes, look-ups take no part of a statement from a caller, and no secret is in a log."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fakes import InProcess
from octavo.server.keys.store import KeyStore
from security.conftest import NAMED_KEY, Live
from security.keyed import keyed_state, make_key

PROMPT = "prompt-canary-77ac"
WRONG = "wrong-key-canary-90de"


def test_neither_keys_nor_prompts_are_in_the_log(live: Live) -> None:
    """At the level that says most, of calls that go well and of all kinds that do not."""
    body = {"prompt": PROMPT, "max_tokens": 2}
    user = [{"role": "user", "content": PROMPT}]
    chat = {"messages": user, "max_tokens": 2}
    with live.client() as good, live.client(NAMED_KEY) as named, live.client(WRONG) as wrong:
        for client in (good, named):
            assert client.post("/v1/completions", json=body).status_code == 200
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            streamed = client.post("/v1/completions", json={**body, "stream": True})
            assert "[DONE]" in streamed.text
            assert client.post("/v1/responses", json={"input": PROMPT}).status_code == 200
        for path, bad in (
            ("/v1/completions", {**body, "unknown_field": PROMPT}),
            ("/v1/completions", {**body, "max_tokens": PROMPT}),
            ("/v1/completions", {**body, "stop": [PROMPT] * 99}),
            ("/v1/chat/completions", {**chat, "messages": [{"role": PROMPT, "content": PROMPT}]}),
            ("/v1/chat/completions", {**chat, "chat_template_kwargs": {PROMPT: PROMPT}}),
            ("/v1/completions", {**body, "structured_outputs": {"regex": f"({PROMPT}"}}),
            ("/v1/completions", {**body, "prompt": PROMPT * 40_000}),
            ("/v1/embeddings", {"input": PROMPT}),
        ):
            assert good.post(path, json=bad).status_code < 500
        text = {"content-type": "application/json"}
        assert good.post("/v1/completions", content=f'{{"prompt": "{PROMPT}', headers=text).is_error
        form = {"purpose": "batch"}
        file = {"file": ("canary.jsonl", f"{PROMPT}\n".encode())}
        assert good.post("/v1/files", data=form, files=file).status_code == 200
        assert wrong.post("/v1/completions", json=body).status_code == 401
    basic = httpx.get(f"{live.url}/v1/models", auth=("user", WRONG))
    assert basic.status_code == 401
    log = live.log
    assert "request " in log and "401" in log, "it is the log of these calls"
    for secret in (PROMPT, WRONG, NAMED_KEY, live.key, live.key[14:]):
        assert secret not in log, secret


def test_no_answer_repeats_a_key(live: Live) -> None:
    for key in (WRONG, live.key[:-1]):
        answer = httpx.get(f"{live.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 401 and key not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "given",
    [
        "' OR '1'='1",
        "x'; DROP TABLE keys; --",
        '" OR ""="',
        "%",
        "*",
        "\\",
        "a" * 60_000,
        "\xff\xfe",
    ],
)
def test_a_key_is_looked_up_by_its_hash_alone(tmp_path: Path, given: str) -> None:
    path = tmp_path / "keys"
    state, keys = keyed_state(path)
    server = InProcess(state)
    headers = {"authorization": f"Bearer {given}".encode("latin-1")}
    assert server.call("GET", "/v1/models", headers=headers).status_code == 401
    ids = {row.id for row in state.keys._rows()} | {row.hash.hex() for row in state.keys._rows()}
    for known in ids:
        headers = {"authorization": f"Bearer {known}".encode()}
        assert server.call("GET", "/v1/models", headers=headers).status_code == 401
    headers = {"authorization": f"Bearer {keys.user}".encode()}
    assert server.call("GET", "/v1/models", headers=headers).status_code == 200
    state.keys.close()


def test_names_go_into_the_store_as_they_are(tmp_path: Path) -> None:
    hostile = "x', 'admin', 't'); DROP TABLE keys; --"
    with KeyStore(tmp_path / "keys", create=True) as store:
        make_key(store, hostile)
        (row,) = store.rows()
        assert (row.name, row.role) == (hostile, "user")
        assert store.find(hostile) == row


def test_the_first_servers_roles_are_not_to_be_had_by_asking(tmp_path: Path) -> None:
    """No body, header or query of a user's makes an operator of it."""
    state, keys = keyed_state(tmp_path / "keys")
    server = InProcess(state)
    headers = {"authorization": f"Bearer {keys.user}", "x-role": "admin", "role": "admin"}
    for url in ("/metrics?role=admin", f"/metrics?api_key={keys.admin}", "/load"):
        assert server.call("GET", url, headers=headers).status_code == 403
    body = {"role": "admin", "key": keys.admin}
    answer = server.call("POST", "/reset_prefix_cache", json=body, headers=headers)
    assert answer.status_code == 403
    state.keys.close()
