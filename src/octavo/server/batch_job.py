"""One batch job from the state in which it was found to its end. `batches.py` says when it runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
from msgspec import Raw

from octavo.core.errors import OctavoError
from octavo.server.auth import Guest
from octavo.server.jobs import lines
from octavo.server.jobs.shapes import (
    Answer,
    AnswerError,
    Batch,
    Counts,
    File,
    Line,
    LineErrors,
    Response,
)
from octavo.server.jobs.store import Store, new_id
from octavo.server.keys.allowance import LimitError
from octavo.server.state import AppState

PRIORITY = 1 << 20
"""Of the lowest class: after everyone else's who arrives within minutes, where the policy looks at it."""
OUTPUT_DAYS = 30
_POLL_S = 0.05
_RETRY_S = 0.5
_MOST_RETRY_S = 60.0
_LOOK_S = 1.0
_LATER = (429, 503)
"""Not the line's fault: asked again."""


class Job:
    """One job. Owner: its task."""

    def __init__(
        self, state: AppState, store: Store, window: asyncio.Semaphore, guest: Guest, batch: Batch
    ) -> None:
        self._state = state
        self._store = store
        self._window = window
        self._guest: Guest | None = _patient(guest)
        """None once the tenant has no key any more."""
        self._looked = time.monotonic()
        self._tenant = guest.caller.tenant
        self._batch = batch
        self._has_expired = False
        self._broken: BaseException | None = None
        """Why a line could not be kept; ends the job."""

    async def run(self) -> None:
        """Go on to the end, or until there is no key for it any more."""
        batch = self._batch
        path = self._store.path(batch.input_file_id)
        if batch.status == "validating":
            total, errors = await asyncio.to_thread(lines.check, path, (batch.endpoint,))
            if self._is_cancelled():
                errors = []
            elif errors:
                batch.errors = LineErrors(data=errors)
                batch.status, batch.failed_at = "failed", now_s()
            else:
                batch.status, batch.in_progress_at = "in_progress", now_s()
                batch.request_counts = Counts(total=total)
            await asyncio.to_thread(self._store.update, batch)
        if batch.status == "in_progress":
            await self._run_lines()
        if self._guest is None:
            return  # it is open: it goes on when there is a key again
        if batch.status in ("in_progress", "finalizing", "cancelling"):
            await self._finish()

    async def _run_lines(self) -> None:
        done = await asyncio.to_thread(self._store.answered, self._batch.id)
        self._count(done)
        tasks: set[asyncio.Task[None]] = set()
        try:
            for index, line in lines.requests(self._store.path(self._batch.input_file_id)):
                if index in done:
                    continue
                if not await self._place():
                    break
                if now_s() >= self._batch.expires_at:
                    self._window.release()
                    self._has_expired = True
                    await self._save(index, msgspec.json.encode(_expired(line)), is_good=False)
                    continue
                task = asyncio.create_task(self._line(index, line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                task.add_done_callback(self._ended)
            while tasks and not self._is_cancelled() and self._has_key():
                await asyncio.wait(tasks, timeout=_POLL_S)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._broken is not None:
            raise self._broken

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._window.release()  # here, because a task that is cancelled at once never runs its own `finally`
        if not task.cancelled():
            self._broken = self._broken or task.exception()

    async def _place(self) -> bool:
        """Take a place in the window once nobody else queues; false when the job is to stop."""
        engine = self._state.engine
        while not self._is_cancelled() and self._has_key():
            if self._broken is not None:
                raise self._broken
            is_free = engine.status().state == "ready" and engine.stats.num_waiting == 0
            if is_free or now_s() >= self._batch.expires_at:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._window.acquire(), _POLL_S)
                    return True
            else:
                await asyncio.sleep(_POLL_S)
        return False

    def _has_key(self) -> bool:
        """Whether the tenant still has a key: what it may do now holds, looked at once a second."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            guest = self._state.keys.guest_of(self._tenant)
            self._guest = None if guest is None else _patient(guest)
        return self._guest is not None

    def _is_cancelled(self) -> bool:
        if self._batch.status != "cancelling":
            latest = self._store.batch(self._tenant, self._batch.id)
            if latest.status == "cancelling":
                self._batch.status, self._batch.cancelling_at = "cancelling", latest.cancelling_at
        return self._batch.status == "cancelling"

    async def _line(self, index: int, line: Line) -> None:
        answer, is_good = await self._ask(line)
        await self._save(index, msgspec.json.encode(answer), is_good=is_good)
        counts = self._batch.request_counts
        counts.completed += is_good
        counts.failed += not is_good
        if not self._is_cancelled():
            await asyncio.to_thread(self._store.update, self._batch)

    async def _save(self, index: int, doc: bytes, *, is_good: bool) -> None:
        save = self._store.save_answer
        await _to_the_end(asyncio.to_thread(save, self._batch.id, index, doc, is_good=is_good))

    async def _ask(self, line: Line) -> tuple[Answer, bool]:
        endpoint, guest = self._state.endpoints[line.url], self._guest
        is_counted = False
        while True:
            guest = self._guest or guest
            assert guest is not None, "lines are asked for somebody"
            try:
                if not is_counted:  # once, however often it has to be asked
                    guest.allowance.count_request()
                    is_counted = True
                inner = await endpoint(bytes(line.body), guest)
                if inner.status not in _LATER:
                    break
                wait_s = inner.retry_after_s
            except LimitError as error:
                wait_s = error.retry_after_s or _RETRY_S
            left_s = self._batch.expires_at - now_s()
            if left_s <= 0:
                self._has_expired = True
                return _expired(line), False
            await asyncio.sleep(max(_RETRY_S, min(wait_s, _MOST_RETRY_S, left_s)))
        response = Response(
            status_code=inner.status, request_id=inner.request_id, body=Raw(inner.body)
        )
        answer = Answer(id=new_id("batch_req_"), custom_id=line.custom_id, response=response)
        return answer, inner.status == 200

    def _count(self, done: dict[int, bool]) -> None:
        counts = self._batch.request_counts
        counts.completed = sum(done.values())
        counts.failed = len(done) - counts.completed

    async def _finish(self) -> None:
        batch = self._batch
        self._count(await asyncio.to_thread(self._store.answered, batch.id))
        batch.finalizing_at = now_s()
        if batch.status == "cancelling":
            batch.status, batch.cancelled_at = "cancelled", now_s()
        elif self._has_expired:
            batch.status, batch.expired_at = "expired", now_s()
        else:
            batch.status, batch.completed_at = "completed", now_s()
        files = [
            File(
                id=f"file-{batch.id}-{part}",
                bytes=0,
                created_at=now_s(),
                expires_at=now_s() + OUTPUT_DAYS * 86400,
                filename=f"{batch.id}_{part}.jsonl",
                purpose="batch_output",
            )
            for part in ("output", "error")
        ]
        await _to_the_end(asyncio.to_thread(self._store.finish, self._tenant, batch, files))


def _patient(guest: Guest) -> Guest:
    """The same with a job's priority."""
    return guest._replace(caller=guest.caller._replace(priority=PRIORITY))


def _expired(line: Line) -> Answer:
    error = AnswerError(
        code="batch_expired", message="the batch's completion window was over before this line."
    )
    return Answer(id=new_id("batch_req_"), custom_id=line.custom_id, error=error)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await work that has begun on disk even if this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(OctavoError):
            await task
        raise


def now_s() -> int:
    """Unix time."""
    return int(time.time())
