"""When a request's first token would have come had another never been sent: by replay of the step log."""

from __future__ import annotations

from typing import NamedTuple

from octavo.engine.replay import Replay
from octavo.meter.evidence import Evidence
from octavo.meter.frames import Arrived, Ran
from octavo.meter.stepfile import Run, columns


class WhatIf(NamedTuple):
    """Seconds from the request's acceptance to its first token."""

    without: str
    """Who never came."""
    actual_s: float | None
    """On record."""
    simulated_s: float
    """With everyone: how good the simulation is shows beside `actual_s`."""
    without_s: float


def what_if(found: Evidence, without: str) -> WhatIf | str:
    """The first token of a request without another; or why that cannot be told.

    The scheduler is told what it was told up to where the other came, then simulated twice, with it and without.
    """
    run, request_id = found.run, found.arrived.id
    if not run.is_whole:
        return "the step log no longer has the start of the engine's process, from which plans can be replayed"
    names = [frame.id for frame in run.frames if isinstance(frame, Arrived)]
    if without not in names or request_id not in names:
        return "the two were not in one process of the engine"
    begin = min(names.index(without), names.index(request_id))
    firsts: list[float] = []
    for left_out in ((), (without,)):
        replay = Replay(run)
        difference = replay.follow(until=names[begin])
        if difference is not None:
            return f"the replay differs from the record at step {difference.step}"
        times = replay.simulate(request_id, without=left_out).times.get(request_id)
        if times is None or times.first_token is None:
            return "the record ends before its first token"
        firsts.append(times.first_token - found.arrived.at)
    return WhatIf(without, first_token_s(run, found), firsts[0], firsts[1])


def first_token_s(run: Run, found: Evidence) -> float | None:
    """Of the request, from its acceptance, as recorded in the process that it ended in."""
    number = next(
        f.number for f in run.frames if isinstance(f, Arrived) and f.id == found.arrived.id
    )
    last: list[tuple[int, int, int]] = []
    for frame in run.frames:
        if not isinstance(frame, Ran):
            continue
        last = columns(frame, last)
        sampled = [1] * len(last) if frame.sampled is None else frame.sampled
        for (each, _, _), count in zip(last, sampled, strict=True):
            if each == number and count > 0:
                return frame.begun + frame.elapsed_s - found.arrived.at
    return None
