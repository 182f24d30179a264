"""Time to first token of prompts with a shared prefix: computed, against found in the prefix cache.

    python benchmarks/prefix_caching.py --model benchmarks/shapes/qwen3-0.6b --load-format dummy

Each round draws a new prefix and sends it twice, each time with a suffix of its own, one request at a time: the first
is a miss, the second a hit. Times are the engine's own, from arrival to first token.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path

from octavo import LLM, SamplingParams
from octavo.tools.bench.environment import environment

ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)


def first_token(llm: LLM, prompt: list[int]) -> tuple[float, int]:
    """(seconds to the first token, prompt tokens found in the cache)."""
    [output] = llm.generate([prompt], ONE_TOKEN, use_tqdm=False)
    timing = output.outputs[0].timing
    assert timing is not None and timing.first_token is not None
    return timing.first_token - timing.arrived, output.num_cached_tokens


def measure(llm: LLM, prefix_len: int, suffix_len: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; a round before them is thrown away."""
    seconds: dict[str, list[float]] = {"miss": [], "hit": []}
    rng = random.Random(0)
    for turn in range(-1, rounds):
        prefix = [rng.randrange(256, 4000) for _ in range(prefix_len)]
        for kind in ("miss", "hit"):
            suffix = [rng.randrange(256, 4000) for _ in range(suffix_len)]
            elapsed, num_cached = first_token(llm, prefix + suffix)
            block = llm.ready.block_size
            expected = 0 if kind == "miss" else prefix_len // block * block
            assert num_cached == expected, f"{kind}: {num_cached} cached tokens, not {expected}"
            if turn >= 0:
                seconds[kind].append(elapsed)
    return seconds


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="octavo-mini")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--prefix-len", type=int, default=2000)
    parser.add_argument("--suffix-len", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    length = args.prefix_len + args.suffix_len + 1
    with LLM(args.model, load_format=args.load_format, max_model_len=length) as llm:
        seconds = measure(llm, args.prefix_len, args.suffix_len, args.rounds)
        ready = llm.ready
    for kind, values in seconds.items():
        print(
            f"{kind:4}  {statistics.median(values) * 1e3:9.1f} ms  "
            f"({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
        )
    ratio = statistics.median(
        miss / hit for miss, hit in zip(seconds["miss"], seconds["hit"], strict=True)
    )
    print(f"a hit is {ratio:.1f} times as fast")
    if args.json:
        record = {
            "command": "benchmarks/prefix_caching.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "dtype": ready.dtype,
            "environment": environment(),
            "seconds": seconds,
            "ratio": ratio,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
