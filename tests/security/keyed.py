"""A server with a key of every role, of two tenants, and some that hold no longer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fakes import FakeEngine, make_state
from octavo.server.auth import KeyRing
from octavo.server.keys.rows import KeyRow, Limits
from octavo.server.keys.store import KeyStore
from octavo.server.state import AppState


class Keys(NamedTuple):
    """The keys themselves."""

    user: str
    operator: str
    admin: str
    other: str
    expired: str
    revoked: str


def make_key(store: KeyStore, name: str, **fields: object) -> str:
    """A new key; the fields of its row."""
    given = {"id": "", "hash": b"", "prefix": "", "tenant": "", "created": 1, **fields}
    return store.add(KeyRow(name=name, **given))  # type: ignore[arg-type]  # the tests' own fields


def make_keys(path: Path) -> Keys:
    """A key file with one of each."""
    with KeyStore(path, create=True) as store:
        keys = Keys(
            user=make_key(store, "user", tenant="one"),
            operator=make_key(store, "operator", tenant="one", role="operator"),
            admin=make_key(store, "admin", tenant="one", role="admin"),
            other=make_key(store, "other", tenant="two", limits=Limits()),
            expired=make_key(store, "expired", role="admin", expires=5),
            revoked=make_key(store, "revoked", role="admin"),
        )
        store.revoke(store.find("revoked").id, 5)
    return keys


def keyed_state(path: Path, engine: FakeEngine | None = None) -> tuple[AppState, Keys]:
    """A server's state over a new key file."""
    keys = make_keys(path)
    state = make_state(engine)
    state.keys = KeyRing((), path)
    return state, keys
