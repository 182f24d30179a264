"""Uploaded files and batch jobs on disk: sqlite for what is known of them, plain files for their content.

Every row belongs to a tenant and is found only by that tenant. What a method has written is durable when it returns.
Owner: one server; a second one on the same folder is refused, unless the first has handed it over. Methods block, so
event loops call the writing ones in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from octavo.core.errors import ConfigError, NotFoundError, OverloadError
from octavo.server.jobs.shapes import OPEN, Batch, File

MAX_FILE_BYTES = 512 << 20
MAX_TENANT_BYTES = 8 << 30
MAX_FILES = 2000
MAX_BATCHES = 1000
MAX_OPEN_BATCHES = 100
_COPY_BYTES = 1 << 20

_TABLES = """
CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, tenant TEXT, size INTEGER, expires INTEGER, doc BLOB) STRICT;
CREATE INDEX IF NOT EXISTS files_of ON files (tenant);
CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, tenant TEXT, status TEXT, doc BLOB) STRICT;
CREATE INDEX IF NOT EXISTS batches_of ON batches (tenant);
CREATE TABLE IF NOT EXISTS answers
  (batch TEXT, line INTEGER, is_good INTEGER, doc BLOB, PRIMARY KEY (batch, line)) STRICT, WITHOUT ROWID;
