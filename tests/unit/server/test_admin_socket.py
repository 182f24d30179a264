"""The admin socket: its owner's alone, all routes without a key, and no header makes another connection one."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fakes import FakeEngine, InProcess, ServerThread, make_state
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.listen.admin_socket import AdminSocket, admin_path
from octavo.server.listen.serve import Server


@contextmanager
def with_admin(path: Path, engine: FakeEngine) -> Iterator[ServerThread]:
    """A server with a key, and an admin socket at `path`."""
    state = make_state(engine, keys=("named",))
    thread = ServerThread(state)
    thread.server = Server(create_app(state), state.config, admin=path)
    with thread:
        yield thread


def call(path: Path, method: str, url: str, **options: object) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.request(method, f"http://admin{url}", **options)  # type: ignore[arg-type]


def test_whoever_can_open_the_socket_is_an_admin(tmp_path: Path) -> None:
    path, engine = tmp_path / "admin.sock", FakeEngine()
    with with_admin(path, engine) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert call(path, "POST", "/reset_prefix_cache").json() == {"status": "ok"}
        assert engine.num_resets == 1
        for url in ("/metrics", "/load", "/v1/models", "/health", "/version"):
            assert call(path, "GET", url).status_code == 200
        body = {"prompt": "a", "max_tokens": 1}
        assert call(path, "POST", "/v1/completions", json=body).status_code == 200
        named = {"authorization": "Bearer named"}
        assert call(path, "POST", "/v1/completions", json=body, headers=named).status_code == 200
        tenants = [request.tenant for request in engine.submitted]
        assert (
            tenants[0] == ""
            and tenants[1] == server.state.keys.admit(["Bearer named"]).caller.tenant
        )
        wrong = {"authorization": "Bearer wrong"}
        assert call(path, "GET", "/v1/models", headers=wrong).status_code == 401, (
            "a key is looked at"
        )
        assert httpx.post(f"{server.url}/reset_prefix_cache").status_code == 401
        assert httpx.post(f"{server.url}/reset_prefix_cache", headers=named).status_code == 403
        assert engine.num_resets == 1
    assert not path.exists()


def test_an_admin_ends_the_calls_of_all(tmp_path: Path) -> None:
    path, engine = tmp_path / "admin.sock", FakeEngine()
    engine.pause_after = 1
    head = {"authorization": "Bearer named"}
    body = {"prompt": "ab", "max_tokens": 9, "stream": True}
    with (
        with_admin(path, engine) as server,
        httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, headers=head, timeout=10
        ) as answer,
    ):
        assert engine.paused.acquire(timeout=10)
        name = answer.headers["x-request-id"]
        assert call(path, "GET", f"/v1/requests/{name}").json()["state"] == "generating"
        assert call(path, "DELETE", f"/v1/requests/{name}").json()["state"] == "aborted"
        assert '"finish_reason":"abort"' in answer.read().decode()
        assert call(path, "GET", f"/v1/requests/{name}").json()["state"] == "aborted"


def test_admin_calls_wait_for_an_engine(tmp_path: Path) -> None:
    path, engine = tmp_path / "admin.sock", FakeEngine()
    engine.state = "loading"
    with with_admin(path, engine):
        assert call(path, "POST", "/reset_prefix_cache").status_code == 503
        assert engine.num_resets == 0


def test_the_scope_says_so_only_when_the_listener_does() -> None:
    """Not a header, and not a path: without the mark that the admin protocol sets there is no admin."""
    server = InProcess(make_state(keys=("named",)))
    headers = {"octavo.admin": "true", "host": "admin", "x-forwarded-for": "/admin.sock"}
    answer = asyncio.run(server.acall("POST", "/reset_prefix_cache", headers=headers))
    assert answer.status_code == 401


def test_a_later_server_takes_the_place_over_and_the_former_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()  # as after a kill: the file stays
    former = AdminSocket(path)
    later = AdminSocket(path)
    former.remove()
    assert path.is_socket()
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
    later.remove()
    assert not path.exists() and not [*tmp_path.iterdir()]


def test_where_no_socket_can_be_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for path, reason in (
        (file, "another kind"),
        (tmp_path / ("x" * 120), "at most 103"),
        (file / "below", "Not a directory|File exists"),
    ):
        with pytest.raises(ConfigError, match=reason) as caught:
            AdminSocket(path)
        assert caught.value.code == "E-NET-02"
    assert file.read_text() == "kept"


def test_where_it_is() -> None:
    assert admin_path(ServerConfig()) is None
    assert admin_path(ServerConfig(state_dir="/x")) == Path("/x/admin.sock")
    assert admin_path(ServerConfig(state_dir="/" + "x" * 100)) is None, "no reason not to start"
    assert admin_path(ServerConfig(state_dir="/x", admin_socket="/y")) == Path("/y")
    assert str(admin_path(ServerConfig(admin_socket="~/s"))) == os.path.expanduser("~/s")
