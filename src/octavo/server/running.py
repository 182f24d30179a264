"""Calls under way, by the id that the server minted for each, so that they can be looked up and ended; the times of the last.

A call is ended by what can end it where it stands: while it is being prepared its task is cut off, while it generates its
choices end with what they have said so far. Knows no HTTP; `requests.py` is the endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from octavo.core.errors import NotFoundError
from octavo.core.request import Request
from octavo.engine.frontend import Generation
from octavo.meter.why import Stamps
from octavo.server.errors import AbortedError
from octavo.server.marks import Marks

_ID = re.compile(r"(?:.{0,32}[-_])?([0-9a-f]{32})")
"""An id as `x-request-id` has it, maybe behind what answers put before it (chatcmpl-, resp_ ...)."""


_ANYWHERE = re.compile(r"[0-9a-f]{32}")
MOST_PAST = 1024
"""Calls that ended last, whose times are kept."""


class Running:
    """One call. Owner: its endpoint, and what goes on after that in the background."""

    def __init__(self, call_id: str, tenant: str, route: str, marks: Marks | None = None) -> None:
        self.marks = marks or Marks()
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


class Past(NamedTuple):
    """What is kept of a call that has ended: numbers, no text."""

    id: str
    tenant: str
    route: str
    created: int
    is_aborted: bool
    num_choices: int
    prompt_tokens: int
    completion_tokens: int
    request_id: str
    """Of the engine's request that the call waited for; empty where there was none."""
    stamps: Stamps

    @classmethod
    def of(cls, running: Running) -> Past:
        """As far as it has come."""
        generations = running.generations
        request_id, stamps = running.marks.stamps(running.requests, generations)
        return cls(
            running.id,
            running.tenant,
            running.route,
            running.created,
            running.is_ended,
            len(running.requests),
            sum(one.usage.prompt_tokens for one in generations)
            or sum(request.num_prompt for request in running.requests),
            sum(one.usage.completion_tokens for one in generations),
            request_id,
            stamps,
        )


class Calls:
    """All of them, and those that ended last. Owner: the server's event loop."""

    def __init__(self) -> None:
        self._by_id: dict[str, Running] = {}
        self._past: OrderedDict[str, Past] = OrderedDict()

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
                self._keep(running)

    def _keep(self, running: Running) -> None:
        """Only calls that asked the engine for something: a look at one must not push it out."""
        running.marks.ended = time.monotonic()
        if running.requests:
            self._past[running.id] = Past.of(running)
            while len(self._past) > MOST_PAST:
                self._past.popitem(last=False)

    def find(self, tenant: str | None, given: str) -> Running:
        """A call under way, of this tenant; None: of any.

        Raises:
            NotFoundError: it has none of that id, or no longer.
        """
        match = _ID.fullmatch(given)
        running = self._by_id.get(match[1]) if match else None
        if running is None or tenant not in (None, running.tenant):
            raise _not_found(given, "is under way", "it may have ended already")
        return running

    def recall(self, tenant: str | None, given: str) -> Running | Past:
        """A call of this tenant (None: of any), under way or among the last that ended.

        Raises:
            NotFoundError: it has none of that id, or no longer.
        """
        match = _ID.fullmatch(given)
        call_id = match[1] if match else ""
        found = self._by_id.get(call_id) or self._past.get(call_id)
        if found is None or tenant not in (None, found.tenant):
            raise _not_found(
                given,
                f"is under way or among the last {MOST_PAST} that ended",
                "`octavo why` reads older ones from the step log",
            )
        return found

    def tenant_of(self, given: str) -> str | None:
        """Whose call an id is, or the id of one of its requests; None where it is not known any more."""
        match = _ANYWHERE.search(given)
        found = (self._by_id.get(match[0]) or self._past.get(match[0])) if match else None
        return None if found is None else found.tenant


def _not_found(given: str, what: str, hint: str) -> NotFoundError:
    return NotFoundError(
        f"no request {given[:80]!r} of this key {what}.",
        param="request_id",
        code="request_not_found",
        fix=f"Its id stands in the header x-request-id of its answer; {hint}.",
    )
