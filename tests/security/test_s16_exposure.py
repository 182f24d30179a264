"""S16, exposure by default: what listens is what is documented, and the network gets in by a key or not at all."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from octavo.core import env
from octavo.core.config import EngineConfig, ServerConfig
from octavo.core.errors import ConfigError
from octavo.engine.client import EngineClient
from octavo.server.jobs.store import Store
from octavo.server.keys.store import KeyStore
from octavo.server.listen.exposure import check_exposure, is_loopback
from octavo.tools import serve
from octavo.tools.cli import main
from octavo.tools.flags import Configs
from security.conftest import Live

_LISTENS = "0A"  # state of /proc/net/tcp
_ACCEPTS = 0x10000  # flag of /proc/net/unix


def tree(pid: int) -> set[int]:
    """A process and all below it."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found |= tree(int(child))
    return found


def inodes(pids: set[int]) -> set[str]:
    """Of the sockets that these processes hold."""
    found = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(fd)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    return found


def listening(pids: set[int]) -> tuple[list[tuple[str, int]], list[str]]:
    """(address, port) of internet sockets and the paths of Unix sockets at which somebody can connect."""
    own = inodes(pids)
    internet = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in own and (fields[3] == _LISTENS or table.startswith("udp")):
                address, _, port = fields[1].partition(":")
                internet.append((address, int(port, 16)))
    unix = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in own and int(fields[3], 16) & _ACCEPTS:
            unix.append(fields[7] if len(fields) > 7 else "")
    return internet, unix


def test_what_listens_is_what_is_documented(live: Live) -> None:
    internet, unix = listening(tree(live.process.pid))
    loopback = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}"
    assert internet == [(loopback, live.port)]
    names = {Path(path.removesuffix(".new")).name for path in unix}
    documented = {"admin.sock", "engine.sock", f"127.0.0.1-{live.port}.sock"}
    assert names <= documented and "admin.sock" in names, unix
    for path in map(Path, unix):
        there = path if path.exists() else path.with_name("admin.sock")
        assert stat.S_IMODE(there.stat().st_mode) == 0o600, path
        assert stat.S_IMODE(there.parent.stat().st_mode) == 0o700, path


def test_nobody_else_can_read_what_it_keeps(live: Live) -> None:
    assert stat.S_IMODE(live.state_dir.stat().st_mode) == 0o700
    for path in live.state_dir.glob("keys.sqlite3*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_file_of_a_callers_is_for_others(tmp_path: Path) -> None:
    """Also in a folder that was there before, and whatever the umask."""
    before = os.umask(0)
    try:
        (tmp_path / "old").mkdir(mode=0o755)
        for folder in (tmp_path / "new" / "state", tmp_path / "old"):
            Store(folder).close()
            file = folder / "octavo.sqlite3"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE((folder / "files").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "new" / "state").stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_the_network_gets_in_by_a_key_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.7", "127.evil.example", "example.com"):
        with pytest.raises(ConfigError) as caught:
            check_exposure(ServerConfig(host=host), ())
        assert caught.value.code == "E-SEC-01"
        for word in ("OCTAVO_API_KEY", "octavo keys create", "127.0.0.1", "--allow-open"):
            assert word in caught.value.fix
        check_exposure(ServerConfig(host=host, allow_open=True), ())
        check_exposure(ServerConfig(host=host, api_key=("k",)), ())
        check_exposure(ServerConfig(host=host), ("k",))
        check_exposure(ServerConfig(host=host, key_store="/k"), ())
        with pytest.raises(ConfigError):
            check_exposure(ServerConfig(host=host, state_dir=str(tmp_path)), ())
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        check_exposure(ServerConfig(host=host), ())
    assert not is_loopback("::ffff:1.2.3.4")
    KeyStore(tmp_path / "keys.sqlite3", create=True).close()
    check_exposure(ServerConfig(host="0.0.0.0", state_dir=str(tmp_path)), ())
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert capsys.readouterr().err.startswith("E-SEC-01: --host 0.0.0.0")


def test_the_default_address_is_this_machine() -> None:
    assert ServerConfig().host == "127.0.0.1" and not ServerConfig().allow_open


def test_a_socket_that_somebody_else_bound_is_looked_at(tmp_path: Path) -> None:
    """As systemd passes one: what it listens on counts, and not --host."""
    with socket.create_server(("0.0.0.0", 0)) as sock:
        with pytest.raises(ConfigError, match="on 0.0.0.0, lets other machines in") as caught:
            check_exposure(ServerConfig(), (), sock)
        assert caught.value.code == "E-SEC-01"
        check_exposure(ServerConfig(), ("k",), sock)
        check_exposure(ServerConfig(allow_open=True), (), sock)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        check_exposure(ServerConfig(), (), sock)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "api.sock"))
        check_exposure(ServerConfig(), (), sock)


def test_serve_refuses_an_open_socket_that_was_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    parsed = Configs(EngineConfig(), ServerConfig(port=0))
    with socket.create_server(("0.0.0.0", 0)) as sock:
        monkeypatch.setattr(env, "listen_fd", lambda: os.dup(sock.fileno()))
        with pytest.raises(ConfigError, match="the listening socket, on 0.0.0.0"):
            serve._serve(parsed, EngineClient(parsed.engine), 0.0, 0.0)
