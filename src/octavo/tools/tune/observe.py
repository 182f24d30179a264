"""What a server was seen to do: its step log beside what its callers saw. Pure.

Both clocks are the machine's monotonic one. A request is known in the log by when it came, how long its prompt is and how
many tokens it got.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from octavo.core.steptime import attended
from octavo.meter.frames import Arrived, Ran
from octavo.meter.stepfile import Run, columns
from octavo.tools.bench.stats import Record
from octavo.tools.tune.simulate import Way
from octavo.tools.tune.steptimes import Sample, Seen

WARM_UP_STEPS = 20
_GAP_S = 0.5
"""Longer ones are no work of the loop."""


class Span(NamedTuple):
    """From when to when, on the machine's clock."""

    since: float = -math.inf
    until: float = math.inf

    def has(self, at: float) -> bool:
        """Whether a moment lies within."""
        return self.since <= at < self.until


ALWAYS = Span()


class _Request:
    """As the log has it."""

    def __init__(self, come: Arrived) -> None:
        self.at = come.at
        self.num_prompt = come.num_prompt
        self.wake_s: float | None = None
        self.begun: float | None = None
        self.ends: list[float] = []
        """Of the steps that gave it a token."""


def seen_of(run: Run, records: Sequence[Record], span: Span = ALWAYS, *, is_traffic: bool) -> Seen:
    """Of the steps within a span, and of requests whose `sent` and `chunk_times` are on the machine's clock."""
    ways, wakes, delays = [], [], []
    for record, request in _matched(records, _requests(run)):
        inward, outward = request.at - record.sent, record.chunk_times[0] - request.ends[0]
        if inward >= 0 and outward >= 0:
            ways.append(Way(inward, outward))
        if request.wake_s is not None:
            wakes.append(request.wake_s)
        delays += _delays(record.chunk_times, request.ends)
    samples, begins = samples_of(run, span)
    since = span.since if math.isfinite(span.since) else min(begins, default=0.0)
    return Seen(since, samples, begins, ways, wakes, delays, is_traffic)


def samples_of(run: Run, span: Span = ALWAYS) -> tuple[list[Sample], list[float]]:
    """Its steps within a span but the first few of the process, and those that failed; and when each began."""
    samples: list[Sample] = []
    begins: list[float] = []
    last: list[tuple[int, int, int]] = []
    before: set[int] = set()
    for frame in run.frames:
        if not isinstance(frame, Ran):
            continue
        last = columns(frame, last)
        numbers = {number for number, _, _ in last}
        if samples and before & numbers and 0 <= frame.gap_s < _GAP_S:
            samples[-1] = samples[-1]._replace(gap_s=frame.gap_s)
        before = numbers
        is_whole = frame.sampled is None or min(frame.sampled, default=0) >= 0
        if not last or frame.elapsed_s <= 0 or not is_whole:
            before = set()
            continue
        samples.append(_sample(last, frame.elapsed_s))
        begins.append(frame.begun)
    kept = [i for i in range(WARM_UP_STEPS, len(samples)) if span.has(begins[i])]
    return [samples[i] for i in kept], [begins[i] for i in kept]


def _sample(slices: Sequence[tuple[int, int, int]], elapsed_s: float) -> Sample:
    decodes = [start for _, start, count in slices if count == 1]
    chunks = [(start, count) for _, start, count in slices if count > 1]
    context = sum(start + 1 for start in decodes) + sum(attended(*chunk) for chunk in chunks)
    num_tokens = sum(count for _, count in chunks)
    return Sample(len(decodes), num_tokens, context, elapsed_s, None)


def _requests(run: Run) -> list[_Request]:
    """In the order in which they came."""
    known = {f.number: _Request(f) for f in run.frames if isinstance(f, Arrived)}
    last: list[tuple[int, int, int]] = []
    ended = -math.inf
    for frame in run.frames:
        if not isinstance(frame, Ran):
            continue
        last = columns(frame, last)
        sampled = [1] * len(last) if frame.sampled is None else frame.sampled
        end = frame.begun + frame.elapsed_s
        for (number, _, _), count in zip(last, sampled, strict=True):
            request = known.get(number)
            if request is None:
                continue
            if request.begun is None:
                request.begun = frame.begun
                # Who comes in mid-step waits for its end, in a simulation as well.
                request.wake_s = frame.begun - request.at if ended < request.at else None
            request.ends += [end] * max(0, count)
        ended = end
    return sorted(known.values(), key=lambda request: request.at)


def _matched(
    records: Sequence[Record], requests: Sequence[_Request]
) -> list[tuple[Record, _Request]]:
    left = [request for request in requests if request.ends]
    found = []
    for record in sorted(records, key=lambda record: record.sent):
        for at, request in enumerate(left):
            is_long = request.num_prompt == record.prompt_tokens
            if is_long and request.at >= record.sent and len(request.ends) == record.output_tokens:
                if record.chunk_times:
                    found.append((record, left.pop(at)))
                break
    return found


def _delays(chunks: Sequence[float], ends: Sequence[float]) -> list[float]:
    """Of tokens after the first; where two came in one piece, each is the first piece's that it could be in."""
    if len(chunks) == len(ends):
        pairs = zip(chunks[1:], ends[1:], strict=True)
        return [max(0.0, chunk - end) for chunk, end in pairs]
    found = []
    for end in ends[1:]:
        at = bisect_left(chunks, end)
        if at < len(chunks):
            found.append(chunks[at] - end)
    return found
