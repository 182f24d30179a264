"""Calls ended at random states in random ways, beside a stream that must not notice: the long form of test_cancel.py.

usage: python benchmarks/cancel.py [--rounds 10000] [--seed 0]

Each round starts a golden stream, makes a call beside it, ends that call when it reaches a random one of its states (its
client leaves, its task is cancelled, or DELETE /v1/requests/{id}), and checks that no task, no count and, within two
steps, no block is left of it, and that the golden stream says the same bytes as always. Every fourth round ends a call to
an embedder. Stops with an error at the first round in which one of these does not hold; else prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cut_cases import POOLS, TALKS, offload, pooler, talker
from cuts import WAYS, Bench, Case


async def main(rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    talks, pools = talker(folder / "talks"), pooler(folder / "pools")
    most: dict[str, int] = {}
    ends: Counter[str] = Counter()
    began, resident = time.monotonic(), 0
    for number in range(rounds):
        bench: Bench = pools if number % 4 == 3 else talks
        cases: dict[str, Case] = POOLS if bench is pools else TALKS
        name, way = rng.choice(sorted(cases)), rng.choice(WAYS)
        at = rng.randrange(most.get(name, 64) + 1)
        cut = await bench.round(cases[name], at, way)
        if not cut.reached:  # it has fewer states than that
            most[name] = min(most.get(name, 64), at)
        ends[way if cut.reached else "by itself"] += 1
        if number == rounds // 4:
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    print(
        json.dumps(
            {
                "rounds": rounds,
                "ended": dict(ends),
                "golden_differences": 0,
                "leaked_blocks": 0,
                "left_over": 0,
                "peak_memory_growth_after_first_quarter_kib": grown,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for module, attribute, value in offload():
        setattr(module, attribute, value)
    asyncio.run(main(args.rounds, args.seed))