"""
_file = msgspec.json.Decoder(File)
_batch = msgspec.json.Decoder(Batch)


class Store:
    """The folder.

    Raises:
        ConfigError: it cannot be written, or another server has it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "files").mkdir(mode=0o700, exist_ok=True)
            (folder / "octavo.sqlite3").touch(mode=0o600)  # its journals get the same mode
            self._lock = _locked(folder / "lock")
            self._db = sqlite3.connect(
                folder / "octavo.sqlite3", isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        except BlockingIOError as error:
            raise ConfigError(
                f"--state-dir {str(folder)!r} is in use by another server.",
                code="E-FILE-02",
                fix="Stop it, or give each server a folder of its own.",
            ) from error
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"--state-dir {str(folder)!r}: {error}.", code="E-FILE-02") from error

    def close(self) -> None:
        """Give the folder back."""
        with self._guard:
            self._db.close()
            self._lock.close()

    def hand_over(self) -> None:
        """Let another server run what is open in this folder; its files can still be read and added to here."""
        self._lock.close()

    def take_back(self) -> None:
        """Own the folder again.

        Raises:
            BlockingIOError: another server has it.
        """
        self._lock = _locked(self._folder / "lock")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *values: object) -> list[tuple[bytes, ...]]:
        with self._guard:
            return self._db.execute(query, values).fetchall()

    # -- files -----------------------------------------------------------------------------------------------------

    def path(self, file_id: str) -> Path:
        """Where a file's content lies. Ids are made here; none comes from a caller unlooked-up."""
        return self._folder / "files" / file_id

    def add_file(self, tenant: str, file: File, source: IO[bytes]) -> File:
        """Keep a file; `bytes` is counted here.

        Raises:
            OverloadError: the tenant has as much as it may.
        """
        used = self._rows(
            "SELECT count(*), coalesce(sum(size), 0) FROM files WHERE tenant=?", tenant
        )
        count, size = used[0]
        if int(count) >= MAX_FILES or int(size) >= MAX_TENANT_BYTES:
            raise OverloadError(
                f"{int(count)} files of {int(size)} bytes are kept for this key; at most {MAX_FILES} files and "
                f"{MAX_TENANT_BYTES} bytes can be.",
                code="too_many_files",
                fix="Delete some.",
            )
        target = self.path(file.id)
        with target.open("wb") as out:
            while part := source.read(_COPY_BYTES):
                out.write(part)
            _sync(out)
        file = msgspec.structs.replace(file, bytes=target.stat().st_size)
        with self._transaction() as db:
            _insert_file(db, tenant, file)
        return file

    def file(self, tenant: str, file_id: str) -> File:
        """What is known of a file.

        Raises:
            NotFoundError: this tenant has no such file.
        """
        rows = self._rows("SELECT doc FROM files WHERE id=? AND tenant=?", file_id, tenant)
        if not rows or _is_over(found := _file.decode(rows[0][0])):
            raise NotFoundError(f"no file {file_id[:64]!r} of this key.", param="file_id")
        return found

    def files(self, tenant: str) -> list[File]:
        """A tenant's files, newest first."""
        rows = self._rows("SELECT doc FROM files WHERE tenant=? ORDER BY rowid DESC", tenant)
        return [file for (doc,) in rows if not _is_over(file := _file.decode(doc))]

    def delete_file(self, tenant: str, file_id: str) -> None:
        """Forget a file. Raises NotFoundError as `file` does."""
        self.file(tenant, file_id)
        with self._transaction() as db:
            db.execute("DELETE FROM files WHERE id=? AND tenant=?", (file_id, tenant))
        self.path(file_id).unlink(missing_ok=True)

    def purge(self) -> None:
        """Delete expired files, and content that no row speaks of."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM files WHERE expires IS NOT NULL AND expires < ?", (int(time.time()),)
            )
        known = {str(name) for (name,) in self._rows("SELECT id FROM files")}
        limit = time.time() - 3600  # an upload under way has no row yet
        for path in (self._folder / "files").iterdir():
            if path.name not in known and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)

    # -- batches ---------------------------------------------------------------------------------------------------

    def add_batch(self, tenant: str, batch: Batch) -> None:
        """Keep a new job; the oldest ended ones make room.

        Raises:
            OverloadError: too many of the tenant's jobs have not ended.
        """
        own = self.batches(tenant)
        num_open = sum(one.status in OPEN for one in own)
        if num_open >= MAX_OPEN_BATCHES:
            raise OverloadError(
                f"{num_open} batches of this key have not ended; at most {MAX_OPEN_BATCHES} can be open.",
                code="too_many_batches",
                fix="Wait for one, or cancel one.",
            )
        ended = [one.id for one in reversed(own) if one.status not in OPEN]
        with self._transaction() as db:
            for old in ended[: max(0, len(own) + 1 - MAX_BATCHES)]:
                db.execute("DELETE FROM batches WHERE id=?", (old,))
            db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?)",
                (batch.id, tenant, batch.status, msgspec.json.encode(batch)),
            )

    def batch(self, tenant: str, batch_id: str) -> Batch:
        """A job as it is now.

        Raises:
            NotFoundError: this tenant has no such job.
        """
        rows = self._rows("SELECT doc FROM batches WHERE id=? AND tenant=?", batch_id, tenant)
        if not rows:
            raise NotFoundError(f"no batch {batch_id[:64]!r} of this key.", param="batch_id")
        return _batch.decode(rows[0][0])

    def batches(self, tenant: str) -> list[Batch]:
        """A tenant's jobs, newest first."""
        rows = self._rows("SELECT doc FROM batches WHERE tenant=? ORDER BY rowid DESC", tenant)
        return [_batch.decode(doc) for (doc,) in rows]

    def open_batches(self) -> list[tuple[str, Batch]]:
        """(tenant, job) of all that have not ended, oldest first."""
        marks = ",".join("?" * len(OPEN))
        rows = self._rows(
            f"SELECT tenant, doc FROM batches WHERE status IN ({marks}) ORDER BY rowid", *OPEN
        )
        return [(str(tenant), _batch.decode(doc)) for tenant, doc in rows]

    def update(self, batch: Batch) -> None:
        """Write a job's new state. A cancellation that came meanwhile stays."""
        with self._transaction() as db:
            _update(db, batch, unless="cancelling")

    def cancel(self, tenant: str, batch_id: str, now: int) -> Batch:
        """Mark a job for cancellation; one that has ended stays as it is. Raises NotFoundError as `batch` does."""
        batch = self.batch(tenant, batch_id)
        with self._transaction() as db:
            (doc,) = db.execute("SELECT doc FROM batches WHERE id=?", (batch_id,)).fetchone()
            batch = _batch.decode(doc)
            if batch.status in ("validating", "in_progress"):
                batch.status, batch.cancelling_at = "cancelling", now
                _update(db, batch)
        return batch

    # -- answers ---------------------------------------------------------------------------------------------------

    def save_answer(self, batch_id: str, line: int, doc: bytes, *, is_good: bool) -> None:
        """Keep the answer of one line; the first one stays."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (batch_id, line, is_good, doc)
            )

    def answered(self, batch_id: str) -> dict[int, bool]:
        """Line -> whether it went well, of the lines that have been answered."""
        rows = self._rows("SELECT line, is_good FROM answers WHERE batch=?", batch_id)
        return {int(line): bool(is_good) for line, is_good in rows}

    def finish(self, tenant: str, batch: Batch, files: Sequence[File]) -> None:
        """Make the answers into `files` (good ones, then bad ones) and end the job, all or nothing."""
        sized = []
        for file, is_good in zip(files, (True, False), strict=True):
            with self.path(file.id).open("wb") as out:
                out.writelines(self._docs(batch.id, is_good=is_good))
                _sync(out)
                sized.append(msgspec.structs.replace(file, bytes=out.tell()))
        kept = [file if file.bytes else None for file in sized]
        batch.output_file_id, batch.error_file_id = (file.id if file else None for file in kept)
        with self._transaction() as db:
            for one in kept:
                if one is not None:
                    _insert_file(db, tenant, one)
            _update(db, batch)
            db.execute("DELETE FROM answers WHERE batch=?", (batch.id,))

    def _docs(self, batch_id: str, *, is_good: bool) -> Iterable[bytes]:
        """Lines of an output file in the order of the input, one at a time."""
        for line, good in sorted(self.answered(batch_id).items()):
            if good == is_good:
                rows = self._rows(
                    "SELECT doc FROM answers WHERE batch=? AND line=?", batch_id, line
                )
                yield bytes(rows[0][0]) + b"\n"


def _locked(path: Path) -> IO[str]:
    """The lock file, held. Raises BlockingIOError when somebody else holds it."""
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        lock.close()
        raise
    return lock


def new_id(prefix: str) -> str:
    """An id that nobody can guess."""
    return prefix + secrets.token_hex(16)


def _insert_file(db: sqlite3.Connection, tenant: str, file: File) -> None:
    row = (file.id, tenant, file.bytes, file.expires_at, msgspec.json.encode(file))
    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", row)


def _update(db: sqlite3.Connection, batch: Batch, unless: str = "") -> None:
    doc = msgspec.json.encode(batch)
    db.execute(
        "UPDATE batches SET status=?, doc=? WHERE id=? AND status!=?",
        (batch.status, doc, batch.id, unless),
    )


def _is_over(file: File) -> bool:
    return file.expires_at is not None and file.expires_at < time.time()


def _sync(out: IO[bytes]) -> None:
    out.flush()
    os.fsync(out.fileno())
