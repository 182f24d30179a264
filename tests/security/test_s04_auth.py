"""S4, auth gaps and bypass: each route with each key, and no way of writing a request that gets around it.

Real sockets and raw bytes: what decides is what the server makes of them, not what a client would send.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import FakeEngine, ServerThread, running
from octavo.server.app import ROUTES
from security.keyed import Keys, keyed_state

# Frozen: what answers without a key. Nothing is added here but what an orchestrator must reach, and files without data.
PUBLIC = {"/health", "/healthz", "/ping", "/livez", "/readyz", "/startupz"}
PUBLIC |= {"/console", "/console/{name:path}"}
MAY = {"user": ("user",), "operator": ("user", "operator"), "admin": ("user", "operator", "admin")}
PROTECTED = sorted((row.method, row.path, row.role) for row in ROUTES if not row.public)
ENDLESS = "/console/events"
REFUSALS = (b"400", b"401", b"403", b"404", b"405")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerThread, Keys]]:
    folder: Path = tmp_path_factory.mktemp("keys")
    state, keys = keyed_state(folder / "keys", FakeEngine())
    with ServerThread(state) as server:
        yield server, keys


def raw(port: int, head: str, body: bytes = b"{}", *, stays: bool = False) -> bytes:
    """The status of what a request's own bytes get; empty when the server hangs up without a word.

    A stream is begun for callers who stay alone.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
        if not stays:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(65536):
            answer += part
    return answer.split(b" ")[1] if answer else b""


def head(method: str, target: str, *headers: str) -> str:
    own = ("Content-Type: application/json", "Content-Length: 2", "Connection: close")
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: test", *own, *headers])


def url_of(path: str) -> str:
    for part in ("{model:path}", "{response_id}", "{file_id}", "{batch_id}", "{request_id}"):
        path = path.replace(part, "x")
    return path + "?frames=1" * (path == ENDLESS)


def test_public_routes_are_the_frozen_list() -> None:
    assert {row.path for row in ROUTES if row.public} == PUBLIC


@pytest.mark.parametrize(("method", "path", "role"), PROTECTED)
def test_each_route_with_each_key(
    keyed: tuple[ServerThread, Keys], method: str, path: str, role: str
) -> None:
    server, keys = keyed
    url = url_of(path)

    def status(*headers: str) -> bytes:
        return raw(server.port, head(method, url, *headers), stays=path == ENDLESS)

    assert status() == b"401"
    wrong = [
        "",
        "x",
        keys.user[:-1],
        keys.user + "x",
        keys.user.upper(),
        keys.expired,
        keys.revoked,
    ]
    for key in wrong:
        assert status(f"Authorization: Bearer {key}") == b"401", key
    for text in (
        f"Basic {keys.admin}",
        keys.admin,
        f"Bearer: {keys.admin}",
        f"Bearer\t{keys.admin}",
    ):
        assert status(f"Authorization: {text}") == b"401", text
    for has in ("user", "operator", "admin"):
        got = status(f"Authorization: Bearer {getattr(keys, has)}")
        assert (got == b"403") == (role not in MAY[has]), (has, got)
        assert got != b"401" and got, (has, got)


@pytest.mark.parametrize(("method", "path", "role"), PROTECTED)
def test_no_way_of_writing_a_request_gets_around_the_key(
    keyed: tuple[ServerThread, Keys], method: str, path: str, role: str
) -> None:
    server, keys = keyed
    url = url_of(path)
    targets = [
        f"http://test{url}",
        f"http://health{url}",
        f"http://user:{keys.user}@test{url}",
        f"//health{url}",
        f"/health/..{url}",
        f"/health/%2e%2e{url}",
        f"/health{url}",
        f"{url}/../../health",
        f"{url}%2f",
        url.replace("/", "%2f"),
        url.replace("/", "//"),
        url + "?x=/health",
        url + "#/health",
        url + ";/health",
        url + "%00",
        url + "/.",
        url.upper(),
        "/." + url,
        "\\" + url[1:],
    ]
    for target in targets:
        assert raw(server.port, head(method, target)) in (*REFUSALS, b""), target
    two = (f"Authorization: Bearer {keys.user}", "Authorization: Bearer x")
    hidden = [
        ("Host: health",),
        ("Host: test/health",),
        ("X-Original-URL: /health",),
        ("X-Rewrite-URL: /health",),
        ("X-HTTP-Method-Override: GET",),
        ("X-Forwarded-For: 127.0.0.1", "X-Forwarded-Prefix: /health"),
        (":path: /health",),
        (":authority: health",),
        (f"Authorization : Bearer {keys.admin}",),
        (f"Cookie: Authorization=Bearer {keys.admin}",),
        (f"X-Authorization: Bearer {keys.admin}",),
        (f"Proxy-Authorization: Bearer {keys.admin}",),
        ("octavo.admin: True",),
        two,
        two[::-1],
    ]
    for headers in hidden:
        assert raw(server.port, head(method, url, *headers)) in (*REFUSALS, b""), headers
    for other in ("HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "get"):
        assert raw(server.port, head(other, url)) in (*REFUSALS, b""), other


def test_a_second_request_in_the_same_bytes_is_looked_at_for_itself(
    keyed: tuple[ServerThread, Keys],
) -> None:
    server, keys = keyed
    first = "GET /v1/models HTTP/1.1\r\nHost: test\r\n"
    smuggled = f"{first}Authorization: Bearer {keys.user}\r\n\r\n{first}Connection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(smuggled.encode())
        answer = b""
        while part := sock.recv(65536):
            answer += part
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"401"]
    both = head("POST", "/tokenize", "Transfer-Encoding: chunked")
    assert raw(server.port, both, b"0\r\n\r\n" + smuggled.encode()) in (b"400", b"401")


def test_an_open_server_has_no_admins() -> None:
    with running() as server:
        assert raw(server.port, head("POST", "/reset_prefix_cache")) == b"403"
        assert (
            raw(server.port, head("POST", "/reset_prefix_cache", "Authorization: Bearer x"))
            == b"403"
        )
        assert raw(server.port, head("GET", "/metrics")) == b"200"
    with running(keys=("named",)) as server:
        assert (
            raw(server.port, head("POST", "/reset_prefix_cache", "Authorization: Bearer named"))
            == b"403"
        )
        assert raw(server.port, head("GET", "/metrics", "Authorization: Bearer named")) == b"200"
        assert raw(server.port, head("GET", "/metrics")) == b"401"
