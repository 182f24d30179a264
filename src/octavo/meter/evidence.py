"""What a step log on disk has of one request: when it came and went, and the steps meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from octavo.core.steptime import StepTime
from octavo.meter.frames import Arrived, Ended, Line
from octavo.meter.stepfile import Run, read_runs, records
from octavo.meter.why import Seen, Stamps

_SLACK_S = 1.0
"""Around the time asked for: files begin a little before and after what is in them."""


class Evidence(NamedTuple):
    """Of one request of the engine, on the clock of its host."""

    arrived: Arrived
    ended: Ended | None
    seen: tuple[Seen, ...]
    """By engine process: more than one where it was restarted meanwhile."""
    run: Run
    """The last of those."""


def evidence(
    folder: Path, name: str, since: float = 0.0, until: float = float("inf")
) -> list[Evidence]:
    """All requests whose ids have `name` in them, in the order in which they came, looked for in a span of Unix time."""
    runs = read_runs(folder, since - _SLACK_S, until + _SLACK_S)
    found: dict[str, Evidence] = {}
    for run in runs:
        ends = {frame.number: frame for frame in run.frames if isinstance(frame, Ended)}
        for frame in run.frames:
            if isinstance(frame, Arrived) and name in frame.id:
                end = ends.get(frame.number)
                before = found.get(frame.id)
                seen = (*(before.seen if before else ()), _seen(run, frame, end))
                first = before.arrived if before else frame
                found[frame.id] = Evidence(first, end, seen, run)
    return list(found.values())


def _seen(run: Run, arrived: Arrived, end: Ended | None) -> Seen:
    last = float("inf") if end is None else end.now
    kept = list(records(run, 0.0, arrived.at, last))
    line = StepTime()
    for frame in run.frames:
        if isinstance(frame, Line):
            line = frame.step_time
    return Seen(arrived.added, kept, line)


def stamps_of(found: Evidence) -> Stamps:
    """The engine's part of a request alone, where nobody has the server's."""
    at = found.arrived.at
    records = found.seen[-1].records
    last = records[-1].at + records[-1].elapsed_s if records else at
    end = last if found.ended is None else max(at, found.ended.now)
    return Stamps(at, at, at, at, at, end, end, num_prompt=found.arrived.num_prompt)
