"""The OpenAPI document against the server: hostile and plain calls of every route, no 500, no answer that breaks it."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from fakes import FakeEngine, make_state
from octavo.server.app import ROUTES, create_app
from octavo.server.jobs.store import Store
from octavo.server.openapi import document

schemathesis = pytest.importorskip("schemathesis")
checks = schemathesis.checks

_FOLDER = tempfile.TemporaryDirectory()
STORE = Store(Path(_FOLDER.name))
atexit.register(_FOLDER.cleanup)
atexit.register(STORE.close)
STATE = make_state(FakeEngine(chunks=(3,)), keys=("right-key",), store=STORE)
APP = create_app(STATE)


async def lasting(scope: Any, receive: Any, send: Any) -> None:
    """The application; each call's client would end it, and its store with it."""
    if scope["type"] == "http":
        await APP(scope, receive, send)
        return
    for _ in range(2):
        await send({"type": f"{(await receive())['type']}.complete"})


SCHEMA = schemathesis.openapi.from_asgi(
    "/openapi.json", lasting, headers={"Authorization": "Bearer right-key"}
).exclude(path="/console/events")  # a stream without an end
CHECKS = [
    checks.not_a_server_error,
    *[
        getattr(schemathesis.specs.openapi.checks, name)
        for name in (
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "negative_data_rejection",
        )
    ],
]


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_every_route(case: Any) -> None:
    response = case.call(headers={"Authorization": "Bearer right-key"})
    has_limit = isinstance(case.body, dict) and (case.body.keys() & {"deadline_ms", "ttft_slo_ms"})
    if response.status_code == 504 and has_limit:
        return  # a millisecond was asked for, and the machine is busy; what such answers look like is tested below
    case.validate_response(response, checks=CHECKS)


def test_the_document_covers_every_route() -> None:
    paths = document()["paths"]
    told = {(method.upper(), path) for path, one in paths.items() for method in one}
    assert told == {(row.method, row.path.replace(":path}", "}")) for row in ROUTES}
    msgspec.json.encode(paths)


def test_calls_with_a_deadline_can_be_too_late() -> None:
    paths = document()["paths"]
    late = {
        path for path, one in paths.items() for each in one.values() if "504" in each["responses"]
    }
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"} <= late
    assert not late & {"/tokenize", "/v1/batches", "/v1/models"}
