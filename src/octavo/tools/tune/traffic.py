"""The traffic that flags are to be found for: when requests come, how long they are, and what of their prompts they share.

From a JSONL trace, from what a server's step log has, or drawn from distributions. Pure and seeded, but for reading files.
A shared prefix is said block by block, as names: the simulation's cache takes the names, and for live runs each block's
tokens are drawn from its name, so that both share the same.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core.errors import ConfigError
from octavo.core.kvspec import BLOCK_SIZE
from octavo.meter.frames import DIGEST_BYTES, Arrived, Ended, Named
from octavo.meter.stepfile import read_runs
from octavo.tools.bench import sample
from octavo.tools.bench.sample import MAX_LENGTH, Work

MAX_REQUESTS = 1 << 16
MAX_TRACE_BYTES = 1 << 28
_MAX_ID = 256


class Job(NamedTuple):
    """One request to come."""

    at: float
    """Seconds after the first."""
    prompt_len: int
    output_len: int
    names: bytes = b""
    """Of its leading blocks that others may have, too: DIGEST_BYTES each."""


class Shape(NamedTuple):
    """Distributions to draw from."""

    rate: float
    """Requests per second."""
    inputs: sample.Lengths
    outputs: sample.Lengths
    arrival: sample.Arrival = "poisson"
    burst: int = 1
    prefix_len: int = 0
    num_prefixes: int = 1


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    timestamp: float
    prompt_len: int
    output_len: int
    prefix_id: str | int | None = None
    prefix_len: int = 0


_EXPECTED = "timestamp (seconds), prompt_len and output_len, and maybe prefix_id with prefix_len"


def draw(shape: Shape, count: int, seed: int) -> list[Job]:
    """So many requests of that shape; a prefix is part of the prompt's length and may fill it."""
    rng = random.Random(seed)
    times = sample.arrivals(count, shape.rate, kind=shape.arrival, burst=shape.burst, rng=rng)
    jobs = []
    for at in times:
        prompt, output = shape.inputs.draw(rng), shape.outputs.draw(rng)
        which = rng.randrange(shape.num_prefixes)
        shared = min(shape.prefix_len, prompt)
        jobs.append(Job(at, prompt, output, prefix_names(f"{seed}:{which}", shared)))
    return jobs


def prefix_names(prefix: str, num_tokens: int) -> bytes:
    """Names of the full blocks of a prefix, each named with those before it."""
    return b"".join(
        hashlib.blake2b(f"{prefix}:{index}".encode(), digest_size=DIGEST_BYTES).digest()
        for index in range(num_tokens // BLOCK_SIZE)
    )


def read_trace(path: str, most: int) -> list[Job]:
    """The first `most` requests of a JSONL trace, in the order of their timestamps.

    Raises:
        ConfigError: unreadable, empty, too long, or a line that is not as expected.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > MAX_TRACE_BYTES:
            raise _bad(path, f"is larger than {MAX_TRACE_BYTES >> 20} MiB")
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise _bad(path, "is empty")
    rows.sort(key=lambda row: row.timestamp)
    start = rows[0].timestamp
    return [
        Job(
            row.timestamp - start,
            row.prompt_len,
            row.output_len,
            prefix_names(f"trace:{row.prefix_id}", row.prefix_len),
        )
        for row in rows[:most]
    ]


def _row(path: str, number: int, line: str) -> _Line:
    where = f"line {number}"
    try:
        row = msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError as error:
        raise _bad(path, f"{where}: {error}; expected {_EXPECTED}") from error
    if not math.isfinite(row.timestamp):
        raise _bad(path, f"{where}: timestamp is {row.timestamp}; expected a number of seconds")
    for name in ("prompt_len", "output_len"):
        value = getattr(row, name)
        if not 1 <= value <= MAX_LENGTH:
            raise _bad(path, f"{where}: {name} is {value}; expected 1 to {MAX_LENGTH}")
    if not 0 <= row.prefix_len <= row.prompt_len:
        raise _bad(path, f"{where}: prefix_len is {row.prefix_len}; expected 0 to prompt_len")
    if (row.prefix_id is None) != (row.prefix_len == 0) or len(str(row.prefix_id)) > _MAX_ID:
        raise _bad(path, f"{where}: expected prefix_id and prefix_len both, or neither")
    return row


def _bad(path: str, what: str) -> ConfigError:
    return ConfigError(f"--trace {path!r}: {what}.", code="E-FILE-01")


def read_step_log(folder: str, most: int) -> list[Job]:
    """The last `most` generated requests that ended well in a server's step log, as they came.

    Raises:
        ConfigError: there is none.
    """
    jobs: list[Job] = []
    for run in read_runs(Path(folder).expanduser()):
        arrived = {f.number: f for f in run.frames if isinstance(f, Arrived) and not f.is_pooling}
        names: dict[int, bytes] = {}
        for frame in run.frames:
            if isinstance(frame, Named):
                names[frame.number] = names.get(frame.number, b"") + frame.digests
        for frame in run.frames:
            come = arrived.get(frame.number) if isinstance(frame, Ended) else None
            if not isinstance(frame, Ended) or come is None or come.restarts:
                continue
            if frame.reason not in ("stop", "length") or frame.num_output < 1:
                continue
            shared = names.get(frame.number, b"")[: come.num_prompt // BLOCK_SIZE * DIGEST_BYTES]
            at = run.head.epoch + come.at
            jobs.append(Job(at, come.num_prompt, frame.num_output, shared))
    if len(jobs) < 2:
        raise ConfigError(
            f"--from-step-log {folder!r} has {len(jobs)} requests that ended; expected two at least.",
            code="E-FILE-01",
            fix="Name the folder of --step-log, or the steps folder in --state-dir.",
        )
    jobs.sort(key=lambda job: job.at)
    jobs = jobs[-most:]
    return [job._replace(at=job.at - jobs[0].at) for job in jobs]


def rate_of(jobs: Sequence[Job]) -> float:
    """Arrivals per second; inf when all come at once."""
    span = jobs[-1].at - jobs[0].at
    return (len(jobs) - 1) / span if span > 0 else math.inf


def scaled(jobs: Sequence[Job], factor: float) -> list[Job]:
    """The same requests, coming `factor` times as fast."""
    return [job._replace(at=job.at / factor) for job in jobs]


def work_of(jobs: Sequence[Job], seed: int) -> list[Work]:
    """What to send for them: random tokens, but for named blocks, which are the same in every prompt that has them."""
    rng = random.Random(seed)
    return [Work(_tokens(job, rng), job.output_len, job.at) for job in jobs]


def _tokens(job: Job, rng: random.Random) -> tuple[int, ...]:
    shared: list[int] = []
    for at in range(0, len(job.names), DIGEST_BYTES):
        shared += sample.random_tokens(BLOCK_SIZE, random.Random(job.names[at : at + DIGEST_BYTES]))
    return (*shared, *sample.random_tokens(job.prompt_len - len(shared), rng))
