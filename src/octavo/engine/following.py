"""Steps on their way to those who follow: the engine's end, and the client's.

The engine says what it was asked for and no more, some steps at a time, so that a reader who is slow costs it nothing: what
the ring forgets meanwhile is counted. Each follower on the client's side has a bounded queue, and the same rule.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from octavo.engine.ipc import FollowSteps, FromEngine, Steps
from octavo.meter.steplog import StepLog

CREDIT = 1024
"""Steps that the engine may say before it is asked again."""
_MOST_QUEUED = 4096
"""Steps that one follower may leave unread."""
_EVERY_S = 0.05
_MOST_PER_MESSAGE = 64


class StepFeed:
    """The engine's end. Owner: the loop."""

    def __init__(self, log: StepLog, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._credit = 0
        self._position = 0
        self._is_followed = False
        self._said_at = 0.0

    def follow(self, count: int) -> None:
        """The client takes `count` further steps; none have been said before the first time, or after 0."""
        if count and not self._is_followed:
            self._position = self._log.num_added
        self._is_followed = count > 0
        self._credit = max(0, count)

    def due(self, *, at_once: bool = False) -> Steps | None:
        """What to say now, if anything: twenty times a second, or whatever there is where the loop goes to sleep."""
        if not self._credit or self._log.num_added == self._position:
            return None
        now = self._clock()
        is_full = self._log.num_added - self._position >= _MOST_PER_MESSAGE
        if not at_once and not is_full and now - self._said_at < _EVERY_S:
            return None
        self._said_at = now
        most = min(self._credit, 4 * _MOST_PER_MESSAGE)
        records, self._position, num_lost = self._log.since(self._position, most)
        self._credit -= len(records)
        return Steps(records, num_lost)

    def say(self, send: Callable[[FromEngine], None], *, at_once: bool = False) -> None:
        """Send what is due."""
        while (steps := self.due(at_once=at_once)) is not None:
            send(steps)


class Follower:
    """One reader's queue. Owner: `Followers`."""

    def __init__(self, most: int = _MOST_QUEUED) -> None:
        self._most = most
        self._queue: deque[Steps] = deque()
        self._num_queued = 0
        self._num_lost = 0
        self._news = asyncio.Event()
        self._is_over = False

    def put(self, steps: Steps) -> None:
        """Queue what came; the oldest goes, and is counted, where that is too much."""
        self._queue.append(steps)
        self._num_queued += len(steps.records)
        while self._num_queued > self._most and len(self._queue) > 1:
            oldest = self._queue.popleft()
            self._num_queued -= len(oldest.records)
            self._num_lost += len(oldest.records) + oldest.num_lost
        self._news.set()

    def end(self) -> None:
        """There will be no more."""
        self._is_over = True
        self._news.set()

    async def take(self) -> Steps | None:
        """The next message; None at the end."""
        while not self._queue:
            if self._is_over:
                return None
            self._news.clear()
            await self._news.wait()
        steps = self._queue.popleft()
        self._num_queued -= len(steps.records)
        lost, self._num_lost = self._num_lost, 0
        return steps if not lost else replace(steps, num_lost=steps.num_lost + lost)


class Followers:
    """All readers of one client. Owner: the supervisor."""

    def __init__(self, ask: Callable[[FollowSteps], None]) -> None:
        self._ask = ask
        self._all: list[Follower] = []
        self._credit = 0
        self._is_over = False

    def resume(self) -> None:
        """An engine is ready, which nobody follows yet."""
        if self._all:
            self._renew()

    def take(self, steps: Steps) -> None:
        """Hand on what the engine says; ask for more in time."""
        for follower in self._all:
            follower.put(steps)
        self._credit -= len(steps.records)
        if self._all and self._credit <= CREDIT // 2:
            self._renew()

    def end(self) -> None:
        """There will be no engine any more."""
        self._is_over = True
        for follower in self._all:
            follower.end()

    async def follow(self) -> AsyncIterator[Steps]:
        """What steps were, as they are said, over restarts of the engine, until there is none any more."""
        follower = Follower()
        if self._is_over:
            return
        self._all.append(follower)
        if len(self._all) == 1:
            self._renew()
        try:
            while (steps := await follower.take()) is not None:
                yield steps
        finally:
            self._all.remove(follower)
            if not self._all:
                self._ask(FollowSteps(0))

    def _renew(self) -> None:
        self._credit = CREDIT
        self._ask(FollowSteps(CREDIT))
