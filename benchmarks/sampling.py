"""From logits to tokens: every way to choose them that runs here, beside a plain read of the logits.

    python benchmarks/sampling.py --threads 2 --json benchmarks/results/sampling.json

A round runs each way once, in alternating order; numbers are medians. Logits are normal with a deviation of 3, which is
about what a trained model's are, so that top_p 0.9 keeps a few hundred tokens of 151,936.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.decoding.chooser import SAMPLE
from octavo.decoding.sampler import Sampler
from octavo.decoding.state import SamplerState
from octavo.kernels.cpu import extension
from octavo.kernels.dispatch import OpCase
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "whole": SamplingParams(temperature=1.0),
    "top_k 50": SamplingParams(temperature=1.0, top_k=50),
    "top_p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
    "top_k 50, top_p 0.9": SamplingParams(temperature=1.0, top_k=50, top_p=0.9),
    "logprobs 5": SamplingParams(temperature=0.0, logprobs=5),
}
CASE = OpCase(device="cpu", dtype="float32")


def measure(logits_NV: torch.Tensor, params: SamplingParams, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way per call; the tokens are compared first."""
    num_rows, vocab_size = logits_NV.shape
    state = SamplerState(num_rows, vocab_size)
    for row in range(num_rows):
        request = Request(
            id=str(row), token_ids=(1,), params=params, max_tokens=9, seed=row, arrived=0.0
        )
        state.add(row, request, (1,))
    candidates = {name: SAMPLE.candidates.load(name) for name in SAMPLE.candidates}
    ways = {
        name: Sampler(each(CASE)) for name, each in candidates.items() if each.refuses(CASE) is None
    }
    rows, positions = range(num_rows), [1] * num_rows
    tokens = {
        sampler.sample(logits_NV, rows, state, positions).token_ids for sampler in ways.values()
    }
    assert len(tokens) == 1, "all choose the same"
    seconds: dict[str, list[float]] = {name: [] for name in ("plain read", *ways)}
    for turn in range(-1, rounds):
        for name in list(seconds) if turn % 2 else reversed(list(seconds)):
            begun = time.perf_counter()
            if name == "plain read":
                logits_NV.sum()
            else:
                ways[name].sample(logits_NV, rows, state, positions)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    extension.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    lines = []
    for num_rows in args.rows:
        logits_NV = torch.randn(num_rows, args.vocab, generator=torch.Generator().manual_seed(0))
        logits_NV *= 3
        for kind, params in KINDS.items():
            found = measure(logits_NV, params, args.rounds)
            results[f"{num_rows} {kind}"] = found
            middles = [f"{statistics.median(values) * 1e3:.3f}" for values in found.values()]
            lines.append([str(num_rows), kind, *middles])
    print(table(("rows", "ms", *found), lines))
    if args.json:
        record = {
            "command": "benchmarks/sampling.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "environment": environment(),
            "seconds": results,
        }
        args.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
