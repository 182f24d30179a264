"""When things happened to a call, taken where they happen; what becomes of it once the call has ended.

All on `time.monotonic()`, which the engine's process shares. What costs anything (reading steps, dividing them) is done when
somebody asks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from octavo.core.request import Request
from octavo.core.result import RequestTiming
from octavo.engine.frontend import Generation
from octavo.meter.why import Span, Stamps

_STALL_S = 0.001
"""A write that takes no longer waits for nobody."""
_MOST_STALLS = 256


class Marks:
    """Of one call. Owner: its endpoint, and what goes on after that in the background."""

    def __init__(self) -> None:
        self.received = time.monotonic()
        self.authorized: float | None = None
        self.body: float | None = None
        self.prepared: float | None = None
        self.ended: float | None = None
        self.stalls: deque[Span] = deque(maxlen=_MOST_STALLS)
        self.timings: dict[str, RequestTiming] = {}
        """What the engine said of its requests when they ended."""
        self.last: dict[str, float] = {}
        """When the last tokens of a request came."""
        self.done: set[str] = set()
        """Requests that have ended."""

    def wrote(self, begun: float) -> None:
        """A write that began then has returned."""
        now = time.monotonic()
        if now - begun > _STALL_S:
            self.stalls.append((begun, now))

    def stamps(
        self, requests: Sequence[Request], generations: Sequence[Generation]
    ) -> tuple[str, Stamps]:
        """Of the request that was answered last, which the call waited for; and its id, empty where there is none."""
        ended = time.monotonic() if self.ended is None else self.ended
        authorized = self.received if self.authorized is None else self.authorized
        body = authorized if self.body is None else self.body
        open_ones = [one for one in requests if one.id not in self.done]
        if not requests or (open_ones and self.ended is None):
            chosen = open_ones[0] if open_ones else None
        else:
            chosen = max(requests, key=lambda one: self._last_token(one.id) or 0.0)
        if chosen is None:
            prepared = ended if self.prepared is None else self.prepared
            return "", Stamps(
                self.received, authorized, body, prepared, prepared, ended, ended,
                stalls=tuple(self.stalls),
            )  # fmt: skip
        prepared = chosen.arrived if self.prepared is None else self.prepared
        sent = max(prepared, _sent(chosen, generations, prepared))
        timing = self.timings.get(chosen.id)
        is_over = chosen.id in self.done or self.ended is not None
        last = (self._last_token(chosen.id) if is_over else None) or ended
        return chosen.id, Stamps(
            self.received,
            authorized,
            body,
            prepared,
            sent,
            max(sent, min(last, ended)),
            ended,
            num_prompt=chosen.num_prompt,
            stalls=tuple(self.stalls),
            texts=tuple(span for one in generations for span in one.texts),
            admitted=None if timing is None else timing.admitted,
            first_token=None if timing is None else timing.first_token,
        )

    def _last_token(self, request_id: str) -> float | None:
        timing = self.timings.get(request_id)
        if timing is not None and timing.last_token is not None:
            return timing.last_token
        return self.last.get(request_id)


def _sent(request: Request, generations: Sequence[Generation], otherwise: float) -> float:
    for generation in generations:
        if any(one is request for one in generation.requests):
            return generation.sent.get(request.index, otherwise)
    return otherwise
