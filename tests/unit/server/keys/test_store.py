"""The key file: no key in it, nobody else's to open, and a change is seen while a server runs."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from fakes import InProcess, make_state
from octavo.core.errors import AuthError, ConfigError
from octavo.engine.frontend import Caller
from octavo.server.auth import KeyRing
from octavo.server.keys.rows import KeyRow, Limits, check_name, check_tenant, digest
from octavo.server.keys.store import KeyStore
from octavo.server.keys.watch import LOOK_S, TOUCH_S, Watch


def row(name: str = "a", **fields: object) -> KeyRow:
    given = {"id": "", "hash": b"", "prefix": "", "tenant": "", "created": 1, **fields}
    return KeyRow(name=name, **given)  # type: ignore[arg-type]  # the tests' own fields


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "keys.sqlite3"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_kept_is_the_hash_and_never_the_key(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        key = store.add(row("a", role="admin", weight=2.5, limits=Limits(1, 2, 3), expires=9))
        (kept,) = store.rows()
        assert kept.hash == digest(key.encode()) and kept.prefix == key[:14]
        assert (kept.role, kept.weight, kept.limits, kept.expires) == ("admin", 2.5, (1, 2, 3), 9)
        assert kept.tenant == kept.id
        assert len(set(key[10:])) > 10 and store.add(row()) != key
        files = [*path.parent.iterdir()]
        assert len(files) == 3, "with its journals"
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert key.encode() not in file.read_bytes()
            assert key[14:].encode() not in file.read_bytes()


def test_a_file_that_others_may_open_is_refused(path: Path) -> None:
    KeyStore(path, create=True).close()
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"{mode:04o}.*others") as caught:
            KeyStore(path)
        assert caught.value.code == "E-SEC-02" and "chmod 600" in caught.value.fix
        with pytest.raises(ConfigError):
            KeyRing((), path)


def test_what_is_no_key_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        KeyStore(path)
    other = tmp_path / "other"
    other.write_bytes(b"not a database, and longer than a hundred bytes" * 9)
    other.chmod(0o600)
    with pytest.raises(ConfigError, match="not a database"):
        KeyStore(other)
    with pytest.raises(ConfigError) as caught:
        KeyStore(tmp_path)
    assert caught.value.code == "E-SEC-02"


def test_keys_are_found_by_what_is_shown_of_them(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        store.add(row("a"))
        store.add(row("b"))
        first = store.rows()[0]
        for text in (first.id, first.prefix, "a"):
            assert store.find(text) == first
        store.add(row("a"))
        with pytest.raises(ConfigError, match=f"2 keys.*{first.id}"):
            store.find("a")
        store.revoke(first.id, 5)
        assert store.find("a").id != first.id, "the one of them that opens"
        for hostile in ("' OR 1=1 --", "%", "", "\x00"):
            with pytest.raises(ConfigError, match="no keys"):
                store.find(hostile)


def test_a_key_is_active_until_it_expires_or_is_revoked() -> None:
    assert row(expires=10).state(9.9) == "active"
    assert row(expires=10).state(10) == "expired"
    assert row(revoked=10, expires=10).state(9) == "active"
    assert row(revoked=10, expires=10).state(10) == "revoked"


def test_a_running_server_sees_changes_within_a_second(path: Path) -> None:
    clock = Clock()
    watch = Watch(path, clock)
    assert not watch.has_file and not watch.by_hash
    with KeyStore(path, create=True) as store:
        key = store.add(row())
        clock.now += LOOK_S / 2
        assert not watch.by_hash
        clock.now += LOOK_S / 2
        assert digest(key.encode()) in watch.by_hash and watch.has_file
        (kept,) = store.rows()
        store.revoke(kept.id, 5)
        clock.now += LOOK_S
        assert watch.by_hash[digest(key.encode())].revoked == 5
    watch.close()


def test_a_server_whose_key_file_goes_lets_nobody_in(path: Path, caplog) -> None:
    with KeyStore(path, create=True) as store:
        key = store.add(row())
    clock = Clock()
    watch = Watch(path, clock)
    assert watch.by_hash
    path.unlink()
    clock.now += LOOK_S
    assert watch.has_file and not watch.by_hash
    path.write_bytes(b"no database" * 99)
    path.chmod(0o600)
    for _ in range(3):
        clock.now += LOOK_S
        assert not watch.by_hash
    path.unlink()
    with KeyStore(path, create=True) as store:
        other = store.add(row())
    clock.now += LOOK_S
    assert set(watch.by_hash) == {digest(other.encode())} and key != other
    told = [record for record in caplog.records if record.name == "octavo.server.keys.watch"]
    assert len(told) == 1, "trouble is told once, not once a second"
    watch.close()


def test_the_last_use_is_kept_to_a_minute_and_never_waited_for(path: Path) -> None:
    clock = Clock()
    with KeyStore(path, create=True) as store:
        store.add(row())
        watch = Watch(path, clock)
        (kept,) = watch.by_hash.values()
        watch.use(kept)
        clock.now += LOOK_S
        assert watch.by_hash and store.rows()[0].used is None
        with store._transaction():  # another writer, for longer than the server looks
            clock.now += TOUCH_S
            assert watch.by_hash
        assert store.rows()[0].used is None
        clock.now += TOUCH_S
        assert watch.by_hash
        assert store.rows()[0].used is not None
        watch.close()


def test_writers_of_several_processes_lose_nothing(path: Path) -> None:
    KeyStore(path, create=True).close()

    def write() -> None:
        with KeyStore(path) as store:
            for _ in range(20):
                store.add(row())

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with KeyStore(path) as store:
        assert len({kept.id for kept in store.rows()}) == 80


def test_rotation_is_all_or_nothing(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        store.add(row(tenant="t", limits=Limits(7)))
        (old,) = store.rows()
        store._db.execute(
            "CREATE TRIGGER stop BEFORE UPDATE ON keys BEGIN SELECT RAISE(ABORT, 'stopped'); END"
        )
        with pytest.raises(sqlite3.IntegrityError, match="stopped"):
            store.rotate(old, 50)
        assert store.rows() == [old]
        store._db.execute("DROP TRIGGER stop")
        store.rotate(old, 50)
        before, after = store.rows()
        assert before.revoked == 50 and after.revoked is None
        assert (after.tenant, after.limits) == ("t", Limits(7)) and after.hash != before.hash


def test_a_rotated_key_is_booked_as_the_first_of_its_line(path: Path) -> None:
    """So that a budget of it goes on, with what it has used, for the old and the new key while both open."""
    with KeyStore(path, create=True) as store:
        first = store.add(row("a"))
        other = store.add(row("b"))
        (old, _) = store.rows()
        second = store.rotate(old, 1 << 40)
        third = store.rotate(
            next(one for one in store.rows() if one.prefix == second[:14]), 1 << 40
        )
        assert {one.books_as for one in store.rows() if one.name == "a"} == {old.id}
        assert len({one.id for one in store.rows()}) == 4
    found = ring(path)
    booked = [found.admit(bearer(key)).key for key in (first, second, third, other)]
    assert booked[:3] == [old.id] * 3 and booked[3] != old.id
    found.close()


def test_a_file_from_before_keys_had_an_origin_is_read_on(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        key = store.add(row("a"))
        store._db.execute("ALTER TABLE keys DROP COLUMN origin")
    with KeyStore(path) as store:
        (kept,) = store.rows()
        assert kept.origin == "" and kept.books_as == kept.id
        store.rotate(kept, 50)
        assert [one.books_as for one in store.rows()] == [kept.id] * 2
    assert key


def test_names_and_tenants_are_plain() -> None:
    for bad in ("", "a b", "../x", "é", "a" * 49, "-a", "a\n"):
        with pytest.raises(ConfigError):
            check_tenant(bad)
    for bad in ("", "a\nb", "x" * 65, "\x1b[31m"):
        with pytest.raises(ConfigError):
            check_name(bad)
    assert check_tenant("team.A-1_") and check_name("Zoë's laptop")


def ring(path: Path, *named: str) -> KeyRing:
    return KeyRing(named, path)


def bearer(key: str) -> list[str]:
    return [f"Bearer {key}"]


def test_a_stored_key_says_tenant_role_weight_and_scope(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        one = store.add(row(tenant="t", role="operator", weight=3.0))
        two = store.add(row(tenant="t"))
        other = store.add(row())
    keys = ring(path, "named")
    guest = keys.admit(bearer(one))
    assert guest.caller == Caller("t", "t", 0, 3.0) and guest.role == "operator"
    assert keys.admit(bearer(two)).caller.cache_scope == "t"
    assert keys.admit(bearer(other)).caller.cache_scope not in ("t", "")
    assert keys.admit(bearer("named")).role == "user", "beside a store"
    assert KeyRing(("named",)).admit(bearer("named")).role == "operator"
    assert KeyRing().admit([]).role == "operator"
    keys.close()


def test_ended_keys_say_so_to_those_who_have_them(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        expired = store.add(row(expires=5))
        revoked = store.add(row())
        store.revoke(store.rows()[1].id, 5)
    keys = ring(path)
    for key, code in ((expired, "expired_api_key"), (revoked, "revoked_api_key")):
        with pytest.raises(AuthError) as caught:
            keys.admit(bearer(key))
        assert caught.value.code == code and key not in caught.value.message
    keys.close()


def test_a_store_without_keys_lets_nobody_in(path: Path) -> None:
    KeyStore(path, create=True).close()
    keys = ring(path)
    assert not keys.is_open
    with pytest.raises(AuthError):
        keys.admit(bearer("x"))
    keys.close()


def test_work_without_a_call_goes_on_while_its_tenant_has_a_key(path: Path) -> None:
    with KeyStore(path, create=True) as store:
        store.add(row(tenant="t", limits=Limits(tokens_per_minute=5)))
        store.add(row(tenant="t", weight=2.0, limits=Limits(tokens_per_minute=9)))
        store.add(row(tenant="gone", expires=5))
    keys = ring(path, "named")
    guest = keys.guest_of("t")
    assert guest is not None and guest.caller.weight == 2.0, "its most generous key's"
    named = keys.admit(bearer("named")).caller.tenant
    assert keys.guest_of(named) is not None
    assert keys.guest_of("gone") is None and keys.guest_of("") is None
    assert KeyRing().guest_of("") is not None and KeyRing().guest_of("t") is None
    keys.close()


def test_a_key_made_while_an_open_server_runs_closes_it(path: Path) -> None:
    state = make_state()
    state.keys = KeyRing((), path)
    server = InProcess(state)
    assert server.call("GET", "/v1/models").status_code == 200
    with KeyStore(path, create=True) as store:
        key = store.add(row())
    assert state.keys._watch is not None
    state.keys._watch._looked -= LOOK_S
    assert server.call("GET", "/v1/models").status_code == 401
    headers = {"authorization": f"Bearer {key}"}
    assert server.call("GET", "/v1/models", headers=headers).status_code == 200
    os.unlink(path)
    state.keys._watch._looked -= LOOK_S
    assert server.call("GET", "/v1/models", headers=headers).status_code == 401
    assert server.call("GET", "/v1/models").status_code == 401
    state.keys.close()
