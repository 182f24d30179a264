"""Kept responses: bounded in rows and bytes, followed back, and nobody finds what another stored."""

from __future__ import annotations

import random

import pytest

from octavo.core.errors import NotFoundError, RequestError
from octavo.server.response_store import MAX_CHAIN, ResponseStore, Stored


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


def test_a_file_lasts(tmp_path: object) -> None:
    path = f"{tmp_path}/responses.db"
    ResponseStore(path).put("a", row("r"))
    assert ResponseStore(path).get("a", "r").id == "r"
