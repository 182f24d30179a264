"""An event loop in a thread, so that the main thread can wait for the keyboard while streams and
servers go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class LoopThread:
    """Owner of one loop and its thread. Use `with`; call from the thread that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="octavo-loop")

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`. Ctrl-C cancels it, waits for its end, and raises KeyboardInterrupt."""
        job = _Job(self._loop, work)
        try:
            job.begin()
            return job.ended.result()
        except KeyboardInterrupt:
            job.cancel()
            raise

    @contextlib.contextmanager
    def hold(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Keep an async context open; entered and left by one task, as task groups demand."""
        entered: Future[T] = Future()
        leave = asyncio.Event()

        async def keep() -> None:
            async with manager as value:
                entered.set_result(value)
                await leave.wait()

        job = _Job(self._loop, keep())
        both: tuple[Future[Any], ...] = (job.ended, entered)
        try:
            job.begin()
            wait(both, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt:
            job.cancel()
            raise
        if not entered.done():
            job.ended.result()
        try:
            yield entered.result()
        finally:
            self._loop.call_soon_threadsafe(leave.set)
            job.ended.result()


class _Job(Generic[T]):
    """A task on another thread's loop.

    `ended` is done when the task has really ended, which the future of
    `asyncio.run_coroutine_threadsafe` does not wait for once it is cancelled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.ended: Future[T] = Future()
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None

    def begin(self) -> None:
        """Hand the work to the loop."""
        self._loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Cancel and wait. What the task raises meanwhile is lost: Ctrl-C wins."""
        self._loop.call_soon_threadsafe(self._cancel)
        wait((self.ended,))

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # Ctrl-C came before `begin`
            self._work.close()
            self.ended.set_exception(asyncio.CancelledError())

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.ended.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())
