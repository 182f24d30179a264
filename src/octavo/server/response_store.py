"""Responses that are kept, so that a later call can go on from them: an embedded database, bounded in rows and bytes.

Every row belongs to a tenant, and every look-up names one: what one key stored, no other key finds.
"""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from octavo.core.errors import NotFoundError, RequestError

MAX_ROWS = 16_384
MAX_BYTES = 256 << 20
MAX_TENANT_ROWS = 4_096
MAX_TENANT_BYTES = 64 << 20
MAX_CHAIN = 512

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    previous TEXT,
    created REAL NOT NULL,
    input BLOB NOT NULL,
    response BLOB NOT NULL,
    num_bytes INTEGER NOT NULL,
    UNIQUE (tenant, id)
)
"""


class Stored(NamedTuple):
    """One response with the input of its own, as JSON."""

    id: str
    previous: str | None
    input: bytes
    response: bytes


class ResponseStore:
    """The oldest go when a bound is reached. Owner: the server's event loop; it lasts as long as the server.

    `path` may name a file, which lasts longer.
    """

    def __init__(
        self,
        path: str = ":memory:",
        *,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        max_tenant_rows: int = MAX_TENANT_ROWS,
        max_tenant_bytes: int = MAX_TENANT_BYTES,
    ) -> None:
        self._all = (max_rows, max_bytes)
        self._per_tenant = (max_tenant_rows, max_tenant_bytes)
        # Made in one thread and used in another, never in two.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(_SCHEMA)

    def put(self, tenant: str, row: Stored) -> None:
        """Keep a response, in place of what had its id before.

        Raises:
            RequestError: it alone is larger than a tenant may store.
        """
        size = len(row.input) + len(row.response)
        if size > self._per_tenant[1]:
            raise RequestError(
                f"the response has {size} bytes; at most {self._per_tenant[1]} can be stored.",
                param="store",
                fix="Set store to false.",
            )
        known = self._db.execute(
            "UPDATE responses SET input = ?, response = ?, num_bytes = ? WHERE tenant = ? AND id = ?",
            (row.input, row.response, size, tenant, row.id),
        )
        if known.rowcount == 0:
            self._db.execute(
                "INSERT INTO responses (id, tenant, previous, created, input, response, num_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (row.id, tenant, row.previous, time.time(), row.input, row.response, size),
            )
        self._shrink("tenant = ?", (tenant,), self._per_tenant)
        self._shrink("1", (), self._all)

    def get(self, tenant: str, response_id: str, param: str = "response_id") -> Stored:
        """One response of this tenant.

        Raises:
            NotFoundError: it has none of that id, or no longer.
        """
        found = self._db.execute(
            "SELECT id, previous, input, response FROM responses WHERE tenant = ? AND id = ?",
            (tenant, response_id),
        ).fetchone()
        if found is None:
            raise NotFoundError(
                f"no response {response_id[:80]!r} is stored here.",
                param=param,
                code="response_not_found",
                fix="It may have been deleted, pushed out by newer ones, or sent with store set to false.",
            )
        return Stored(*found)

    def chain(self, tenant: str, response_id: str) -> list[Stored]:
        """A response and those before it, oldest first.

        Raises:
            NotFoundError: one of them is gone.
            RequestError: there are more of them than are followed.
        """
        rows: list[Stored] = []
        wanted: str | None = response_id
        while wanted is not None:
            if len(rows) == MAX_CHAIN:
                raise RequestError(
                    f"the conversation has more than {MAX_CHAIN} responses.",
                    param="previous_response_id",
                    fix="Begin a new one with the messages that matter.",
                )
            rows.append(self.get(tenant, wanted, "previous_response_id"))
            wanted = rows[-1].previous
        return rows[::-1]

    def delete(self, tenant: str, response_id: str) -> None:
        """Forget a response. Raises NotFoundError."""
        done = self._db.execute(
            "DELETE FROM responses WHERE tenant = ? AND id = ?", (tenant, response_id)
        )
        if done.rowcount == 0:
            self.get(tenant, response_id)

    def _shrink(self, where: str, values: tuple[str, ...], bounds: tuple[int, int]) -> None:
        """Drop the oldest rows until those that `where` tells are within bounds."""
        while True:
            count, size = self._db.execute(
                f"SELECT COUNT(*), COALESCE(SUM(num_bytes), 0) FROM responses WHERE {where}", values
            ).fetchone()
            if count <= bounds[0] and size <= bounds[1]:
                return
            self._db.execute(
                f"DELETE FROM responses WHERE number = (SELECT MIN(number) FROM responses WHERE {where})",
                values,
            )
