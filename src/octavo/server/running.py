"""Calls under way, by the id that the server minted for each, so that they can be looked up and ended.

A call is ended by what can end it where it stands: while it is being prepared its task is cut off, while it generates its
choices end with what they have said so far. Knows no HTTP; `requests.py` is the endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence

from octavo.core.errors import NotFoundError
from octavo.core.request import Request
from octavo.engine.frontend import Generation
from octavo.server.errors import AbortedError

_ID = re.compile(r"(?:.{0,32}[-_])?([0-9a-f]{32})")
"""An id as `x-request-id` has it, maybe behind what answers put before it (chatcmpl-, resp_ ...)."""


class Running:
    """One call. Owner: its endpoint, and what goes on after that in the background."""

    def __init__(self, call_id: str, tenant: str, route: str) -> None:
        self.id = call_id
        self.tenant = tenant
        self.route = route
        self.created = int(time.time())
        self.is_ended = False
        """Whether somebody ended it by its id."""
        self.requests: Sequence[Request] = ()
        """What the engine was asked, once it was."""
        self.generations: Sequence[Generation] = ()
        """Of a call that generates."""
        self.num_holders = 0
        self._ends: list[Callable[[], None]] = []

    def end(self) -> None:
        """End it, wherever it stands; a part that has not begun yet ends as it begins."""
        self.is_ended = True
        if self._ends:
            self._ends[-1]()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of the call that is cut off when the call is ended.

        Raises:
            AbortedError: it was.
        """
        if self.is_ended:
            raise AbortedError
        task = asyncio.current_task()
        assert task is not None, "a call runs in a task"
        # Whoever ends the call does so from another task, while this one awaits something; so it is told there.
        is_cut = False

        def cut_off() -> None:
            nonlocal is_cut
            if not is_cut:
                is_cut = True
                task.cancel()

        try:
            with self._ended_by(cut_off):
                yield
        except asyncio.CancelledError:
            if is_cut and task.uncancel() == 0:
                raise AbortedError from None
            raise

    @contextlib.contextmanager
    def generating(self, generations: Sequence[Generation]) -> Iterator[None]:
        """The part in which these run."""
        self.generations = generations
        self.requests = [request for one in generations for request in one.requests]

        def abort() -> None:
            for generation in generations:
                generation.abort()

        with self._ended_by(abort):
            if self.is_ended:
                abort()
            yield

    @contextlib.contextmanager
    def _ended_by(self, end: Callable[[], None]) -> Iterator[None]:
        self._ends.append(end)
        try:
            yield
        finally:
            self._ends.remove(end)


class Calls:
    """All of them. Owner: the server's event loop."""

    def __init__(self) -> None:
        self._by_id: dict[str, Running] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._by_id.values()))

    @contextlib.contextmanager
    def held(self, running: Running) -> Iterator[None]:
        """While this lasts, the call is found."""
        self._by_id[running.id] = running
        running.num_holders += 1
        try:
            yield
        finally:
            running.num_holders -= 1
            if not running.num_holders:
                del self._by_id[running.id]

    def find(self, tenant: str, given: str) -> Running:
        """A call under way, of this tenant.

        Raises:
            NotFoundError: it has none of that id, or no longer.
        """
        match = _ID.fullmatch(given)
        running = self._by_id.get(match[1]) if match else None
        if running is None or running.tenant != tenant:
            raise NotFoundError(
                f"no request {given[:80]!r} of this key is under way.",
                param="request_id",
                code="request_not_found",
                fix="Its id stands in the header x-request-id of its answer; it may have ended already.",
            )
        return running
