"""The server's ledger as a whole: the book in memory, the budgets, and the database, which is written to once a second in a
thread of its own. A database that fails ends nothing but itself: what it has not is kept and tried again, and when that
becomes too much the ledger on disk ends, which health and log say; metrics and budgets go on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.core.errors import ConfigError
from octavo.core.log import get_logger
from octavo.meter.ledger import EVERY_S
from octavo.meter.metrics import Metrics
from octavo.server.costs.book import Batch, Book
from octavo.server.costs.budget import Budget
from octavo.server.costs.budgets import Budgets, total
from octavo.server.costs.rates import Rates
from octavo.server.costs.tab import Tab
from octavo.server.costs.tags import Features, Tags

if TYPE_CHECKING:
    from octavo.server.costs.store import LedgerStore, Life

logger = get_logger(__name__)

WRITE_S = 1.0
LOOK_S = 2.0
"""A budget that was set or removed counts after at most this long, and a write."""
REREAD_S = 30.0
"""How often it is read what other servers have used of budgets."""
DROP_S = 600.0
MAX_BACKLOG = 200_000
"""Sums and requests that wait for a database that fails."""


class CostDesk:
    """Owner: the server's event loop."""

    def __init__(self, model: str, metrics: Metrics, price: float | None = None) -> None:
        self.price = price
        self.book = Book(model, metrics)
        self.budgets = Budgets(price)
        self.book.charged = self.budgets.charge
        self.store: LedgerStore | None = None
        """None: there is no ledger on disk, or no longer."""
        self.trouble = ""
        """Why the database does not have all; empty when it has."""
        self.set_pace: Callable[[float], None] = lambda seconds: None
        """How often the engine is to say where its time went."""
        self.rates = Rates(metrics, price)
        self._metrics = metrics
        self._features = Features()
        self._thread: concurrent.futures.ThreadPoolExecutor | None = None
        self._opening: concurrent.futures.Future[None] | None = None
        self._life: Life | None = None
        self._unwritten: Batch | None = None
        self._number = 1
        self._pace = EVERY_S
        self._read_at = self._looked_at = -math.inf
        self._dropped_at = 0.0

    # -- calls -----------------------------------------------------------------------------------------------------

    def tab(self, tenant: str, key: str, feature: str) -> Tab:
        """What a call spends."""
        named = self._features.book_as(tenant, feature)
        if named != feature and self.budgets.has_feature(feature):
            named = feature  # else it would be spent past its budget
        return Tab(self, Tags(tenant, key, named, self.book.model))

    def count_refusal(self) -> None:
        """A budget let a call not begin."""
        self._metrics.count("vllm:admission_rejections", 1, "budget")

    def keep_pace(self) -> None:
        """Have the engine tell of every step while a budget is nearly used up: one that begins, or once a second."""
        pace = 0.0 if self.budgets.is_near else EVERY_S
        if pace != self._pace:
            self._pace = pace
            self.set_pace(pace)

    # -- the database ----------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Begin to open the ledger on disk, in its thread; `opened` says how that went."""
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._opening = self._thread.submit(self._open, url)

    async def opened(self) -> None:
        """Wait until it is open, if one was asked for.

        Raises:
            ConfigError: it cannot be used.
        """
        if self._opening is not None:
            await asyncio.wrap_future(self._opening)

    def _open(self, url: str) -> None:
        # lazy: a quarter of a second and 30 MB, and for those alone who keep a ledger
        from octavo.server.costs.store import LOST, LedgerStore, Life

        life = Life(secrets.token_hex(16), self.book.model, self.book.began, self.price)
        store = LedgerStore(url)
        try:
            store.add_life(life)
        except LOST as error:
            store.close()
            raise ConfigError(f"ledger {store.name}: {error}.", code="E-COST-01") from error
        self._life, self.store = life, store

    async def run(self) -> None:
        """Once a second, for ever."""
        try:
            await self.opened()
        except ConfigError:
            return  # the start of the server says so
        while True:
            await self.turn()
            await asyncio.sleep(WRITE_S)

    async def turn(self) -> None:
        """Bring metrics, database and budgets up to date."""
        self.book.tick()
        self.rates.observe(self._metrics, time.monotonic())
        if self.budgets.roll():  # whether or not there is a database to ask
            self._read_at = self._looked_at = -math.inf
        if self.store is None:
            self.book.take()
        else:
            await self._write()
            await self._reread()
        self._observe()
        self.keep_pace()

    async def close(self) -> None:
        """Write what there is, and let go of the database."""
        if self._opening is not None and self._thread is not None:
            with contextlib.suppress(ConfigError):
                await self.opened()
            if self.store is not None:
                await self._write()
                if (
                    self._unwritten is None
                ):  # what failed before has gone through, the rest comes behind
                    await self._write()
                self._close_store()
            self._thread.shutdown(wait=True)

    def _close_store(self) -> None:
        if self.store is not None and self._thread is not None:
            self._thread.submit(self.store.close)
            self.store = None

    async def _write(self) -> None:
        store, life, thread = self.store, self._life, self._thread
        assert store is not None and life is not None and thread is not None
        # lazy: loaded by now, since there is a store
        from octavo.server.costs.store import LOST

        batch = self._unwritten = self._unwritten or self.book.take()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(thread, store.write, life, self._number, batch)
        except LOST as error:
            self._fail(" ".join(str(getattr(error, "orig", error)).split())[:300])
            return
        self._number, self._unwritten = self._number + 1, None
        if self.trouble:
            logger.warning("the ledger %s is written again", store.name)
            self.trouble = ""
        if time.monotonic() - self._dropped_at > DROP_S:
            self._dropped_at = time.monotonic()
            await loop.run_in_executor(thread, store.drop_old_requests)

    def _fail(self, cause: str) -> None:
        assert self.store is not None
        if not self.trouble:
            logger.error(
                "the ledger %s cannot be written, and is tried again: %s", self.store.name, cause
            )
        self.trouble = cause
        if len(self.book.sums) + len(self.book.settled) > MAX_BACKLOG:
            logger.error("the ledger %s ends here: %s", self.store.name, cause)
            self.trouble = f"ended: {cause}"
            self._unwritten = None
            self._tell_up()
            self._close_store()

    # -- budgets ---------------------------------------------------------------------------------------------------

    async def _reread(self) -> None:
        """Read budgets again, and what is used of them; what the database has not yet is added."""
        now = time.monotonic()
        if self.store is None or self._thread is None or self._unwritten is not None:
            return
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        is_due = now - self._read_at >= REREAD_S
        # lazy: loaded by now, since there is a store
        from octavo.server.costs.store import LOST

        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._read_budgets, self.store, is_due)
        except LOST as error:
            self._fail(" ".join(str(getattr(error, "orig", error)).split())[:300])
            return
        if found is None:
            return
        self._read_at = now
        pending = list(self.book.pending()) if found else []
        self.budgets.install(
            (
                budget,
                used
                + sum(
                    self.budgets.used_of(budget, item, amount)
                    for tags, item, amount in pending
                    if budget.matches(tags)
                ),
            )
            for budget, used in found
        )

    def _read_budgets(self, store: LedgerStore, is_due: bool) -> list[tuple[Budget, float]] | None:
        """None: they are as they were."""
        now, kept = time.time(), store.budgets()
        if not is_due and kept == [state.budget for state in self.budgets.states.values()]:
            return None
        return [(budget, total(budget, store.used(budget, now))) for budget in kept]

    def _tell_up(self) -> None:
        if self.store is not None:
            database = self.store.name.partition(":")[0]
            self._metrics.set("octavo:ledger_up", 0.0 if self.trouble else 1.0, database)

    def _observe(self) -> None:
        self._tell_up()
        for state in self.budgets.states.values():
            self._metrics.set("octavo:budget_used_ratio", state.share, state.budget.name)
