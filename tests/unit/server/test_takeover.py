"""One server takes over from another: what only one may have is always somebody's, and back where the successor fails."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from fakes import FakeEngine, InProcess, ServerThread, make_state
from octavo.core.errors import ConfigError
from octavo.server.app import create_app
from octavo.server.jobs.store import Store
from octavo.server.listen import handover
from octavo.server.listen.admin_socket import AdminSocket
from octavo.server.listen.handover import Takeover
from octavo.server.listen.serve import Server
from octavo.server.response_store import ResponseStore, Stored
from octavo.server.state import AppState, Kept


@pytest.fixture(autouse=True)
def private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover.tempfile, "gettempdir", lambda: str(tmp_path))


@contextmanager
def serving(state: AppState, admin: Path) -> Iterator[ServerThread]:
    thread = ServerThread(state)
    thread.server = Server(create_app(state), state.config, admin=admin)
    with thread:
        yield thread


def ask(port: int) -> Takeover:
    """The server begins to listen before it offers its place."""
    deadline = time.monotonic() + 10
    while (found := Takeover.ask("127.0.0.1", port)) is None:
        assert time.monotonic() < deadline
    return found


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def admin_version(path: Path) -> int:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        return client.get("http://admin/version").status_code


def test_the_admin_socket_is_the_servers_while_its_successor_loads(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with serving(make_state(FakeEngine()), path) as server:
        takeover = ask(server.port)
        state = make_state(FakeEngine())
        seen: list[int] = []

        async def load() -> None:
            seen.append(await asyncio.to_thread(admin_version, path))
            raise ConfigError("no such model.", code="E-FILE-01")

        state.on_start = load
        successor = Server(create_app(state), state.config, takeover, path)
        with pytest.raises(ConfigError, match="no such model"):
            successor.run(sockets=[takeover.sock])
        takeover.sock.close()
        assert seen == [200]
        assert admin_version(path) == 200, "the successor that failed has taken nothing along"
    assert not path.exists()


def test_a_server_whose_successor_fails_at_the_last_moment_has_all_of_it_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "admin.sock"
    (tmp_path / "state").mkdir()
    store = Store(tmp_path / "state")
    with serving(make_state(FakeEngine(), store=store), path) as server:
        takeover = ask(server.port)
        asyncio.run(takeover.arrive())
        theirs = AdminSocket(path)
        store_of_theirs = Store(tmp_path / "state")
        theirs.remove()
        takeover.sock.close()
        takeover.close()  # dies, while something of it still holds the folder's lock
        until(lambda: "not given back" in caplog.text or path.exists())
        until(path.exists)
        assert admin_version(path) == 200
        assert httpx.get(f"{server.url}/version").status_code == 200
        until(lambda: "not given back" in caplog.text)
        store_of_theirs.close()


def test_the_other_way_round_nothing_of_it_is_left(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with serving(make_state(FakeEngine()), path) as server:
        takeover = ask(server.port)
        state = make_state(FakeEngine())
        thread = ServerThread(state)
        thread._sock.close()
        thread._sock = takeover.sock
        thread.server = Server(create_app(state), state.config, takeover, path)
        with thread:
            server.join()
            until(lambda: path.exists() and admin_version(path) == 200)
            with socket.create_connection(("127.0.0.1", server.port)):
                pass
    assert not path.exists()


def test_a_takeover_of_a_free_port_finds_what_a_killed_server_was_making(tmp_path: Path) -> None:
    file = tmp_path / "responses.sqlite3"
    killed = ResponseStore(file)
    row = msgspec.json.encode({"id": "resp_0", "status": "in_progress"})
    killed.put("", Stored("resp_0", None, b"[]", row, is_open=True))
    killed.close()
    state = make_state(FakeEngine())
    state.open_kept = lambda: Kept(None, ResponseStore(file, is_shared=True))
    with ServerThread(state) as server:
        answer = httpx.get(f"{server.url}/v1/responses/resp_0").json()
        assert answer["status"] == "failed", "nobody makes it any more"


def test_a_successor_that_cannot_open_the_state_folder_says_so_and_leaves_the_place(
    tmp_path: Path,
) -> None:
    with serving(make_state(FakeEngine()), tmp_path / "admin.sock") as server:
        takeover = ask(server.port)
        state = make_state(FakeEngine())

        def broken() -> Kept:
            raise ConfigError("kept responses: disk I/O error.", code="E-FILE-02")

        state.open_kept = broken
        successor = Server(create_app(state), state.config, takeover)
        with pytest.raises(ConfigError, match="disk I/O error"):
            successor.run(sockets=[takeover.sock])
        takeover.sock.close()
        assert httpx.get(f"{server.url}/version").status_code == 200
        assert not server.state.is_leaving


def test_the_successor_cancels_what_the_other_still_makes(tmp_path: Path) -> None:
    file = tmp_path / "responses.sqlite3"
    other = ResponseStore(file)
    row = msgspec.json.encode({"id": "resp_0", "status": "in_progress", "background": True})
    other.put("", Stored("resp_0", None, b"[]", row, is_open=True))
    state = make_state(FakeEngine())
    state.kept = Kept(None, ResponseStore(file, is_shared=True))
    calls = InProcess(state)
    answer = calls.call("POST", "/v1/responses/resp_0/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert calls.call("GET", "/v1/responses/resp_0").json()["status"] == "cancelled"
    other.close()
