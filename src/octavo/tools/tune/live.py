"""A candidate on the real server: `octavo serve` with its flags, and the traffic as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from octavo.core import env
from octavo.tools import openai_client
from octavo.tools.bench import validity
from octavo.tools.bench.drive import Load, Outcome, drive, send
from octavo.tools.bench.sample import Work
from octavo.tools.openai_client import first_model
from octavo.tools.started import started
from octavo.tools.tune.slo import Score, Slo, score
from octavo.tools.tune.traffic import Job, rate_of, work_of

_NUM_WARMUPS = 3
LEAST_REQUESTS = 5


class Live(NamedTuple):
    """What came of it."""

    score: Score
    notes: tuple[str, ...]
    """Why it may say less than it seems to."""


def part_of(jobs: Sequence[Job], seconds: float) -> list[Job]:
    """What comes in the first `seconds`; a few requests at least."""
    within = sum(job.at - jobs[0].at <= seconds for job in jobs)
    return list(jobs[: max(LEAST_REQUESTS, within)])


def measure(values: Mapping[str, object], jobs: Sequence[Job], slo: Slo, seed: int) -> Live:
    """Start a server with these values, send the jobs when they are due, and judge what their callers saw.

    Raises:
        EngineDeadError: the server did not start.
    """
    with started(values) as url:
        outcome = asyncio.run(_drive(url, work_of(jobs, seed)))
    failed = [record.error for record in outcome.records if record.error is not None]
    notes = [f"live run: {text}" for _, text in validity.of_client(outcome.client)]
    if failed:
        notes.append(f"live run: {len(failed)} requests failed; the first: {failed[0]}")
    return Live(score(outcome.records, slo, rate_of(jobs)), tuple(notes))


async def _drive(url: str, work: list[Work]) -> Outcome:
    key = next(iter(env.api_keys()), None)
    async with openai_client.connect(url, api_key=key) as client:
        body = {"model": await first_model(client), "temperature": 0.0, "ignore_eos": True}
        load = Load(openai_client.COMPLETIONS, work, None, body)
        # Other tokens than the traffic's, so that nothing is cached that will come.
        first = Work(tuple(range(999, 999 - min(len(work[0].prompt), 800), -1)), 8, 0.0)
        for _ in range(_NUM_WARMUPS):
            await send(client, load._replace(work=[first]), 0, start=0.0, due=0.0)
        return await drive(client, load)
