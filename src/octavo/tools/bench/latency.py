"""`octavo bench latency`: one batch at a time, offline; time to first token and per token, as
percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import NamedTuple

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import from_info
from octavo.core.request import Request
from octavo.core.result import Failed, TokenOut
from octavo.engine.client import EngineClient
from octavo.engine.frontend import Client
from octavo.engine.ipc import Ready
from octavo.tools import output
from octavo.tools.bench import offline
from octavo.tools.bench.stats import Record, Summary, latencies
from octavo.tools.flags import configs
from octavo.tools.parser import Parser
from octavo.tools.tables import table

_TITLES = {"ttft": "TTFT", "itl": "per token", "e2el": "whole"}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size; times in milliseconds."""

    batch: int
    latencies_ms: dict[str, Summary]


class Results(NamedTuple):
    """All rows, and the engine that they were measured on."""

    rows: list[Row]
    ready: Ready


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    offline.add_arguments(parser, batch=[1])


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    config = configs(args).engine
    results = asyncio.run(_measure(config, args))
    output.show(
        args.json,
        lambda: to_text(results.rows),
        lambda: offline.to_json("octavo bench latency", config, results.ready, results.rows),
    )
    return 0


async def _measure(config: EngineConfig, args: argparse.Namespace) -> Results:
    client = EngineClient(config)
    await client.start()
    try:
        ready = await client.wait_ready()
        offline.check_room(ready, args)
        rows = [await measure(client, batch, args) for batch in args.batch]
    finally:
        await client.close()
    return Results(rows, ready)


async def measure(client: Client, batch: int, args: argparse.Namespace) -> Row:
    """All rounds of one batch size; a round before them is thrown away."""
    records: list[Record] = []
    for turn in range(-1, args.repeats):
        prompts = offline.prompts(batch, args.input_len, f"latency {batch} {turn}")
        found = await asyncio.gather(
            *(
                _one(client, f"latency-{batch}-{turn}-{index}", prompt, args.output_len)
                for index, prompt in enumerate(prompts)
            )
        )
        if turn >= 0:
            records += found
    return Row(batch=batch, latencies_ms=latencies(records))


async def _one(client: Client, request_id: str, prompt: list[int], output_len: int) -> Record:
    request = Request(
        id=request_id,
        token_ids=tuple(prompt),
        params=offline.full_length(output_len),
        max_tokens=output_len,
        seed=0,
        arrived=time.monotonic(),
    )
    sent = time.perf_counter()
    times: list[float] = []
    async for event in client.generate(request):
        if isinstance(event, Failed):
            raise from_info(event.error)
        if isinstance(event, TokenOut):
            times += [time.perf_counter()] * len(event.token_ids)
    return Record(
        index=0,
        due=sent,
        sent=sent,
        done=time.perf_counter(),
        chunk_times=tuple(times),
        prompt_tokens=len(prompt),
        output_tokens=len(times),
        asked_tokens=output_len,
    )


def to_text(rows: list[Row]) -> str:
    """A table: one line per batch size and metric."""
    lines = [
        [
            str(row.batch),
            title,
            *(f"{value:.2f}" for value in (s.mean, s.p50, s.p90, s.p95, s.p99)),
        ]
        for row in rows
        for name, title in _TITLES.items()
        if (s := row.latencies_ms.get(name)) is not None
    ]
    return table(("batch", "ms", "mean", "p50", "p90", "p95", "p99"), lines)
