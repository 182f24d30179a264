"""`octavo doctor --security`: each exposure is found, and a safe server is told to be one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import ServerThread, make_state
from octavo.core.errors import ConfigError
from octavo.server.keys.rows import KeyRow
from octavo.server.keys.store import KeyStore
from octavo.tools import security
from octavo.tools.cli import main


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OCTAVO_API_KEY", raising=False)
    yield


def findings(flags: str) -> dict[str, security.Finding]:
    (subject,) = security.subjects(flags)
    return {finding[0]: finding for finding in security.judge(subject)}


def test_each_exposure_is_found_with_what_to_do(tmp_path: Path) -> None:
    cases = [
        ("", "keys", "warn", "every program"),
        ("--host 0.0.0.0", "address", "fail", "E-SEC-01"),
        ("--host 0.0.0.0 --allow-open", "address", "warn", "--allow-open"),
        ("--host 0.0.0.0 --api-key abc", "keys", "warn", "shorter than 16"),
        ("--host 0.0.0.0 --api-key abc", "TLS", "warn", "in the clear"),
        ("--api-key abc", "command line", "warn", "ps"),
        ("--api-key=abc", "command line", "warn", "ps"),
        (f"--ssl-certfile {tmp_path}/none", "TLS", "fail", "No such file"),
        (f"--state-dir {tmp_path}/state", "state dir", "fail", "0755"),
        (f"--admin-socket {tmp_path}/admin", "admin socket", "fail", "0666"),
        (f"--key-store {tmp_path}/keys", "key store", "fail", "0644"),
    ]
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    (tmp_path / "admin").touch()
    (tmp_path / "admin").chmod(0o666)
    (tmp_path / "keys").touch()
    (tmp_path / "keys").chmod(0o644)
    for flags, name, status, words in cases:
        _, given, detail, fix = findings(flags)[name]
        assert given == status and words in detail and fix, (flags, name, detail)


def test_a_safe_server_is_told_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.sqlite3"
    with KeyStore(path, create=True) as store:
        fields = {"id": "", "hash": b"", "prefix": "", "tenant": "", "created": 1}
        secrets = [
            store.add(KeyRow(name="a", **fields)),  # type: ignore[arg-type]
            store.add(KeyRow(name="root", role="admin", expires=1 << 40, **fields)),  # type: ignore[arg-type]
        ]
    found = findings(f"--host 192.0.2.1 --state-dir {tmp_path}/state")
    assert {name for name, finding in found.items() if finding[1] != "ok"} == {"TLS"}
    assert "2 active of 2, 1 user, 1 admin" in found["key store"][2]
    assert found["role admin"][2] == "/reset_prefix_cache"
    assert not any(key in str(found) for key in secrets)
    with KeyStore(path) as store:
        store.add(KeyRow(name="forever", role="admin", **fields))  # type: ignore[arg-type]
    assert "forever" in findings(f"--state-dir {tmp_path}/state")["admin keys"][2]


def test_an_empty_store_locks_everyone_out(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys", create=True).close()
    finding = findings(f"--host 0.0.0.0 --key-store {tmp_path}/keys")
    assert finding["key store"][1:3] == ("warn", f"{tmp_path}/keys: 0 active of 0: nobody gets in")
    assert finding["address"][1] == "ok"


def test_a_running_server_is_found_and_read(tmp_path: Path, capsys) -> None:
    """By its command line: the process here only looks like one."""
    (tmp_path / "state").mkdir()
    (tmp_path / "octavo.yaml").write_text("host: 0.0.0.0\nstate_dir: state\n")
    program = tmp_path / "octavo"
    program.write_text("import sys\nprint('up', flush=True)\nsys.stdin.read()\n")
    env = os.environ | {"OCTAVO_API_KEY": "a-secret-key-of-a-server"}
    command = [sys.executable, str(program), "serve", "--config", "octavo.yaml", "--port", "7007"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=tmp_path
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        try:
            found = {subject.name: subject for subject in security.running()}
            subject = found[f"process {process.pid}"]
            main(["doctor", "--security"])
        finally:
            assert process.stdin is not None
            process.stdin.close()
    assert subject.config.host == "0.0.0.0" and subject.config.port == 7007
    assert subject.named == ("a-secret-key-of-a-server",)
    judged = {finding[0]: finding for finding in security.judge(subject)}
    assert str(tmp_path / "state") in judged["state dir"][2]
    out = capsys.readouterr().out
    assert f"process {process.pid}" in out and "0.0.0.0:7007" in out
    assert "a-secret-key" not in out


def test_a_server_is_probed_without_a_key(capsys) -> None:
    with ServerThread(make_state()) as server:
        code = main(["doctor", "--security", server.url, "--json"])
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        assert code == 0 and checks["/v1/models"]["status"] == "warn"
        assert "200 without a key" in checks["/metrics"]["detail"]
    with ServerThread(make_state(keys=("named",))) as server:
        assert main(["doctor", "--security", server.url]) == 0
        out = capsys.readouterr().out
        assert "asked for on every other route" in out and "/v1/models" not in out
        assert "/health /ping /livez /readyz /startupz" in out


def test_what_cannot_be_probed_is_said() -> None:
    for url, code in (
        ("ftp://x", "E-CFG-01"),
        ("file:///etc/passwd", "E-CFG-01"),
        ("nonsense", "E-CFG-01"),
        ("http://127.0.0.1:9", "E-NET-03"),
    ):
        with pytest.raises(ConfigError) as caught:
            security.probe(url)
        assert caught.value.code == code
    assert main(["doctor", "--security", "http://x", "--flags", ""]) == 2
