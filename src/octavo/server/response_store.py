"""Responses that are kept, so that a later call can go on from them: an embedded database, bounded in rows, bytes and age.

Every row belongs to a tenant, and every look-up names one: what one key stored, no other key finds. In a file, rows
outlive the server, however it ends: a write is in the file when `put` returns, and only a machine that loses power may
lose the latest ones. A response that was still being made is found as failed after that.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core.errors import ConfigError, EngineError, NotFoundError, RequestError
from octavo.core.log import get_logger

logger = get_logger(__name__)

MAX_ROWS = 16_384
MAX_BYTES = 256 << 20
MAX_TENANT_ROWS = 4_096
MAX_TENANT_BYTES = 64 << 20
MAX_AGE_S = 30 * 86400.0
MAX_CHAIN = 512
RESTARTED = "server_restarted"

# Blobs stand last: what is behind one is slow to reach.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    previous TEXT,
    created REAL NOT NULL,
    num_bytes INTEGER NOT NULL,
    is_open INTEGER NOT NULL,
    input BLOB NOT NULL,
    response BLOB NOT NULL,
    UNIQUE (tenant, id)
)
"""


class Stored(NamedTuple):
    """One response with the input of its own, as JSON."""

    id: str
    previous: str | None
    input: bytes
    response: bytes
    is_open: bool = False
    """Whether it is still being made."""


