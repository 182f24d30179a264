"""The load generator: sends work when it is due, reads the clock at every chunk, and watches
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from octavo.core.errors import OctavoError
from octavo.tools import openai_client
from octavo.tools.bench.sample import Work
from octavo.tools.bench.stats import Record, percentile
from octavo.tools.bench.validity import ClientHealth
from octavo.tools.openai_client import OpenAIClient

_WATCH_S = 0.02


class Load(NamedTuple):
    """What to send and how."""

    path: str
    work: Sequence[Work]
    max_concurrency: int | None
    body: Mapping[str, object]
    """Fields of every request beside the prompt and its length."""


class Outcome(NamedTuple):
    """What came of it."""

    records: list[Record]
    client: ClientHealth


async def drive(client: OpenAIClient, load: Load) -> Outcome:
    """Send all the work; every request ends as one record, failed ones too."""
    slots = asyncio.Semaphore(load.max_concurrency or len(load.work))
    lags: list[float] = []
    watcher = asyncio.create_task(_watch(lags))
    start, cpu = time.perf_counter(), time.process_time()
    try:
        tasks = [
            asyncio.create_task(_one(client, load, index, start, slots))
            for index in range(len(load.work))
        ]
        records = await asyncio.gather(*tasks)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
    wall = time.perf_counter() - start
    late = [record.sent - record.due for record in records]
    health = ClientHealth(
        cpu_share=(time.process_time() - cpu) / wall,
        lag_p99_s=percentile(lags or [0.0], 99),
        late_p99_s=percentile(late, 99),
    )
    return Outcome(records, health)


async def _watch(lags: list[float]) -> None:
    """Measure how late the loop wakes us."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_WATCH_S)
        lags.append(time.perf_counter() - before - _WATCH_S)


async def _one(
    client: OpenAIClient, load: Load, index: int, start: float, slots: asyncio.Semaphore
) -> Record:
    work = load.work[index]
    await asyncio.sleep(max(0.0, start + work.at - time.perf_counter()))
    arrived = time.perf_counter()
    waited = slots.locked()
    async with slots:
        # One that waited for a slot is due when it got it: that wait is a wish, not our lag.
        due = time.perf_counter() if waited else min(arrived, start + work.at)
        return await send(client, load, index, start=start, due=due)


async def send(client: OpenAIClient, load: Load, index: int, *, start: float, due: float) -> Record:
    """One request, now."""
    work = load.work[index]
    times: list[float] = []
    usage: openai_client.Usage | None = None
    failure: str | None = None
    sent = time.perf_counter()
    try:
        async for piece in client.stream(load.path, request_body(load, work)):
            if piece.is_output:
                times.append(piece.at - start)
            usage = piece.usage or usage
        if not times:
            failure = "the answer was empty."
    except OctavoError as error:
        failure = error.info().one_line()
    done = time.perf_counter() - start
    known_prompt = len(work.prompt) if isinstance(work.prompt, tuple) else 0
    return Record(
        index=index,
        due=due - start,
        sent=sent - start,
        done=done,
        chunk_times=tuple(times),
        prompt_tokens=usage.prompt_tokens if usage else known_prompt,
        output_tokens=usage.completion_tokens if usage else len(times),
        asked_tokens=work.output_len,
        cached_tokens=usage.cached_tokens if usage else None,
        error=failure,
    )


def request_body(load: Load, work: Work) -> dict[str, object]:
    """The JSON body of one request."""
    body = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": work.output_len,
        **load.body,
    }
    if load.path == openai_client.CHAT:
        return {**body, "messages": [{"role": "user", "content": work.prompt}]}
    return {**body, "prompt": work.prompt}
