"""Runs batch jobs beside the callers who wait: few lines at a time, none while others queue, none twice.

A line's answer is on disk before its place in the window is free again. What was under way when the server ended is
asked again after the next start; what was answered is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from octavo.core.log import get_logger
from octavo.server.auth import Guest
from octavo.server.batch_job import Job, now_s
from octavo.server.jobs.shapes import Batch
from octavo.server.jobs.store import Store
from octavo.server.state import AppState

logger = get_logger(__name__)

WINDOW = 16
"""Lines under way at once, over all jobs."""
MAX_JOBS = 8
"""Jobs under way at once, at most one of a tenant."""
_POLL_S = 0.05
_PURGE_S = 600.0


class BatchRunner:
    """Owner: the application's lifespan. `wake` when there may be something new."""

    def __init__(self, state: AppState, store: Store) -> None:
        self._state = state
        self._store = store
        self._news = asyncio.Event()
        self._window = asyncio.Semaphore(WINDOW)
        self._jobs: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """Job id -> tenant, task."""
        self._purged = -_PURGE_S
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run jobs from now on."""
        self._task = asyncio.create_task(self.run())

    async def stop(self) -> None:
        """Leave the jobs where they are; what is answered is kept."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def wake(self) -> None:
        """Look for jobs that were added or cancelled."""
        self._news.set()

    async def run(self) -> None:
        """Run what is open, then wait for more. Ends when the server drains."""
        try:
            while not self._state.is_draining:
                self._news.clear()
                await self._start_jobs()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        self._news.wait(), _POLL_S if self._jobs else 4 * _POLL_S
                    )
        finally:
            for _, task in self._jobs.values():
                task.cancel()
            await asyncio.gather(*[task for _, task in self._jobs.values()], return_exceptions=True)

    async def _start_jobs(self) -> None:
        now = time.monotonic()
        if now - self._purged > _PURGE_S:
            self._purged = now
            await asyncio.to_thread(self._store.purge)
        busy = {tenant for tenant, _ in self._jobs.values()}
        for tenant, batch in self._store.open_batches():
            if len(self._jobs) >= MAX_JOBS:
                break
            guest = None if tenant in busy else self._state.keys.guest_of(tenant)
            if guest is None:
                continue
            busy.add(tenant)
            task = asyncio.create_task(self._job(tenant, batch, guest))
            self._jobs[batch.id] = (tenant, task)

    async def _job(self, tenant: str, batch: Batch, guest: Guest) -> None:
        try:
            await Job(self._state, self._store, self._window, guest, batch).run()
        except Exception:  # edge of a task: one broken job must not end the others
            logger.exception("batch %s stopped", batch.id)
            batch = self._store.batch(tenant, batch.id)
            batch.status, batch.failed_at = "failed", now_s()
            self._store.update(batch)
        finally:
            del self._jobs[batch.id]
            self.wake()
