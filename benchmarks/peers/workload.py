"""What every engine is made to do, and how it is timed. Runs in the engines' own environments: standard library only.

An engine's script calls `run` with a function that loads it. What that returns takes prompts and a number of tokens, and
gives for each prompt the times at which its tokens came.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

MARK = "RESULT "
"""Begins the one line of standard output that is read."""
TOKEN_IDS = range(256, 4000)
"""Ordinary tokens of the bundled tokenizer."""

Stamps = list[list[float]]
Generate = Callable[[list[list[int]], int], Stamps]
"""(prompts, tokens to generate for each) -> for each prompt, `time.perf_counter()` at each of its tokens."""


@dataclass(frozen=True)
class Case:
    """So many prompts of equal length at once, so many tokens out of each."""

    batch: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        """batch x input + output."""
        return f"{self.batch}x{self.input_len}+{self.output_len}"


@dataclass(frozen=True)
class Job:
    """What one process is asked."""

    model: str
    precision: str
    threads: int
    seed: str
    cases: list[Case]

    @property
    def max_len(self) -> int:
        """Longest prompt plus output."""
        return max(case.input_len + case.output_len for case in self.cases)

    @property
    def max_batch(self) -> int:
        """Most prompts at once."""
        return max(case.batch for case in self.cases)

    @property
    def max_tokens(self) -> int:
        """Most tokens in the KV cache."""
        return max(case.batch * (case.input_len + case.output_len) for case in self.cases)

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


class Skipped(Exception):
    """This engine cannot run here; the text says why."""


def measure(generate: Generate, case: Case, seed: str) -> dict[str, float | None]:
    """Times of one case.

    `first_s`: until the last prompt has its first token. `total_s`: until all tokens are there. `decode_tok_s`: tokens
    per second while every prompt is generating, from the last first token to the first last token.
    """
    rng = random.Random(f"{seed} {case.name}")
    prompts = [[rng.choice(TOKEN_IDS) for _ in range(case.input_len)] for _ in range(case.batch)]
    begun = time.perf_counter()
    stamps = generate(prompts, case.output_len)
    short = [len(each) for each in stamps if len(each) != case.output_len]
    if short or len(stamps) != case.batch:
        raise SystemExit(f"{case.name}: {short[:3]} tokens came, expected {case.output_len}")
    begin, end = max(each[0] for each in stamps), min(each[-1] for each in stamps)
    between = sum(begin < at <= end for each in stamps for at in each)
    return {
        "first_s": begin - begun,
        "total_s": max(each[-1] for each in stamps) - begun,
        "decode_tok_s": between / (end - begin) if end > begin else None,
    }


def run(load: Callable[[Job], tuple[Generate, dict[str, str]]]) -> None:
    """Load, warm up, time every case once, print. `load` also names versions and settings."""
    given = json.loads(sys.argv[1])
    job = Job(**{**given, "cases": [Case(**case) for case in given["cases"]]})
    begun = time.perf_counter()
    try:
        generate, about = load(job)
    except (Skipped, ImportError) as error:
        print(MARK + json.dumps({"skipped": f"{error}"}), flush=True)
        return
    loaded = time.perf_counter() - begun
    measure(generate, Case(1, 16, 8), "warm-up")
    times = {case.name: measure(generate, case, job.seed) for case in job.cases}
    print(MARK + json.dumps({"load_s": loaded, "about": about, "cases": times}), flush=True)
