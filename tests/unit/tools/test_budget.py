"""`octavo budget set`: whose key is meant, and whether anybody keeps books where the budget goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.server.costs.store import LedgerStore, Life
from octavo.server.keys.store import FILE, KeyStore
from octavo.tools.cli import main


def made_for(folder: Path) -> str:
    store = LedgerStore(f"sqlite:///{folder}/ledger.sqlite3", create=False)
    (budget,) = store.budgets()
    store.close()
    return budget.value


def test_a_key_is_meant_by_name_and_nobodys_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ["--state-dir", str(tmp_path)]
    assert main(["keys", "create", "--name", "carol", *folder]) == 0
    assert main(["budget", "set", "b", "--key", "carol", "--tokens", "9", *folder]) == 0
    assert "which no server has used yet" in capsys.readouterr().out
    key_id = made_for(tmp_path)
    assert key_id.startswith("key_")
    assert main(["budget", "set", "b", "--key", "karol", "--tokens", "9", *folder]) == 2
    assert "no keys with id, prefix or name 'karol'" in capsys.readouterr().err
    assert main(["budget", "set", "b", "--key", key_id, "--tokens", "8", *folder]) == 0
    assert made_for(tmp_path) == key_id
    assert main(["budget", "set", "b", "--key", "0123456789abcdef", "--tokens", "8", *folder]) == 0
    assert made_for(tmp_path) == "0123456789abcdef", "one of --api-key is in no store"
    store = LedgerStore(f"sqlite:///{tmp_path}/ledger.sqlite3")
    store.add_life(Life("a" * 32, "m", 6000.0, None))
    store.close()
    capsys.readouterr()
    assert main(["budget", "set", "b", "--tenant", "ann", "--tokens", "8", *folder]) == 0
    assert "counts on running servers" in capsys.readouterr().out


def test_a_feature_of_one_tenant_or_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--state-dir", str(tmp_path)]
    assert main(["keys", "create", "--name", "carol", *folder]) == 0
    first = made_by(tmp_path, "carol")
    scoped = ["budget", "set", "b", "--feature", "search", "--tokens", "9", *folder]
    assert main([*scoped, "--tenant", "ann"]) == 0
    assert made_for(tmp_path) == "ann search"
    assert main(["keys", "rotate", "carol", *folder]) == 0
    assert main([*scoped, "--key", "carol"]) == 0
    assert made_for(tmp_path) == f"{first} search", "a rotated key is booked as the first"
    capsys.readouterr()
    assert main(["budget", "list", *folder]) == 0
    assert f"key {first}, feature search" in capsys.readouterr().out
    assert main([*scoped, "--key", "carol", "--tenant", "ann"]) == 2
    assert "--key or --tenant, not both" in capsys.readouterr().err


def made_by(folder: Path, name: str) -> str:
    with KeyStore(folder / FILE) as keys:
        return keys.find(name).id
