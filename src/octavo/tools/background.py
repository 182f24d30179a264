"""An event loop in a thread, so that the main thread can wait for the keyboard while streams and
servers go on.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar

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
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            _cancel(future)
            raise

    @contextlib.contextmanager
    def hold(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Keep an async context open; entered and left by one task, as task groups demand."""
        entered: concurrent.futures.Future[T] = concurrent.futures.Future()
        leave = asyncio.Event()

        async def keep() -> None:
            async with manager as value:
                entered.set_result(value)
                await leave.wait()

        task = asyncio.run_coroutine_threadsafe(keep(), self._loop)
        try:
            both: tuple[concurrent.futures.Future[Any], ...] = (task, entered)
            concurrent.futures.wait(both, return_when=concurrent.futures.FIRST_COMPLETED)
        except KeyboardInterrupt:
            _cancel(task)
            raise
        if task.done():
            task.result()
        try:
            yield entered.result()
        finally:
            self._loop.call_soon_threadsafe(leave.set)
            task.result()


def _cancel(future: concurrent.futures.Future[Any]) -> None:
    """Cancel, then wait for the end. What the task raises meanwhile is lost: Ctrl-C wins."""
    future.cancel()
    with contextlib.suppress(concurrent.futures.CancelledError):
        future.result()
