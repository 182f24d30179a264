"""From logits to tokens on a GPU: the kernels and plain torch, beside one read of the logits.

    python benchmarks/gpu/sampling.py --json benchmarks/results/gpu-sampling.json
    python benchmarks/gpu/sampling.py --interpret     (no card: shows that it runs)

Logits are normal with a deviation of 3, which is about what a trained model's are. `kernels us` is the device's time of the
choice alone (one CUDA graph, logits as the step before leaves them), `of reading` what one read of the logits would take at
the measured ceiling over that; `queue us` is the host's time to queue a whole step, `step us` until its tokens are read.
Tokens of both ways are compared first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card import Card
from results import Results

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.decoding import chooser_triton
from octavo.decoding.chooser import TorchChooser
from octavo.decoding.chooser_triton import TritonChooser
from octavo.decoding.sampler import Sampler
from octavo.decoding.state import SamplerState
from octavo.tools.tables import table

KINDS = {
    "greedy": SamplingParams(temperature=0.0),
    "whole": SamplingParams(temperature=1.0),
    "top_k 50": SamplingParams(temperature=1.0, top_k=50),
    "top_p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
    "top_p 0.999": SamplingParams(temperature=1.0, top_p=0.999),
    "top_k 50, top_p 0.9": SamplingParams(temperature=1.0, top_k=50, top_p=0.9),
    "penalties": SamplingParams(temperature=1.0, repetition_penalty=1.1, presence_penalty=0.5),
    "logprobs 5": SamplingParams(temperature=0.0, logprobs=5),
}


def state_of(params: SamplingParams, rows: int, vocab: int) -> SamplerState:
    """Rows that differ in their seed, each after 512 tokens of prompt."""
    state = SamplerState(rows, vocab)
    for row in range(rows):
        prompt = tuple((row + 7 * i) % vocab for i in range(512))
        request = Request(
            id=str(row), token_ids=prompt, params=params, max_tokens=9, seed=row, arrived=0.0
        )
        state.add(row, request, prompt)
    return state


def measure(
    card: Card, params: SamplingParams, logits_NV: torch.Tensor, rounds: int
) -> dict[str, Any]:
    """One kind of rows."""
    rows, vocab = logits_NV.shape
    state = state_of(params, rows, vocab)
    arguments = (logits_NV, range(rows), state, [512] * rows)
    ways = {"torch": Sampler(TorchChooser()), "triton": Sampler(TritonChooser())}
    tokens = {name: way.sample(*arguments).token_ids for name, way in ways.items()}
    line: dict[str, Any] = {"differing": sum(map(int.__ne__, *tokens.values()))}
    batch = state.batch(range(rows), [512] * rows)
    sent = torch.from_numpy(chooser_triton._table(batch, None)).to(logits_NV.device)
    none = torch.empty(0, 0, dtype=torch.int32, device=logits_NV.device)
    took_s = card.time([lambda: chooser_triton._sample(logits_NV, sent, none, batch)]).median_s
    line["kernels us"] = took_s * 1e6
    for name, way in ways.items():
        queued, done = [], []
        for _ in range(rounds):
            card.synchronize()
            started = time.perf_counter()
            launched = way.launch(*arguments)
            queued.append(time.perf_counter() - started)
            launched.read()
            done.append(time.perf_counter() - started)
        line[f"{name} queue us"] = statistics.median(queued) * 1e6
        line[f"{name} step us"] = statistics.median(done) * 1e6
    return line


def main(argv: list[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    args = parser.parse_args(argv)
    card = Card(is_dry=args.interpret)
    if args.interpret:
        args.vocab, args.rows = 700, [2]
    best, lines = card.ceilings(), []
    for rows in args.rows:
        generator = np.random.default_rng(0)
        logits = generator.standard_normal((rows, args.vocab), np.float32) * 3
        logits_NV = torch.from_numpy(logits).to(card.device)
        for kind, params in KINDS.items():
            line = measure(card, params, logits_NV, 1 if args.interpret else 30)
            share = logits_NV.nbytes / best["read_bytes_per_s"] / (line["kernels us"] / 1e6)
            lines.append({"kind": kind, "rows": rows, "of reading": share, **line})
    columns = tuple(lines[0])
    print(table(columns, [[_cell(line[key]) for key in columns] for line in lines]))
    Results(args.json, card.describe(), best).put("sampling", {"lines": lines})


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
