"""`octavo keys` as typed."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from octavo.server.keys.rows import digest
from octavo.server.keys.store import KeyStore
from octavo.tools.cli import main
from octavo.tools.keys.file import moment, span


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    assert main(["keys", *words]) == code
    return tuple(capsys.readouterr())


def test_create_prints_the_key_once_and_list_never(path: Path, capsys) -> None:
    limits = (
        "--rpm",
        "60",
        "--tpm",
        "1000",
        "--concurrency",
        "4",
        "--weight",
        "2",
        "--expires",
        "30d",
    )
    made = ("create", "--name", "ci", "--role", "operator", "--tenant", "team", *limits)
    out, err = run(capsys, *made, "--key-store", str(path))
    key = out.strip()
    assert re.fullmatch(r"sk-octavo-[A-Za-z0-9]{43}", key) and key not in err
    assert "only time" in err
    with KeyStore(path) as store:
        (row,) = store.rows()
    assert row.hash == digest(key.encode()) and row.limits == (60, 1000, 4) and row.weight == 2
    assert (row.role, row.tenant, row.name) == ("operator", "team", "ci")
    assert row.expires is not None and abs(row.expires - time.time() - 30 * 86400) < 60
    text, _ = run(capsys, "list", "--key-store", str(path))
    assert "60 rpm, 1000 tpm, 4 at once" in text and key not in text and row.hash.hex() not in text
    text, _ = run(capsys, "list", "--key-store", str(path), "--json")
    (shown,) = json.loads(text)["keys"]
    assert shown["state"] == "active" and "hash" not in shown and key not in text


def test_revoke_and_rotate(path: Path, capsys) -> None:
    where = ("--key-store", str(path))
    old = run(capsys, "create", "--name", "a", "--tenant", "t", *where)[0].strip()
    out, err = run(capsys, "rotate", "a", "--overlap", "1h", *where)
    with KeyStore(path) as store:
        before, after = store.rows()
        assert before.hash == digest(old.encode()) and after.hash == digest(out.strip().encode())
        assert before.state(time.time()) == "active"
        assert before.state(time.time() + 3601) == "revoked"
        assert after.tenant == "t"
    assert before.id in err
    out, _ = run(capsys, "revoke", after.id, *where)
    assert after.id in out
    with KeyStore(path) as store:
        assert store.find(after.id).state(time.time()) == "revoked"
    assert "is revoked" in run(capsys, "rotate", after.id, *where, code=2)[1]
    run(capsys, "rotate", before.prefix, *where)
    with KeyStore(path) as store:
        assert store.find(before.id).state(time.time()) == "revoked", "at once, without --overlap"


def test_the_servers_own_flags_name_the_file(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "state"
    run(capsys, "create", "--name", "a", "--state-dir", str(folder))
    assert (folder / "keys.sqlite3").stat().st_mode & 0o777 == 0o600
    config = tmp_path / "octavo.yaml"
    config.write_text(f"model: m\nstate-dir: {folder}\n")
    assert " a " in run(capsys, "list", "--config", str(config))[0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("create", "--name", "a"), "E-SEC-04: no key store"),
        (("list", "--key-store", "/nowhere/keys"), "E-SEC-02"),
        (("create", "--name", "", "--key-store", "{}"), "E-SEC-05: name"),
        (("create", "--name", "a", "--tenant", "a/b", "--key-store", "{}"), "E-SEC-05: tenant"),
        (("create", "--name", "a", "--expires", "2001-01-01", "--key-store", "{}"), "is over"),
        (("create", "--name", "a", "--expires", "soon", "--key-store", "{}"), "'soon' given"),
        (("create", "--name", "a", "--rpm", "0", "--key-store", "{}"), "--rpm: '0' given"),
        (("create", "--name", "a", "--tpm", "9999999999", "--key-store", "{}"), "--tpm"),
        (("create", "--name", "a", "--weight", "nan", "--key-store", "{}"), "--weight"),
        (("create", "--name", "a", "--role", "root", "--key-store", "{}"), "--role"),
        (("create",), "--name"),
        (("remove",), "unknown keys verb 'remove'"),
    ],
)
def test_mistakes_are_named(path: Path, capsys, words: tuple[str, ...], complaint: str) -> None:
    assert complaint in run(capsys, *(word.format(path) for word in words), code=2)[1]
    assert not path.exists()


def test_times() -> None:
    assert [span(text) for text in ("90", "90s", "15m", "12h", "30d", "2w")] == [
        90, 90, 900, 43200, 30 * 86400, 14 * 86400,
    ]  # fmt: skip
    assert moment("2030-01-31") == moment("2030-01-31T00:00:00+00:00") == 1896048000