class ResponseStore:
    """The oldest go when a bound is reached. Owner: the server's event loop; without a file it lasts as long as that.

    `is_shared`: another server still makes some of them; `fail_abandoned` once it has ended.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        is_shared: bool = False,
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        max_tenant_rows: int = MAX_TENANT_ROWS,
        max_tenant_bytes: int = MAX_TENANT_BYTES,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._all = (max_rows, max_bytes)
        self._per_tenant = (max_tenant_rows, max_tenant_bytes)
        self._max_age_s = max_age_s
        try:
            if path is not None:
                path.touch(mode=0o600)  # what people said is nobody else's to read
            # Made in one thread and used in another, never in two.
            self._db = sqlite3.connect(
                path or ":memory:", check_same_thread=False, isolation_level=None
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(_SCHEMA)
            self._open_elsewhere = self._db.execute(
                "SELECT tenant, id FROM responses WHERE is_open"
            ).fetchall()
            self._used: dict[str, tuple[int, int]] = {}
            """Tenant -> rows, bytes."""
            self._count()
            if not is_shared:
                self.fail_abandoned()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"kept responses, {str(path)!r}: {error}.", code="E-FILE-02"
            ) from error

    def _count(self) -> None:
        query = "SELECT tenant, COUNT(*), SUM(num_bytes) FROM responses GROUP BY tenant"
        self._used = {tenant: (count, size) for tenant, count, size in self._db.execute(query)}

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def fail_abandoned(self) -> None:
        """Responses that were being made when this opened, and still are, have nobody who makes them."""
        rows, self._open_elsewhere = self._open_elsewhere, []
        query = "SELECT number, response FROM responses WHERE is_open AND tenant = ? AND id = ?"
        found = [one for row in rows for one in self._db.execute(query, row)]
        for number, payload in found:
            response = msgspec.json.decode(payload)
            response["status"] = "failed"
            message = "the server ended while this response was being made; send it again."
            response["error"] = {"code": RESTARTED, "message": message}
            self._db.execute(
                "UPDATE responses SET is_open = 0, response = ? WHERE number = ?",
                (msgspec.json.encode(response), number),
            )
        if found:
            logger.warning(
                "%d responses were cut off by the server's end: marked failed", len(found)
            )
        self._count()  # the other server has kept and dropped some

    def put(self, tenant: str, row: Stored, *, is_again: bool = False) -> None:
        """Keep a response, in place of what had its id before.

        `is_again`: only in place of one that is still being made. Another server (--takeover) may have deleted or ended
        it meanwhile.

        Raises:
            RequestError: it alone is larger than a tenant may store.
            EngineError: it cannot be written.
        """
        size = len(row.input) + len(row.response)
        if size > self._per_tenant[1]:
            raise RequestError(
                f"the response has {size} bytes; at most {self._per_tenant[1]} can be stored.",
                param="store",
                fix="Set store to false.",
            )
        try:
            self._put(tenant, row, size, is_again)
        except sqlite3.Error as error:
            raise EngineError(
                f"the response could not be stored: {error}.",
                code="storage_failed",
                fix="Set store to false, or tell the operator.",
            ) from error

    def _put(self, tenant: str, row: Stored, size: int, is_again: bool) -> None:
        known = self._db.execute(
            "SELECT num_bytes, is_open FROM responses WHERE tenant = ? AND id = ?", (tenant, row.id)
        ).fetchone()
        if is_again and (known is None or not known[1]):
            return
        if known is None:
            self._db.execute(
                "INSERT INTO responses (tenant, id, previous, created, num_bytes, is_open, input, response)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    tenant,
                    row.id,
                    row.previous,
                    time.time(),
                    size,
                    row.is_open,
                    row.input,
                    row.response,
                ),
            )
            self._book(tenant, 1, size)
        else:
            self._db.execute(
                "UPDATE responses SET num_bytes = ?, is_open = ?, input = ?, response = ?"
                " WHERE tenant = ? AND id = ?",
                (size, row.is_open, row.input, row.response, tenant, row.id),
            )
            self._book(tenant, 0, size - known[0])
        while self._is_over(self._used.get(tenant, (0, 0)), self._per_tenant):
            self._drop_oldest("WHERE tenant = ?", tenant)
        while self._is_over(self._total(), self._all):
            self._drop_oldest("")
        self._drop_old_ones()

    def _book(self, tenant: str, rows: int, size: int) -> None:
        count, used = self._used.get(tenant, (0, 0))
        self._used[tenant] = (count + rows, used + size)
        if count + rows == 0:
            del self._used[tenant]

    def _total(self) -> tuple[int, int]:
        return sum(count for count, _ in self._used.values()), sum(
            size for _, size in self._used.values()
        )

    @staticmethod
    def _is_over(used: tuple[int, int], bounds: tuple[int, int]) -> bool:
        return used[0] > bounds[0] or used[1] > bounds[1]

    def _drop_oldest(self, where: str, *values: str) -> None:
        row = self._db.execute(
            f"SELECT number, tenant, num_bytes FROM responses {where} ORDER BY number LIMIT 1",
            values,
        ).fetchone()
        self._drop(*row)

    def _drop(self, number: int, tenant: str, size: int) -> None:
        self._db.execute("DELETE FROM responses WHERE number = ?", (number,))
        self._book(tenant, -1, -size)

    def _drop_old_ones(self) -> None:
        while True:
            row = self._db.execute(
                "SELECT number, tenant, num_bytes, created FROM responses ORDER BY number LIMIT 1"
            ).fetchone()
            if row is None or row[3] >= self._oldest():
                return
            self._drop(*row[:3])

    def _oldest(self) -> float:
        return time.time() - self._max_age_s

    def get(self, tenant: str, response_id: str, param: str = "response_id") -> Stored:
        """One response of this tenant.

        Raises:
            NotFoundError: it has none of that id, or no longer.
        """
        found = self._db.execute(
            "SELECT id, previous, input, response, is_open FROM responses"
            " WHERE tenant = ? AND id = ? AND created >= ?",
            (tenant, response_id, self._oldest()),
        ).fetchone()
        if found is None:
            raise NotFoundError(
                f"no response {response_id[:80]!r} is stored here.",
                param=param,
                code="response_not_found",
                fix="It may have been deleted, pushed out by newer ones, or sent with store set to false.",
            )
        return Stored(found[0], found[1], found[2], found[3], bool(found[4]))

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
        row = self._db.execute(
            "SELECT number, tenant, num_bytes FROM responses WHERE tenant = ? AND id = ?",
            (tenant, response_id),
        ).fetchone()
        if row is None:
            self.get(tenant, response_id)
            return
        self._drop(*row)
