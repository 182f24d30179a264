"""The API keys of a server on disk: one sqlite file, mode 0600, in which no key can be read.

`octavo keys` writes it while servers read it: `Watch` sees a change within a second. Every statement is fixed text with
parameters.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from octavo.core.errors import ConfigError
from octavo.server.keys.rows import KeyRow, Limits, digest, new_key, shown

FILE = "keys.sqlite3"
"""Its name in a --state-dir."""
MAX_KEYS = 100_000
_BUSY_S = 5.0

_TABLE = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant TEXT NOT NULL,
    weight REAL NOT NULL,
    requests_per_minute INTEGER,
    tokens_per_minute INTEGER,
    max_concurrency INTEGER,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER,
    used INTEGER,
    origin TEXT
) STRICT
"""
_COLUMNS = (
    "id, hash, prefix, name, role, tenant, weight, requests_per_minute, tokens_per_minute, "
    "max_concurrency, created, expires, revoked, used, origin"
)


class KeyStore:
    """An open key file. Owner: one thread at a time.

    Raises:
        ConfigError: it cannot be read, is no key file, or others than its owner may open it.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        try:
            if create:
                _create(path)
            self._check_mode()
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_TABLE)
            self._add_origin()
        except sqlite3.Error as error:
            self._db.close()
            raise _unusable(path, error) from error
        status = path.stat()
        self.file = (status.st_dev, status.st_ino)

    def _add_origin(self) -> None:
        """The column that files of before it lack; another process may be adding it at this moment."""
        if any(row[1] == "origin" for row in self._db.execute("PRAGMA table_info(keys)")):
            return
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("ALTER TABLE keys ADD COLUMN origin TEXT")
        self._db.execute("SELECT origin FROM keys LIMIT 1")

    def _check_mode(self) -> None:
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"key store {str(self.path)!r} has mode {mode:04o}: others may open it.",
                code="E-SEC-02",
                fix=f"Run `chmod 600 {self.path}`.",
            )

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> KeyStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def version(self) -> int:
        """Another number once somebody else has written. Costs microseconds."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def rows(self) -> list[KeyRow]:
        """All keys, oldest first."""
        found = self._db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created, rowid")
        return [_row(values) for values in found]

    def find(self, text: str) -> KeyRow:
        """The key of this id, prefix or name.

        Raises:
            ConfigError: none, or several.
        """
        rows = self.rows()
        found = [row for row in rows if text in (row.id, row.prefix, row.name)]
        if len(found) > 1:
            active = [row for row in found if row.state(time.time()) == "active"]
            found = active if len(active) == 1 else found
        if len(found) != 1:
            ids = ", ".join(row.id for row in found[:8])
            raise ConfigError(
                f"{len(found) or 'no'} keys with id, prefix or name {text!r}"
                + (f": {ids}." if found else "."),
                code="E-SEC-06",
                fix="Name one by its id; `octavo keys list` shows them.",
            )
        return found[0]

    def add(self, row: KeyRow) -> str:
        """Keep a new key like `row`, whose `id`, `hash` and `prefix` are made here; the key, for the only time.

        Raises:
            ConfigError: there are too many.
        """
        with self._transaction():
            return self._add(row)

    def _add(self, row: KeyRow) -> str:
        (count,) = self._db.execute("SELECT count(*) FROM keys").fetchone()
        if count >= MAX_KEYS:
            raise ConfigError(f"there are {count} keys; at most {MAX_KEYS}.", code="E-SEC-06")
        key = new_key()
        key_id = f"key_{secrets.token_hex(6)}"
        values = (
            key_id,
            digest(key.encode()),
            shown(key),
            row.name,
            row.role,
            row.tenant or key_id,
            row.weight,
            *row.limits,
            row.created,
            row.expires,
            None,
            None,
            row.origin or None,
        )
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({marks})", values)
        return key

    def revoke(self, key_id: str, at: int) -> None:
        """From `at` on the key opens nothing. One that was revoked earlier stays so."""
        self._db.execute(
            "UPDATE keys SET revoked = min(coalesce(revoked, ?), ?) WHERE id = ?", (at, at, key_id)
        )

    def rotate(self, row: KeyRow, at: int) -> str:
        """A new key in place of `row`, which opens nothing from `at` on; both or neither. It is booked as `row` was."""
        with self._transaction():
            key = self._add(replace(row, origin=row.books_as))
            self.revoke(row.id, at)
        return key

    def touch(self, used: Iterable[tuple[str, int]]) -> bool:
        """Note (key id, when it was used) without waiting for a disk or a writer: false where somebody else is one."""
        self._db.execute("PRAGMA busy_timeout=0")
        self._db.execute("PRAGMA synchronous=NORMAL")
        try:
            with self._transaction():
                self._db.executemany(
                    "UPDATE keys SET used = ? WHERE id = ?", [(at, key_id) for key_id, at in used]
                )
        except sqlite3.OperationalError:
            return False
        finally:
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")
        return True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _create(path: Path) -> None:
    """An empty file that only its owner may open; sqlite gives its journals the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _row(values: tuple[Any, ...]) -> KeyRow:
    key_id, key_hash, prefix, name, role, tenant, weight, rpm, tpm, most, created, *times = values
    expires, revoked, used, origin = times
    return KeyRow(
        id=key_id,
        hash=key_hash,
        prefix=prefix,
        name=name,
        role=role,
        tenant=tenant,
        weight=weight,
        limits=Limits(rpm, tpm, most),
        created=created,
        expires=expires,
        revoked=revoked,
        used=used,
        origin=origin or "",
    )


def _unusable(path: Path, error: Exception) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return ConfigError(
        f"key store {str(path)!r}: {reason}.",
        code="E-SEC-02",
        fix="Name a file with --key-store, or a folder with --state-dir; "
        "`octavo keys create` makes one.",
    )
