"""The ledger on disk: sums by minute and tags, requests, lives of servers, budgets. SQLite or PostgreSQL by one library.

Writes are sums to be added, all of a batch in one transaction, and a batch has a number: one whose answer was lost is not
added twice. Methods block; one thread at a time. Loading the library takes a quarter of a second and 30 MB, so who may do
without a ledger imports this late.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from octavo.core.errors import ConfigError
from octavo.server.costs.book import Batch
from octavo.server.costs.budget import MAX_BUDGETS, Budget
from octavo.server.costs.entry import Entry
from octavo.server.costs.tags import MINUTE_S

MAX_REQUESTS = 1_000_000
"""Requests that are kept one by one; sums are kept for good."""
_BUSY_S = 5.0

_data = sa.MetaData()
_lives = sa.Table(
    "octavo_lives",
    _data,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("began", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("devices", sa.Integer, nullable=False),
    sa.Column("price", sa.Double),
    sa.Column("num_batches", sa.BigInteger, nullable=False),
)
_sums = sa.Table(
    "octavo_sums",
    _data,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("life", sa.String(32), primary_key=True),
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("api_key", sa.Text, primary_key=True),
    sa.Column("feature", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, primary_key=True),
    sa.Column("amount", sa.Double, nullable=False),
)
_requests = sa.Table(
    "octavo_requests",
    _data,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("id", sa.Text, nullable=False, index=True),
    sa.Column("life", sa.String(32), nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("api_key", sa.Text, nullable=False),
    sa.Column("feature", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("began", sa.Double, nullable=False),
    sa.Column("ended", sa.Double, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("prompt", sa.Integer, nullable=False),
    sa.Column("cached", sa.Integer, nullable=False),
    sa.Column("output", sa.Integer, nullable=False),
    sa.Column("reasoning", sa.Integer, nullable=False),
    sa.Column("prefill_s", sa.Double, nullable=False),
    sa.Column("decode_s", sa.Double, nullable=False),
    sa.Column("again_s", sa.Double, nullable=False),
    sa.Column("cost", sa.Double),
)
_budgets = sa.Table(
    "octavo_budgets",
    _data,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("measure", sa.Text, nullable=False),
    sa.Column("amount", sa.Double, nullable=False),
    sa.Column("period", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)


class Life(NamedTuple):
    """One server, as its sums name it."""

    id: str
    model: str
    began: float
    """Unix time."""
    price: float | None
    """Of a device-hour."""
    devices: int = 1


class Sum(NamedTuple):
    """One line of what was asked for."""

    dims: tuple[str, ...]
    item: str
    amount: float
    priced: float
    """Each amount times the price of its server; of those without one nothing."""


class Window(NamedTuple):
    """A span of the ledger."""

    lines: list[Sum]
    whole: list[Sum]
    """By nothing, of everybody."""
    covered_s: float
    price: float | None


class LedgerStore:
    """An open ledger. `url` is postgresql://..., or sqlite:///FILE.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.name = _shown(url)
        try:
            self._engine = sa.create_engine(_driver(url, create=create), pool_pre_ping=True)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _pragmas)
            if create:
                self._create()
            else:
                with self._engine.connect() as db:
                    db.execute(sa.select(_lives.c.id).limit(1))
        except ImportError as error:
            raise ConfigError(
                f"ledger {self.name}: {error}.",
                code="E-COST-01",
                fix="Install the driver: `pip install 'octavo[postgresql]'`.",
            ) from error
        except (SQLAlchemyError, OSError, ValueError) as error:
            raise ConfigError(
                f"ledger {self.name}: {_cause(error)}.",
                code="E-COST-01",
                fix="--ledger-url is sqlite:///FILE or postgresql://USER@HOST/DATABASE; without it the ledger is "
                "ledger.sqlite3 in --state-dir.",
            ) from error

    def _create(self) -> None:
        """Make the tables that are not there; another server may be making the same ones at this moment."""
        for tries_left in (3, 2, 1, 0):
            try:
                _data.create_all(self._engine)
                return
            except (IntegrityError, OperationalError, ProgrammingError) as error:
                is_there = not isinstance(error, OperationalError) or "already exists" in str(error)
                if not tries_left or not is_there:
                    raise

    def close(self) -> None:
        """Let go of it."""
        self._engine.dispose()

    # -- writing ---------------------------------------------------------------------------------------------------

    def add_life(self, life: Life) -> None:
        """A server begins."""
        row = {**life._asdict(), "until": life.began, "num_batches": 0}
        with self._engine.begin() as db:
            db.execute(sa.insert(_lives).values(row))

    def has_lives(self) -> bool:
        """Whether a server has ever kept its books here."""
        with self._engine.connect() as db:
            return db.execute(sa.select(_lives.c.id).limit(1)).first() is not None

    def write(self, life: Life, number: int, batch: Batch) -> None:
        """Add a batch, once: `number` counts a life's batches from 1.

        Raises:
            SQLAlchemyError: it may not be there; write it again under the same number.
        """
        with self._engine.begin() as db:
            known = db.execute(
                sa.select(_lives.c.num_batches).where(_lives.c.id == life.id)
            ).scalar_one_or_none()
            if known is None or known >= number:
                return
            db.execute(
                sa.update(_lives)
                .where(_lives.c.id == life.id)
                .values(num_batches=number, until=batch.until)
            )
            if batch.sums:
                db.execute(self._add(), _sum_rows(life, batch))
            if batch.requests:
                db.execute(sa.insert(_requests), [_request_row(life, e) for e in batch.requests])

    def drop_old_requests(self, most: int = MAX_REQUESTS) -> None:
        """Forget all but the latest."""
        with self._engine.begin() as db:
            last = db.execute(sa.select(sa.func.max(_requests.c.number))).scalar()
            if last is not None and last > most:
                db.execute(sa.delete(_requests).where(_requests.c.number <= last - most))

    def _add(self) -> Any:
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(_sums)
        keys = [column.name for column in _sums.primary_key]
        return statement.on_conflict_do_update(
            index_elements=keys, set_={"amount": _sums.c.amount + statement.excluded.amount}
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    def sums(
        self,
        dims: Sequence[str],
        since: float,
        until: float | None = None,
        where: Iterable[tuple[str, str]] = (),
    ) -> list[Sum]:
        """Sums from the minute of `since` on, by columns; `where` is (column, value)."""
        with self._engine.connect() as db:
            return self._sums(db, dims, since, until, where)

    def _sums(
        self,
        db: sa.Connection,
        dims: Sequence[str],
        since: float,
        until: float | None,
        where: Iterable[tuple[str, str]],
    ) -> list[Sum]:
        columns = [_COLUMNS[dim] for dim in dims]
        price = sa.func.coalesce(_lives.c.price, 0.0)
        query = (
            sa.select(
                *columns,
                _sums.c.item,
                sa.func.sum(_sums.c.amount),
                sa.func.sum(_sums.c.amount * price),
            )
            .join(_lives, _lives.c.id == _sums.c.life)
            .where(_sums.c.minute >= int(since // MINUTE_S))
            .group_by(*columns, _sums.c.item)
        )
        if until is not None:
            query = query.where(_sums.c.minute < int(until // MINUTE_S))
        for column, value in where:
            query = query.where(_sums.c[column] == value)
        return [
            Sum(tuple(map(_text, dims, row[:-3])), row[-3], float(row[-2]), float(row[-1]))
            for row in db.execute(query)
        ]

    def covered(self, since: float, until: float | None = None) -> tuple[float, float | None]:
        """Device-seconds from the minute of `since` on in which servers ran, and the price of the latest that has one."""
        with self._engine.connect() as db:
            return self._covered(db, since, until)

    def _covered(
        self, db: sa.Connection, since: float, until: float | None
    ) -> tuple[float, float | None]:
        start = since // MINUTE_S * MINUTE_S
        end = float("inf") if until is None else until // MINUTE_S * MINUTE_S
        seconds, price = 0.0, None
        lives = sa.select(_lives).where(_lives.c.until >= start, _lives.c.began < min(end, 1e18))
        for row in db.execute(lives.order_by(_lives.c.began)):
            seconds += max(0.0, min(row.until, end) - max(row.began, start)) * row.devices
            price = price if row.price is None else row.price
        return seconds, price

    def window(
        self,
        dims: Sequence[str],
        since: float,
        until: float | None = None,
        where: Iterable[tuple[str, str]] = (),
    ) -> Window:
        """All that a report is made of, at one moment: what servers write meanwhile is in none of it."""
        with self._engine.connect() as db:
            if db.dialect.name == "sqlite":
                db.exec_driver_sql("BEGIN")  # its driver begins none to read
            else:
                db.execution_options(isolation_level="REPEATABLE READ")
            return Window(
                self._sums(db, dims, since, until, where),
                self._sums(db, (), since, until, ()),
                *self._covered(db, since, until),
            )

    def requests(self, limit: int) -> list[dict[str, Any]]:
        """The latest requests, newest first."""
        query = sa.select(_requests).order_by(_requests.c.number.desc()).limit(limit)
        with self._engine.connect() as db:
            return [dict(row._mapping) for row in db.execute(query)]

    # -- budgets ---------------------------------------------------------------------------------------------------

    def budgets(self) -> list[Budget]:
        """All, by name."""
        with self._engine.connect() as db:
            names = Budget.__struct_fields__
            columns = [_budgets.c[name] for name in names]
            found = db.execute(sa.select(*columns).order_by(_budgets.c.name))
            return [msgspec.convert(dict(zip(names, row, strict=True)), Budget) for row in found]

    def set_budget(self, budget: Budget) -> None:
        """Keep one, in place of what had its name.

        Raises:
            ConfigError: there are too many.
        """
        with self._engine.begin() as db:
            others = sa.select(sa.func.count()).where(_budgets.c.name != budget.name)
            count = db.execute(others).scalar_one()
            if count >= MAX_BUDGETS:
                raise ConfigError(
                    f"there are {count} budgets; at most {MAX_BUDGETS}.", code="E-COST-02"
                )
            db.execute(sa.delete(_budgets).where(_budgets.c.name == budget.name))
            db.execute(sa.insert(_budgets).values(msgspec.to_builtins(budget)))

    def remove_budget(self, name: str) -> bool:
        """Forget one; whether it was there."""
        with self._engine.begin() as db:
            return db.execute(sa.delete(_budgets).where(_budgets.c.name == name)).rowcount > 0

    def used(self, budget: Budget, now: float) -> list[Sum]:
        """What the ledger has of a budget's period."""
        columns = {"key": "api_key"}
        where = [(columns.get(name, name), value) for name, value in budget.whose.items()]
        return self.sums((), budget.started(now), where=where)


_COLUMNS: dict[str, Any] = {
    "tenant": _sums.c.tenant,
    "key": _sums.c.api_key,
    "feature": _sums.c.feature,
    "model": _sums.c.model,
    "hour": _sums.c.minute // 60,
    "day": _sums.c.minute // 1440,
}


def _text(dim: str, value: object) -> str:
    """A group's name; a time as ISO has it, in UTC."""
    if dim not in ("hour", "day"):
        return str(value)
    step = 3600 if dim == "hour" else 86400
    at = datetime.datetime.fromtimestamp(int(str(value)) * step, datetime.UTC)
    return f"{at:%Y-%m-%dT%H:00Z}" if dim == "hour" else f"{at:%Y-%m-%d}"


def _sum_rows(life: Life, batch: Batch) -> list[dict[str, object]]:
    return [
        {
            "minute": line.minute,
            "life": life.id,
            "tenant": line.tags.tenant,
            "api_key": line.tags.key,
            "feature": line.tags.feature,
            "model": line.tags.model,
            "item": line.item,
            "amount": amount,
        }
        for line, amount in batch.sums.items()
    ]


def _request_row(life: Life, entry: Entry) -> dict[str, object]:
    assert entry.end is not None, "only what has ended is settled"
    end, price = entry.end, life.price
    paid_s = 0.0 if end.wasted_as == "failed" else entry.paid_s
    return {
        "id": entry.id,
        "life": life.id,
        "tenant": entry.tags.tenant,
        "api_key": entry.tags.key,
        "feature": entry.tags.feature,
        "model": entry.tags.model,
        "began": entry.began,
        "ended": entry.ended,
        "reason": end.reason,
        "account": end.wasted_as or "request",
        "prompt": entry.prompt,
        "cached": end.num_cached,
        "output": entry.output,
        "reasoning": end.num_reasoning,
        "prefill_s": entry.prefill_s,
        "decode_s": entry.decode_s,
        "again_s": entry.again_s,
        "cost": None if price is None else paid_s / 3600 * price,
    }


def _driver(url: str, *, create: bool) -> str:
    """The URL with the driver that is used.

    Raises:
        ConfigError: another kind of URL.
        OSError: the file cannot be made.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        return f"postgresql+psycopg://{rest}"
    if scheme != "sqlite" or not rest.startswith("/"):
        raise ConfigError(
            f"the ledger's URL is {_shown(url)!r}; expected sqlite:///FILE or postgresql://USER@HOST/DATABASE.",
            code="E-COST-01",
        )
    path = Path(rest[1:]).expanduser()
    if create:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only its owner may open it; sqlite gives its journals the same mode.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    elif not path.exists():
        raise FileNotFoundError(
            2, "no such file; a server with --state-dir or --ledger-url makes it"
        )
    return f"sqlite:///{path}"


def _pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA busy_timeout={int(_BUSY_S * 1000)}")
    cursor.close()


def _shown(url: str) -> str:
    """A URL without what it has of a password: before the host, or in a query as libpq takes one."""
    url = re.sub(r"([?&]password=)[^&#]*", r"\1***", url, flags=re.IGNORECASE)
    return re.sub(r"^([^:/?#]+://[^:/?#@]*:)[^/?#]*(?=@)", r"\1***", url)


def _cause(error: Exception) -> str:
    """What a driver or the system says, in one line."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, ArgumentError | NoSuchModuleError | ValueError):
        return "the URL cannot be read"
    origin = getattr(error, "orig", None) or error
    return " ".join(str(origin).split())[:300].rstrip(".")


LOST = SQLAlchemyError
"""What a write that failed raises."""
