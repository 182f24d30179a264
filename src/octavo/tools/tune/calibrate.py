"""What steps take on this machine: `octavo serve` as it will be run, loaded for some seconds, and its step log.

One request at a time, then two, four and so on, of lengths as in the traffic and shorter, so that steps of every kind
occur. The server keeps the log that operators keep; what lies around the engine is the difference to the client's times.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core import env
from octavo.core.errors import ConfigError
from octavo.core.steptime import attended
from octavo.meter.frames import Arrived, Ran
from octavo.meter.stepfile import Run, columns, read_runs
from octavo.scheduler.limits import Limits
from octavo.tools import openai_client
from octavo.tools.bench.drive import Load, drive
from octavo.tools.bench.sample import Work, random_tokens
from octavo.tools.bench.stats import Record
from octavo.tools.openai_client import OpenAIClient, first_model
from octavo.tools.started import started
from octavo.tools.tune.simulate import Machine, Way
from octavo.tools.tune.steptimes import LEAST_STEPS, Fitted, Sample, fit
from octavo.tools.tune.traffic import Job

WARM_UP_STEPS = 20
LEVELS = (1, 2, 4, 8, 16, 32, 64)
"""Requests at once, for equal times each."""
_OUTPUTS = (8, 48)
_LEAST_PROMPT = 8
_LONG_AT_ONCE = 4
"""Up to so many at once all prompts may be as long as the traffic's."""
_GAP_S = 0.5
"""Longer ones are no work of the loop."""


class Calibration(NamedTuple):
    """A machine as it was found."""

    machine: Machine
    """With the limits that it was calibrated under."""
    times: Fitted
    longest_step: int
    """Tokens of the largest step that was measured."""


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
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        log = Path(folder) / "steps"
        with started({**values, "step_log": str(log), "step_log_size": 256}) as url:
            say("measuring what steps take")
            records = asyncio.run(_load(url, jobs, seconds))
        runs = read_runs(log)
    run = runs[-1] if runs else None
    samples = samples_of(run) if run is not None else []
    if run is None or len(samples) < LEAST_STEPS:
        raise ConfigError(
            f"{len(samples)} steps in {seconds:g} s tell too little; {LEAST_STEPS} are needed.",
            code="E-TUNE-02",
            fix="Give more --calibration-seconds.",
        )
    head = run.head.machine
    machine = Machine(
        limits=msgspec.convert(head.limits, Limits),
        groups=head.groups,
        enable_prefix_caching=head.enable_prefix_caching,
        policy=head.policy,
    )
    longest = max(sample.num_decodes + sample.num_chunk_tokens for sample in samples)
    return Calibration(machine, fit(samples, ways_of(run, records)), longest)


async def _load(url: str, jobs: Sequence[Job], seconds: float) -> list[Record]:
    """More and more requests at once; what runs when a level's time is over is cut off."""
    key = next(iter(env.api_keys()), None)
    rng = random.Random(0)
    records: list[Record] = []
    async with openai_client.connect(url, api_key=key) as client:
        body = {"model": await first_model(client), "temperature": 0.0, "ignore_eos": True}
        for at_once in LEVELS:
            end = time.perf_counter() + seconds / len(LEVELS)
            while time.perf_counter() < end:
                load = Load(openai_client.COMPLETIONS, _work(jobs, at_once, rng), at_once, body)
                records += await _drive(client, load, end)
    return records


async def _drive(client: OpenAIClient, load: Load, end: float) -> list[Record]:
    began = time.perf_counter()
    try:
        outcome = await asyncio.wait_for(drive(client, load), max(0.01, end - began))
    except TimeoutError:
        return []  # its steps are in the log all the same
    return [
        msgspec.structs.replace(
            record,
            sent=record.sent + began,
            chunk_times=tuple([at + began for at in record.chunk_times]),
        )
        for record in outcome.records
        if record.error is None
    ]


def _work(jobs: Sequence[Job], at_once: int, rng: random.Random) -> list[Work]:
    """Lengths of prompts as in the traffic, and by the logarithm down to a few tokens.

    Where many run at once most prompts are short, or there were no time for steps of decodes alone.
    """
    longest = max(job.prompt_len for job in jobs)
    most = min(longest, max(_LEAST_PROMPT, longest * _LONG_AT_ONCE // at_once))
    work = []
    for index in range(3 * at_once):
        length = rng.choice(jobs).prompt_len if index % 8 == 0 else 0
        if index % 8 and index % 2:
            length = round(math.exp(rng.uniform(math.log(_LEAST_PROMPT), math.log(most + 8))))
        elif index % 8:
            length = min(most, rng.choice(jobs).prompt_len)
        tokens = random_tokens(max(1, min(length, longest)), rng)
        work.append(Work(tokens, rng.randint(*_OUTPUTS), 0.0))
    return work


def samples_of(run: Run) -> list[Sample]:
    """Its steps but the first few, and those that failed."""
    samples: list[Sample] = []
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
    return samples[WARM_UP_STEPS:]


def _sample(slices: Sequence[tuple[int, int, int]], elapsed_s: float) -> Sample:
    decodes = [start for _, start, count in slices if count == 1]
    chunks = [(start, count) for _, start, count in slices if count > 1]
    context = sum(start + 1 for start in decodes) + sum(attended(*chunk) for chunk in chunks)
    num_tokens = sum(count for _, count in chunks)
    return Sample(len(decodes), num_tokens, context, elapsed_s, None)


def ways_of(run: Run, records: Sequence[Record]) -> list[Way]:
    """What each request took on its way to the scheduler, and its first token on the way back.

    Both clocks are the machine's monotonic one. A request is known by when it came and how long its prompt is.
    """
    arrived = [frame for frame in run.frames if isinstance(frame, Arrived)]
    firsts = _first_tokens(run)
    taken: set[int] = set()
    ways = []
    for record in sorted(records, key=lambda record: record.sent):
        for come in arrived:
            if come.number in taken or come.num_prompt != record.prompt_tokens:
                continue
            # Not `added`: whoever comes in mid-step waits for its end, in a simulation as well.
            inward = come.at - record.sent
            if inward < 0:
                continue
            first = firsts.get(come.number)
            outward = None if first is None else record.chunk_times[0] - first
            if outward is not None and outward >= 0:
                ways.append(Way(inward, outward))
            taken.add(come.number)
            break
    return ways


def _first_tokens(run: Run) -> dict[int, float]:
    """When the step ended that gave a request its first token, on the run's clock."""
    found: dict[int, float] = {}
    last: list[tuple[int, int, int]] = []
    for frame in run.frames:
        if isinstance(frame, Ran):
            last = columns(frame, last)
            sampled = [1] * len(last) if frame.sampled is None else frame.sampled
            for (number, _, _), count in zip(last, sampled, strict=True):
                if count > 0:
                    found.setdefault(number, frame.begun + frame.elapsed_s)
    return found
