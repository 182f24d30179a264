"""What a benchmark sends and when: lengths, arrivals and prompts. Pure and seeded; the same seed,
the same work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from octavo.core.errors import ConfigError

Shape = Literal["fixed", "uniform", "lognormal"]
Arrival = Literal["poisson", "constant"]
PromptKind = Literal["tokens", "words"]

MAX_LENGTH = 1 << 20
TOKEN_IDS = range(100, 1000)
"""Random ids come from here: inside every vocabulary, clear of special tokens at its ends."""

_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "qi",
    "ro",
    "su",
)


class Lengths(NamedTuple):
    """A distribution of token counts."""

    shape: Shape
    a: float
    """The length, the lower end, or the median."""
    b: float = 0.0
    """The upper end, or the sigma of the logarithm."""

    def draw(self, rng: random.Random) -> int:
        """One length, at least 1."""
        if self.shape == "uniform":
            return rng.randint(int(self.a), int(self.b))
        if self.shape == "lognormal":
            value = rng.lognormvariate(math.log(self.a), self.b)
            return min(max(1, round(value)), MAX_LENGTH)
        return int(self.a)


class Work(NamedTuple):
    """One request to send."""

    prompt: str | tuple[int, ...]
    output_len: int
    at: float
    """Seconds after the start of the run at which it arrives."""


class _TraceLine(msgspec.Struct, forbid_unknown_fields=True):
    output_len: int
    timestamp: float | None = None
    prompt: str | None = None
    prompt_len: int | None = None


def parse_lengths(text: str) -> Lengths:
    """`128`, `fixed:128`, `uniform:64:256` (or `64-256`), or `lognormal:MEDIAN:SIGMA`.

    Raises:
        ConfigError: none of these.
    """
    shape, _, rest = text.partition(":") if ":" in text else ("fixed", "", text)
    low, dash, high = text.partition("-")
    if dash and low.isdigit() and high.isdigit():
        shape, rest = "uniform", f"{low}:{high}"
    try:
        numbers = [float(part) for part in rest.split(":")]
    except ValueError:
        numbers = []
    in_range = all(0 < number <= MAX_LENGTH for number in numbers)
    if shape == "fixed" and len(numbers) == 1 and in_range and numbers[0] >= 1:
        return Lengths("fixed", numbers[0])
    if shape == "uniform" and len(numbers) == 2 and in_range and 1 <= numbers[0] <= numbers[1]:
        return Lengths("uniform", *numbers)
    if shape == "lognormal" and len(numbers) == 2 and numbers[0] >= 1 and 0 <= numbers[1] <= 5:
        return Lengths("lognormal", *numbers)
    raise ConfigError(
        f"length {text!r}; expected N, uniform:LOW:HIGH, LOW-HIGH or lognormal:MEDIAN:SIGMA.",
        fix="For example --input-len uniform:64:256.",
    )


def arrivals(
    count: int, rate: float, *, kind: Arrival, burst: int, rng: random.Random
) -> list[float]:
    """When requests arrive: `rate` per second, in groups of `burst`; inf is all at once."""
    if math.isinf(rate):
        return [0.0] * count
    times: list[float] = []
    now = 0.0
    while len(times) < count:
        times += [now] * min(burst, count - len(times))
        mean = burst / rate
        now += rng.expovariate(1 / mean) if kind == "poisson" else mean
    return times


def random_tokens(length: int, rng: random.Random) -> tuple[int, ...]:
    """A prompt of exactly `length` random token ids."""
    return tuple(rng.choices(TOKEN_IDS, k=length))


def random_words(length: int, rng: random.Random) -> str:
    """A prompt of `length` made-up words: some tokens each, unlike from request to request."""
    words = ("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(length))
    return " ".join(words)


def random_work(
    inputs: Lengths,
    outputs: Lengths,
    times: Sequence[float],
    *,
    kind: PromptKind,
    rng: random.Random,
) -> list[Work]:
    """One piece of work per arrival time."""
    make = random_tokens if kind == "tokens" else random_words
    return [Work(make(inputs.draw(rng), rng), outputs.draw(rng), at) for at in times]


def read_trace(path: str, *, kind: PromptKind, rng: random.Random) -> tuple[list[Work], bool]:
    """The work of a JSONL trace, and whether it has timestamps (taken relative to the first).

    A line is `{"output_len": 64, "prompt": "..." or "prompt_len": 128, "timestamp": seconds}`.

    Raises:
        ConfigError: unreadable, empty, or a line that is not such an object.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--trace {path!r}: {error}.", code="E-FILE-01") from error
    rows = [_trace_line(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise ConfigError(f"--trace {path!r} is empty.", code="E-FILE-01")
    is_timed = rows[0].timestamp is not None
    if any((row.timestamp is not None) != is_timed for row in rows):
        raise ConfigError(
            f"--trace {path!r}: some lines have a timestamp and some do not.", code="E-FILE-01"
        )
    make = random_tokens if kind == "tokens" else random_words
    start = min(row.timestamp or 0.0 for row in rows)
    work = [
        Work(
            row.prompt if row.prompt is not None else make(row.prompt_len or 1, rng),
            row.output_len,
            (row.timestamp or 0.0) - start,
        )
        for row in rows
    ]
    return sorted(work, key=lambda item: item.at), is_timed


def _trace_line(path: str, number: int, line: str) -> _TraceLine:
    expected = "an object with output_len >= 1, prompt or prompt_len, and maybe timestamp"
    try:
        row = msgspec.json.decode(line, type=_TraceLine)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"--trace {path!r} line {number}: {error}; expected {expected}.", code="E-FILE-01"
        ) from error
    has_one = (row.prompt is None) != (row.prompt_len is None)
    lengths = (row.output_len, 1 if row.prompt_len is None else row.prompt_len)
    if not has_one or row.prompt == "" or min(lengths) < 1:
        raise ConfigError(f"--trace {path!r} line {number}; expected {expected}.", code="E-FILE-01")
    return row


def repeated_share(prompts: Sequence[str | tuple[int, ...]]) -> float:
    """The share of prompts that another one came before with the same content."""
    return 1 - len(set(prompts)) / len(prompts) if prompts else 0.0
