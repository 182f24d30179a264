"""The route table is a fixture: every route, with which key, and no way around."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fakes import MODEL, InProcess, make_state
from octavo.core.errors import AuthError, ConfigError
from octavo.server.app import ROUTES
from octavo.server.auth import KeyRing
from octavo.server.response_store import Stored

KEYS = ("right-key", "other-key", "clé")
SERVER = InProcess(make_state(keys=KEYS))
OPEN = InProcess(make_state())

# A new route changes this on purpose: method, path, public.
SNAPSHOT = {
    ("GET", "/console", True),
    ("GET", "/console/events", False),
    ("GET", "/console/{name:path}", True),
    ("GET", "/health", True),
    ("GET", "/healthz", True),
    ("GET", "/livez", True),
    ("GET", "/load", False),
    ("GET", "/metrics", False),
    ("GET", "/openapi.json", False),
    ("GET", "/ping", True),
    ("GET", "/readyz", True),
    ("GET", "/startupz", True),
    ("DELETE", "/v1/files/{file_id}", False),
    ("GET", "/v1/batches", False),
    ("GET", "/v1/batches/{batch_id}", False),
    ("GET", "/v1/files", False),
    ("GET", "/v1/files/{file_id}", False),
    ("GET", "/v1/files/{file_id}/content", False),
    ("POST", "/v1/batches", False),
    ("POST", "/v1/batches/{batch_id}/cancel", False),
    ("POST", "/v1/files", False),
    ("GET", "/v1/models", False),
    ("GET", "/v1/models/{model:path}", False),
    ("GET", "/version", False),
    ("POST", "/reset_prefix_cache", False),
    ("GET", "/tokenizer_info", False),
    ("POST", "/classify", False),
    ("POST", "/detokenize", False),
    ("POST", "/ping", True),
    ("POST", "/v1/responses", False),
    ("GET", "/v1/responses/{response_id}", False),
    ("DELETE", "/v1/responses/{response_id}", False),
    ("POST", "/v1/responses/{response_id}/cancel", False),
    ("GET", "/v1/responses/{response_id}/input_items", False),
    ("GET", "/v1/requests/{request_id}", False),
    ("DELETE", "/v1/requests/{request_id}", False),
    ("GET", "/v1/usage", False),
    ("POST", "/v1/messages", False),
    ("POST", "/v1/messages/count_tokens", False),
    ("POST", "/pooling", False),
    ("POST", "/rerank", False),
    ("POST", "/score", False),
    ("POST", "/tokenize", False),
    ("POST", "/v1/chat/completions", False),
    ("POST", "/v1/completions", False),
    ("POST", "/v1/embeddings", False),
    ("POST", "/v1/rerank", False),
    ("POST", "/v1/score", False),
    ("POST", "/v2/rerank", False),
}
# And so does one that asks for more than a user's key.
ROLES = {
    ("GET", "/console/events"): "operator",
    ("GET", "/load"): "operator",
    ("GET", "/metrics"): "operator",
    ("POST", "/reset_prefix_cache"): "admin",
}
USER = {"role": "user", "content": "a"}
STORED = "resp_0"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
    "/v1/responses": {"input": "a", "max_output_tokens": 1},
    "/v1/messages": {"model": MODEL, "messages": [USER], "max_tokens": 1},
    "/v1/messages/count_tokens": {"model": MODEL, "messages": [USER]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [65]},
    "/v1/batches": {"input_file_id": "x", "endpoint": "/v1/completions", "completion_window": "1h"},
    "/v1/embeddings": {"input": "a"},
    "/pooling": {"input": "a"},
    "/classify": {"input": "a"},
} | {
    **dict.fromkeys(("/score", "/v1/score"), {"text_1": "a", "text_2": "b"}),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), {"query": "a", "documents": ["b"]}),
}
KEEPS = ("/v1/files", "/v1/batches")
"""Refused on this server, after the key has been looked at: it keeps no files."""
LOOKS_UP = "/v1/requests"
"""Finds nothing under way."""
POOLING = ("/v1/embeddings", "/pooling", "/classify", "score", "rerank")
"""Endpoints that the model behind these servers, which generates, refuses with 400."""


def test_route_table_snapshot() -> None:
    assert {(row.method, row.path, row.public) for row in ROUTES} == SNAPSHOT
    assert {(row.method, row.path): row.role for row in ROUTES if row.role != "user"} == ROLES
    served = {
        (method, route.path)  # type: ignore[attr-defined]  # all routes are Route
        for route in SERVER.app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    }
    assert served == {(method, path) for method, path, _ in SNAPSHOT}


def keep_a_response() -> None:
    """For every key, one that the routes can find."""
    response = b'{"id": "resp_0", "background": true, "status": "completed"}'
    for key in ("right-key", "other-key", "clé"):
        tenant = SERVER.state.keys.admit([f"Bearer {key}".encode().decode("latin-1")]).caller.tenant
        SERVER.state.responses.put(tenant, Stored(STORED, None, b"[]", response))


@pytest.mark.parametrize(("method", "path", "public"), sorted(SNAPSHOT))
def test_every_route_with_every_key(method: str, path: str, public: bool) -> None:
    url = path.replace("{model:path}", "alias/model").replace("{response_id}", STORED)
    url = url.replace("{name:path}", "style.css").replace("/events", "/events?frames=1")
    body = {"json": BODIES[path]} if path in BODIES and method == "POST" else {}

    def status(authorization: str | None) -> int:
        keep_a_response()
        headers = [] if authorization is None else [(b"authorization", authorization.encode())]
        return SERVER.call(method, url, headers=headers, **body).status_code

    if ROLES.get((method, path)) == "admin":
        assert (status("Bearer right-key"), status(None)) == (403, 401)
        return
    passed = (
        404
        if path.startswith(LOOKS_UP)
        else 400
        if path.startswith(KEEPS) or path.endswith(POOLING)
        else 200
    )
    assert status("Bearer right-key") == passed
    assert status("bearer other-key") == passed
    assert status("Bearer clé") == passed
    refused = 200 if public else 401
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer right-key2", "right-key"):
        assert status(wrong) == refused, wrong
    for wrong in ("Basic right-key", "Bearer right-ke", "Bearer RIGHT-KEY", "Bearer é"):
        assert status(wrong) == refused, wrong


@pytest.mark.parametrize("path", sorted({path for _, path, public in SNAPSHOT if not public}))
def test_no_spelling_of_a_path_gets_around_the_key(path: str) -> None:
    url = path.replace("{model:path}", "alias/model")
    spellings = [
        url + "/",
        "/" + url,
        url.upper(),
        "/health/.." + url,
        "/health" + url,
        url.replace("/", "//"),
        url + "?x=/health",
        url + ";/health",
        url + "%2f",
        url.replace("/", "/%2e/", 1),
    ]
    for spelling in spellings:
        for host in ("test", "test/health", "health"):
            for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
                status = asyncio.run(raw_status(method, spelling, host))
                assert status in (401, 404, 405), (method, spelling, host)


async def raw_status(method: str, target: str, host: str) -> int:
    """What a server would put into the scope for a target, without a client tidying it up."""
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path.replace("%2f", "/").replace("%2e", "."),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "headers": [(b"host", host.encode()), (b"content-type", b"application/json")],
        "server": ("test", 80),
    }
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"prompt": "a"}'}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await SERVER.app(scope, receive, send)
    return statuses[0]


def test_two_authorization_headers_are_refused() -> None:
    headers = [("authorization", "Bearer right-key"), ("authorization", "Bearer wrong")]
    answer = SERVER.call("GET", "/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


def test_a_key_from_a_file_or_a_list_has_no_space_around_it() -> None:
    ring = KeyRing(("a\n", " b"))
    assert ring.admit(["Bearer a"]).caller != ring.admit(["Bearer b"]).caller
    with pytest.raises(ConfigError, match="blank"):
        KeyRing(("\n",))


def test_tenant_and_cache_scope_come_from_the_key() -> None:
    ring = KeyRing(KEYS)
    one, other = ring.admit(["Bearer right-key"]).caller, ring.admit(["Bearer other-key"]).caller
    assert one.tenant and one.tenant == one.cache_scope
    assert one.cache_scope != other.cache_scope
    assert "right" not in one.tenant
    assert KeyRing().admit([]).caller.cache_scope == ""
    with pytest.raises(AuthError):
        ring.admit(["Bearer nothing"])


def test_ids_are_minted_here() -> None:
    mine = {"x-request-id": "mine"}
    ids = {OPEN.call("GET", "/version", headers=mine).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3 and "mine" not in ids
    for answer in (OPEN.call("GET", "/nowhere"), OPEN.call("GET", "/v1/completions")):
        assert len(answer.headers["x-request-id"]) == 32


def test_unknown_route_and_method() -> None:
    answer = OPEN.post("/v1/completion", {})
    assert answer.status_code == 404
    assert "Did you mean '/v1/completions'?" in answer.json()["error"]["message"]
    answer = OPEN.call("GET", "/")
    assert answer.status_code == 404
    assert "/v1/chat/completions" in answer.json()["error"]["message"]
    answer = OPEN.call("GET", "/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "expected POST." in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "method_not_allowed"
