"""The keys that hold now: the key file as it is, looked at again at most once a second. Fails closed."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.core.log import get_logger
from octavo.server.keys.rows import KeyRow
from octavo.server.keys.store import KeyStore

logger = get_logger(__name__)

LOOK_S = 1.0
"""A key that was created or revoked counts after at most this long."""
TOUCH_S = 60.0
"""How exactly it is known when a key was last used."""


class Watch:
    """A key file that may not be there yet. Owner: the server's event loop.

    Once there is one, it holds for good: deleting the file or its rows locks callers out and never lets all in.

    Raises:
        ConfigError: a file that is there and cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._store: KeyStore | None = None
        self._version = 0
        self._by_hash: dict[bytes, KeyRow] = {}
        self._used: dict[str, int] = {}
        self._looked = self._touched = clock()
        self.has_file = False
        """Whether there is or was a key file, so that a key is asked for."""
        self._trouble = ""
        self._open()

    @property
    def by_hash(self) -> Mapping[bytes, KeyRow]:
        """Every key by its hash: active, expired and revoked ones."""
        now = self._clock()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._look()
            if now - self._touched >= TOUCH_S:
                self._touched = now
                self._write_used()
        return self._by_hash

    def use(self, row: KeyRow) -> None:
        """A call came with this key."""
        self._used[row.id] = int(time.time())

    def close(self) -> None:
        """Write down what was used, and let go of the file."""
        self._write_used()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> None:
        if not self._path.exists():
            return
        self.has_file = True
        self._store = KeyStore(self._path)
        self._read()

    def _look(self) -> None:
        """Take up what has changed. Trouble is told once. While the file cannot be read its last keys hold; when it is
        gone, or another has its place that cannot be used, none does.
        """
        try:
            self._look_again()
            self._trouble = ""
        except (ConfigError, sqlite3.Error, OSError) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.error("%s (%d keys hold meanwhile)", error, len(self._by_hash))

    def _look_again(self) -> None:
        if self._store is not None and not self._is_same_file():
            self._store.close()
            self._store = None
            self._by_hash = {}
        if self._store is None:
            self._open()
        elif self._store.version() != self._version:
            self._read()

    def _is_same_file(self) -> bool:
        assert self._store is not None
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        return (status.st_dev, status.st_ino) == self._store.file

    def _read(self) -> None:
        assert self._store is not None
        self._version = self._store.version()
        self._by_hash = {row.hash: row for row in self._store.rows()}

    def _write_used(self) -> None:
        if self._store is None or not self._used:
            return
        try:
            if self._store.touch(self._used.items()):
                self._used.clear()
        except sqlite3.Error as error:
            logger.warning("key store %s: %s", self._path, error)
