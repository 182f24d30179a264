"""A call's stay in the server: the memory of its body, its place in the queue, and what became of its quote.

Whatever way a call ends, its stay is closed and nothing of it is left in the accounts.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.request import Request
from octavo.engine.frontend import Caller
from octavo.server.admission.accounts import Place
from octavo.server.admission.desk import Admission, Quote


class Ticket:
    """One call from its acceptance to its end. `close` it, whatever happens."""

    def __init__(
        self,
        admission: Admission,
        place: Place,
        caller: Caller,
        quote: Quote,
        *,
        learns: bool = True,
    ) -> None:
        self._admission = admission
        self._place = place
        self._caller = caller
        self._quote = quote
        self._entered = self._admission.clock()
        self._begun: float | None = None
        self._learns = learns  # False where the first thing that the caller sees is no first token

    def hand_over(self, request_id: str) -> None:
        """A request of the call goes to the engine."""
        self._place.hand_over(request_id, self._admission.clock())

    def begin(self, request_id: str) -> None:
        """A request of the call has its first token."""
        if self._begun is not None:
            return
        self._place.begin(request_id)
        if self._place.has_begun:
            self._begun = self._admission.clock()
            self._admission.learn_first(self._quote, self._begun - self._entered, self._learns)

    def end(self, num_outputs: Sequence[int]) -> None:
        """All of its requests have come to a good end, with so many output tokens each."""
        if self._begun is not None and self._learns:
            seconds = self._admission.clock() - self._begun
            self._admission.learn_output(self._quote, seconds, num_outputs)

    def close(self) -> None:
        """The call is over; again changes nothing."""
        if not self._place.close():
            return
        now = self._admission.clock()
        if self._begun is None and self._quote.factors is not None and self._learns:
            # Nobody knows how long it would have taken; that it took longer than this is known.
            longer = now - self._entered
            if longer > self._quote.plain_s * self._quote.factors.high:
                self._admission.learn_first(self._quote, longer, learns=True)
        first = now if self._begun is None else self._begun
        latest = self._quote.latest()
        if latest is not None:
            self._keep_book("ttft_slo", latest[0], first, self._caller.first_token_by)
            self._keep_book("deadline", latest[1], now, self._caller.deadline)

    def _keep_book(self, kind: str, latest_s: float, came: float, by: float | None) -> None:
        """A promise made and maybe broken. A call that was let in against the forecast was promised nothing."""
        if by is None or self._entered + latest_s > by:
            return
        self._admission.metrics.count("octavo:promises", 1, kind)
        if came > by:
            self._admission.metrics.count("octavo:promises_broken", 1, kind)


class Stay:
    """Owner: the endpoint that answers the call, which closes it."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._num_bytes = 0
        self._ticket: Ticket | None = None
        self._is_handed_on = False

    def hold(self, num_bytes: int) -> None:
        """So many bytes of the body have come. Raises OverloadError where too much is in memory."""
        self._admission.hold(num_bytes)
        self._num_bytes += num_bytes

    def glance(self, caller: Caller) -> None:
        """Refuse at once what could not be taken anyhow. Raises as `Admission.glance`."""
        self._admission.glance(caller, self._num_bytes)

    def enter(
        self, caller: Caller, requests: Sequence[Request], *, is_searched: bool = False
    ) -> None:
        """Join the queue. Beams that are searched show nothing before the end. Raises as `Admission.take`."""
        quote = self._admission.take(caller, requests, self._num_bytes)
        place = Place(self._admission.accounts, self._admission.lane(caller), requests)
        self._ticket = Ticket(self._admission, place, caller, quote, learns=not is_searched)

    @property
    def ticket(self) -> Ticket:
        """The call's ticket, which stays with it."""
        assert self._ticket is not None, "a call enters before its requests run"
        return self._ticket

    def take(self) -> Ticket:
        """The call's ticket, for one who closes it: work in the background outlives its call."""
        self._is_handed_on = True
        return self.ticket

    def close(self) -> None:
        """The call is over."""
        self._admission.hold(-self._num_bytes)
        self._num_bytes = 0
        if self._ticket is not None and not self._is_handed_on:
            self._ticket.close()
