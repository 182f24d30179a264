"""A candidate on the real server: `octavo serve` with its flags, and the traffic as it comes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core import env
from octavo.meter.stepfile import read_runs
from octavo.tools import openai_client
from octavo.tools.bench import stats, validity
from octavo.tools.bench.drive import Load, Outcome, drive, send
from octavo.tools.bench.sample import Work
from octavo.tools.bench.stats import Record
from octavo.tools.openai_client import first_model
from octavo.tools.started import started
from octavo.tools.tune.cores import watched
from octavo.tools.tune.observe import Span, seen_of
from octavo.tools.tune.slo import Score, Slo, score
from octavo.tools.tune.steptimes import Seen
from octavo.tools.tune.traffic import Job, rate_of, work_of

_NUM_WARMUPS = 3
LEAST_REQUESTS = 5


class Live(NamedTuple):
    """What came of it."""

    score: Score
    records: list[Record]
    seen: Seen | None
    """What its steps took; None where nothing was logged."""
    notes: tuple[str, ...]
    """Why it may say less than it seems to."""
    others: float | None = None
    """Cores that others used meanwhile."""


def part_of(jobs: Sequence[Job], seconds: float) -> list[Job]:
    """What comes in the first `seconds`; a few requests at least."""
    within = sum(job.at - jobs[0].at <= seconds for job in jobs)
    return list(jobs[: max(LEAST_REQUESTS, within)])


def measure(values: Mapping[str, object], jobs: Sequence[Job], slo: Slo, seed: int) -> Live:
    """Start a server with these values, send the jobs when they are due, and judge what their callers saw.

    Raises:
        EngineDeadError: the server did not start.
    """
    with watched() as cores, tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        log = Path(folder) / "steps"
        with started({**values, "step_log": str(log), "step_log_size": 256}) as url:
            outcome, began = asyncio.run(_drive(url, work_of(jobs, seed)))
        runs = read_runs(log)
    failed = [record.error for record in outcome.records if record.error is not None]
    notes = [f"live run: {text}" for _, text in validity.of_client(outcome.client)]
    if failed:
        notes.append(f"live run: {len(failed)} requests failed; the first: {failed[0]}")
    seen = None
    if runs:
        moved = [_moved(record, began) for record in stats.completed(outcome.records)]
        seen = seen_of(runs[-1], moved, Span(began), is_traffic=True)
    return Live(
        score(outcome.records, slo, rate_of(jobs)),
        outcome.records,
        seen,
        tuple(notes),
        cores.others,
    )


def _moved(record: Record, by: float) -> Record:
    times = tuple([at + by for at in record.chunk_times])
    return msgspec.structs.replace(record, sent=record.sent + by, chunk_times=times)


async def _drive(url: str, work: list[Work]) -> tuple[Outcome, float]:
    """And when it began, on the machine's clock."""
    key = next(iter(env.api_keys()), None)
    async with openai_client.connect(url, api_key=key) as client:
        body = {"model": await first_model(client), "temperature": 0.0, "ignore_eos": True}
        load = Load(openai_client.COMPLETIONS, work, None, body)
        # Other tokens than the traffic's, so that nothing is cached that will come.
        first = Work(tuple(range(999, 999 - min(len(work[0].prompt), 800), -1)), 8, 0.0)
        for _ in range(_NUM_WARMUPS):
            await send(client, load._replace(work=[first]), 0, start=0.0, due=0.0)
        began = time.perf_counter()
        return await drive(client, load), began
