"""What steps take on this machine: `octavo serve` as it will be run, loaded for some seconds, and its step log.

The traffic itself comes first, as it will come: what varies then is what varies in service, with server and callers on
the same cores. Then one request at a time, two, four and so on, of lengths as in the traffic and shorter, so that steps of
kinds occur that other flags make. The server keeps the log that operators keep.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core import env
from octavo.core.errors import ConfigError
from octavo.meter.stepfile import read_runs
from octavo.scheduler.limits import Limits
from octavo.tools import openai_client
from octavo.tools.bench.drive import Load, send
from octavo.tools.bench.sample import Work, random_tokens
from octavo.tools.bench.stats import Record
from octavo.tools.openai_client import OpenAIClient, first_model
from octavo.tools.started import started
from octavo.tools.tune.cores import watched
from octavo.tools.tune.observe import Span, seen_of
from octavo.tools.tune.simulate import Machine
from octavo.tools.tune.steptimes import LEAST_STEPS, Seen
from octavo.tools.tune.traffic import Job, work_of

LEVELS = (1, 2, 4, 8, 16, 32, 64)
"""Requests at once, each for an equal time."""
_OUTPUTS = (8, 48)
_LEAST_PROMPT = 8
_LONG_AT_ONCE = 4
"""Up to so many at once all prompts may be as long as the traffic's."""
_TRAFFIC_SHARE = 0.5
_SEED = 1
"""Of prompts that live runs do not have."""


class Calibration(NamedTuple):
    """A machine as it was found."""

    machine: Machine
    """With the limits that it was calibrated under."""
    seen: tuple[Seen, ...]
    """Under the traffic, and under more."""
    others: float | None = None
    """Cores that others used meanwhile."""


class _Phase(NamedTuple):
    records: list[Record]
    """With times on the machine's clock."""
    span: Span
    is_traffic: bool


_Call = Callable[[list[Record]], Coroutine[None, None, None]]
"""Makes requests and appends what came of them."""


def calibrate(
    values: Mapping[str, object],
    jobs: Sequence[Job],
    seconds: float,
    say: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measure for about so many seconds, beside the start.

    Raises:
        EngineDeadError: the server did not start.
        ConfigError: too few steps in that time.
    """
    with watched() as cores, tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        log = Path(folder) / "steps"
        with started({**values, "step_log": str(log), "step_log_size": 256}) as url:
            say("measuring what steps take")
            phases = asyncio.run(_load(url, jobs, seconds))
        runs = read_runs(log)
    seen = [
        seen_of(runs[-1], phase.records, phase.span, is_traffic=phase.is_traffic)
        for phase in phases
        if runs
    ]
    num_steps = sum(len(each.samples) for each in seen)
    if num_steps < LEAST_STEPS:
        raise ConfigError(
            f"{num_steps} steps in {seconds:g} s tell too little; {LEAST_STEPS} are needed.",
            code="E-TUNE-02",
            fix="Give more --calibration-seconds.",
        )
    head = runs[-1].head.machine
    machine = Machine(
        limits=msgspec.convert(head.limits, Limits),
        groups=head.groups,
        enable_prefix_caching=head.enable_prefix_caching,
        policy=head.policy,
    )
    return Calibration(machine, tuple(seen), cores.others)


async def _load(url: str, jobs: Sequence[Job], seconds: float) -> list[_Phase]:
    """The traffic as it comes, then more and more requests at once; what runs when a phase is over is cut off."""
    key = next(iter(env.api_keys()), None)
    async with openai_client.connect(url, api_key=key) as client:
        body = {"model": await first_model(client), "temperature": 0.0, "ignore_eos": True}
        load = Load(openai_client.COMPLETIONS, (), None, body)
        first = await _phase(_traffic(client, load, jobs), seconds * _TRAFFIC_SHARE, True)
        rest = seconds * (1 - _TRAFFIC_SHARE)
        return [first, await _phase(_ladder(client, load, jobs, rest), rest, False)]


async def _phase(
    calls: Sequence[_Call],
    seconds: float,
    is_traffic: bool,
) -> _Phase:
    records: list[Record] = []
    since = time.perf_counter()
    tasks = [asyncio.create_task(call(records)) for call in calls]
    _, left = await asyncio.wait(tasks, timeout=seconds)
    for task in left:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    good = [record for record in records if record.error is None]
    return _Phase(good, Span(since, time.perf_counter()), is_traffic)


def _traffic(client: OpenAIClient, load: Load, jobs: Sequence[Job]) -> list[_Call]:
    """Each request when it is due."""
    start = time.perf_counter()
    load = load._replace(work=work_of(jobs, _SEED))

    def call(index: int) -> _Call:
        async def run(records: list[Record]) -> None:
            due = start + load.work[index].at
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            records.append(await send(client, load, index, start=0.0, due=due))

        return run

    return [call(index) for index in range(len(load.work))]


def _ladder(client: OpenAIClient, load: Load, jobs: Sequence[Job], seconds: float) -> list[_Call]:
    """Callers who ask again and again; more of them as time goes on."""
    rng = random.Random(_SEED)
    start = time.perf_counter()
    at_once = 0

    def call(delay: float) -> _Call:
        async def run(records: list[Record]) -> None:
            nonlocal at_once
            await asyncio.sleep(max(0.0, start + delay - time.perf_counter()))
            at_once += 1
            while True:
                work = [_work(jobs, at_once, rng)]
                now = time.perf_counter()
                one = load._replace(work=work)
                records.append(await send(client, one, 0, start=0.0, due=now))

        return run

    calls: list[_Call] = []
    for level, most in enumerate(LEVELS):
        calls += [call(seconds * level / len(LEVELS)) for _ in range(most - len(calls))]
    return calls


def _work(jobs: Sequence[Job], at_once: int, rng: random.Random) -> Work:
    """A prompt as long as the traffic's, or by the logarithm down to a few tokens.

    Where many run at once most prompts are short, or there were no time for steps of decodes alone.
    """
    longest = max(job.prompt_len for job in jobs)
    most = min(longest, max(_LEAST_PROMPT, longest * _LONG_AT_ONCE // at_once))
    kind = rng.randrange(8)
    if kind == 0:
        length = rng.choice(jobs).prompt_len
    elif kind % 2:
        length = round(math.exp(rng.uniform(math.log(_LEAST_PROMPT), math.log(most + 8))))
    else:
        length = min(most, rng.choice(jobs).prompt_len)
    tokens = random_tokens(max(1, min(length, longest)), rng)
    return Work(tokens, rng.randint(*_OUTPUTS), 0.0)
