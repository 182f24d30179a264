"""Kept responses: bounded in rows and bytes, followed back, and nobody finds what another stored."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from octavo.core.errors import ConfigError, EngineError, NotFoundError, RequestError
from octavo.server.response_store import MAX_CHAIN, RESTARTED, ResponseStore, Stored


def row(name: str, previous: str | None = None, size: int = 10) -> Stored:
    return Stored(name, previous, b"[]", b"x" * (size - 2))


def test_put_get_replace_delete() -> None:
    store = ResponseStore()
    store.put("a", row("r"))
    store.put("a", row("r", size=20))
    assert store.get("a", "r").response == b"x" * 18
    store.delete("a", "r")
    with pytest.raises(NotFoundError):
        store.get("a", "r")
    with pytest.raises(NotFoundError):
        store.delete("a", "r")


def test_a_tenant_finds_its_own_alone() -> None:
    store = ResponseStore()
    store.put("a", row("r", size=11))
    store.put("b", row("r", size=12))
    store.put("b", row("s", previous="r"))
    assert len(store.get("a", "r").response) == 9
    assert len(store.chain("b", "s")[0].response) == 10
    for act in (store.get, store.delete, store.chain):
        with pytest.raises(NotFoundError):
            act("a", "s")


def test_the_oldest_go_first() -> None:
    store = ResponseStore(max_rows=4, max_tenant_rows=3)
    for number in range(5):
        store.put("a", row(str(number)))
    assert [name for name in "01234" if has(store, "a", name)] == ["2", "3", "4"]
    store.put("b", row("x"))
    store.put("b", row("y"))
    assert [name for name in "01234" if has(store, "a", name)] == ["3", "4"]


def has(store: ResponseStore, tenant: str, name: str) -> bool:
    try:
        store.get(tenant, name)
    except NotFoundError:
        return False
    return True


def test_bytes_are_bounded_whatever_is_stored() -> None:
    store = ResponseStore(max_rows=50, max_bytes=900, max_tenant_rows=20, max_tenant_bytes=400)
    rng = random.Random(1)
    kept: dict[str, int] = {}
    for number in range(300):
        tenant = rng.choice("abc")
        size = rng.randint(2, 300)
        store.put(tenant, row(f"{number}", size=size))
        kept[f"{tenant}/{number}"] = size
        there = {key: n for key, n in kept.items() if has(store, *key.split("/"))}
        assert sum(there.values()) <= 900 and f"{tenant}/{number}" in there
        assert all(sum(n for k, n in there.items() if k[0] == t) <= 400 for t in "abc")
    with pytest.raises(RequestError) as error:
        store.put("a", row("big", size=401))
    assert error.value.param == "store"


def test_a_chain_is_bounded_and_names_what_is_gone() -> None:
    store = ResponseStore()
    store.put("a", row("0"))
    for number in range(1, MAX_CHAIN + 1):
        store.put("a", row(str(number), previous=str(number - 1)))
    assert len(store.chain("a", str(MAX_CHAIN - 1))) == MAX_CHAIN
    with pytest.raises(RequestError):
        store.chain("a", str(MAX_CHAIN))
    store.delete("a", "3")
    with pytest.raises(NotFoundError, match="'3'") as error:
        store.chain("a", "9")
    assert error.value.param == "previous_response_id"


def test_a_file_lasts_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    store = ResponseStore(path)
    store.put("a", row("r"))
    store.put("a", row("s", previous="r"))
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    again = ResponseStore(path, max_tenant_rows=2)  # nobody closed the other one
    assert [one.id for one in again.chain("a", "s")] == ["r", "s"]
    again.put("a", row("t"))
    assert [name for name in "rst" if has(again, "a", name)] == ["s", "t"]


def test_what_was_being_made_is_failed_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    payload = b'{"id":"r","status":"in_progress","output":[],"error":null}'
    ResponseStore(path).put("a", Stored("r", None, b"[]", payload, is_open=True))
    store = ResponseStore(path)
    found = json.loads(store.get("a", "r").response)
    assert found["status"] == "failed" and found["error"]["code"] == RESTARTED
    assert not store.get("a", "r").is_open


def test_two_servers_have_one_file_while_one_takes_over(tmp_path: Path) -> None:
    """What the new one deleted or ended the old one does not bring back, and both count alike in the end."""
    path = tmp_path / "responses.sqlite3"
    old = ResponseStore(path)
    made = [Stored(name, None, b"[]", b"{}", is_open=True) for name in "rst"]
    for one in made:
        old.put("a", one)
    new = ResponseStore(path, is_shared=True)
    new.delete("a", "r")
    new.put("a", made[1]._replace(response=b'{"status":"cancelled"}', is_open=False))
    for one in made:
        old.put("a", one._replace(response=b'{"status":"completed"}', is_open=False), is_again=True)
    assert not has(new, "a", "r")
    assert new.get("a", "s").response == b'{"status":"cancelled"}'
    assert new.get("a", "t").response == b'{"status":"completed"}'
    old.put("b", row("u"))
    old.close()
    new.fail_abandoned()
    assert new._used == ResponseStore(path)._used and set(new._used) == {"a", "b"}


def test_old_ones_go(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResponseStore(max_age_s=100.0)
    store.put("a", row("r"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 99)
    store.put("a", row("s"))
    assert has(store, "a", "r")
    monkeypatch.setattr(time, "time", lambda: now + 101)
    assert not has(store, "a", "r") and has(store, "a", "s")
    store.put("b", row("t"))
    with pytest.raises(NotFoundError):
        store.delete("a", "r")


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite3")
    store.close()
    with pytest.raises(EngineError) as error:
        store.put("a", row("r"))
    assert error.value.code == "storage_failed"
    (tmp_path / "broken").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigError, match="broken"):
        ResponseStore(tmp_path / "broken")
