"""How close prefill and decoding come to what this machine can do, measured in turns with it.

    python benchmarks/roofline.py MODEL --formats none int8 int4 --json benchmarks/results/roofline-qwen3-0.6b.json

Each round measures the ceilings (bytes read per second, GFLOP/s of products), then one prompt and some decoding alone of
each format, in one process. Shared machines change within seconds, so what counts is the ratio within a round; its median
is shown. A step of decoding reads every packed weight and the keys and values of its context; a prompt costs two operations
per weight and token, the head once, and the products of attention.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from peers import ceilings

from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.engine.boot import boot
from octavo.engine.engine import Engine
from octavo.engine.ipc import FromEngine, Submit, ToEngine
from octavo.engine.runner import Runner
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import Weight
from octavo.models.facts import ModelFacts
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

RATES = (
    "prefill tok/s",
    "prefill GFLOP/s",
    "of products",
    "decode tok/s",
    "decode GB/s",
    "of reading",
    "layers' products GB/s",
    "of reading",
)


class Link:
    """An engine's link whose other end is here."""

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """What was put in the inbox."""
        messages, self.inbox = self.inbox, []
        return messages

    def wake(self) -> None:
        """Nobody sleeps."""

    def send(self, message: FromEngine) -> None:
        """Nobody listens."""


class Subject:
    """One engine, and what its steps read and compute."""

    def __init__(self, model: str, format_name: str, args: argparse.Namespace) -> None:
        before = {id(each) for each in gc.get_objects() if isinstance(each, Weight)}
        self.link = Link()
        config = EngineConfig(
            model=model,
            quantization=format_name,
            load_format=args.load_format,
            threads=args.threads,
            max_model_len=args.prompt + args.output + 16,
            max_num_batched_tokens=args.prompt,
            max_num_seqs=1,
            kv_cache_memory_bytes=1 << 30,
            enable_prefix_caching=False,
        )
        now = time.monotonic()
        self.engine: Engine = boot(config, self.link, asked_at=now, process_at=now)
        self.rounds = extension.isa() == "avx512_bf16"
        """Whether its products round; one setting for all engines of a process, of which there is usually one."""
        runner = self.engine.runner
        assert isinstance(runner, Runner)
        self.runner = runner
        self.facts: ModelFacts = runner.model.facts  # type: ignore[attr-defined]
        made = [e for e in gc.get_objects() if isinstance(e, Weight) and id(e) not in before]
        self.weight_bytes = sum(weight.num_bytes for weight in made)
        self.layer_bytes = sum(w.num_bytes for w in made if w.num_outputs < self.facts.vocab_size)
        self.head_size = self.facts.vocab_size * self.facts.hidden_size
        self.linear_size = sum(w.num_inputs * w.num_outputs for w in made) - self.head_size
        per_block = sum(group.bytes_per_block for group in runner.pool.groups)
        self.kv_bytes_per_token = per_block / 16
        self.count = 0

    def products(self) -> float:
        """Seconds of the layers' products in one more replay of the last decoding step."""
        steps: Any = self.runner.graphs
        calls = steps._recordings[1][1]._calls.profile()
        return sum(seconds for name, seconds in calls if name in ("linear", "quant_linear"))

    def run(self, prompt: int, output: int) -> tuple[float, float]:
        """Seconds of the prompt and, per step, of decoding (its first two steps left out)."""
        self.count += 1
        request = Request(
            id=str(self.count),
            token_ids=tuple((7 * at + self.count) % 250 + 3 for at in range(prompt)),
            params=SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True),
            max_tokens=output,
            seed=0,
            arrived=time.monotonic(),
        )
        self.link.inbox.append(Submit(request))
        steps = []
        while self.engine.scheduler.has_work or self.link.inbox:
            begun = time.perf_counter()
            self.engine.step()
            steps.append(time.perf_counter() - begun)
        return steps[0], sum(steps[3:]) / len(steps[3:])

    def rates(self, args: argparse.Namespace, gb_per_s: float, gflop_per_s: float) -> list[float]:
        """As `RATES` names them."""
        extension.round_products(self.rounds)
        seconds, step = self.run(args.prompt, args.output)
        layers_gb_per_s = 1e-9 * self.layer_bytes / self.products()
        pairs = args.prompt * (args.prompt + 1) / 2 * self.facts.num_layers
        attention = 4.0 * pairs * self.facts.num_heads * self.facts.head_dim
        gflop = 2e-9 * (self.linear_size * args.prompt + self.head_size) + 1e-9 * attention
        context = args.prompt + args.output / 2
        gbytes = 1e-9 * (self.weight_bytes + context * self.kv_bytes_per_token)
        return [
            args.prompt / seconds,
            gflop / seconds,
            gflop / seconds / gflop_per_s,
            1 / step,
            gbytes / step,
            gbytes / step / gb_per_s,
            layers_gb_per_s,
            layers_gb_per_s / gb_per_s,
        ]


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--formats", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--output", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    subjects = {name: Subject(args.model, name, args) for name in args.formats}
    extension.take_over()
    rounds: list[dict[str, object]] = []
    for turn in range(-1, args.rounds):
        ceilings.SECONDS = 0.3
        torch.set_num_threads(args.threads)
        gb = max(ceilings.bandwidth(args.threads).values())
        gflop = max(ceilings.products(args.threads).values())
        torch.set_num_threads(1)
        found = {name: each.rates(args, gb, gflop) for name, each in subjects.items()}
        if turn >= 0:  # the first warms
            rounds.append({"gb_per_s": gb, "gflop_per_s": gflop, "rates": found})
    lines = []
    for name in args.formats:
        columns = list(zip(*(each["rates"][name] for each in rounds), strict=True))  # type: ignore[index]
        spread = [f"{statistics.median(c):.3g} ({min(c):.3g}-{max(c):.3g})" for c in columns]
        lines.append([name, *spread])
    print(table(("format", *RATES), lines))
    for what in ("gb_per_s", "gflop_per_s"):
        values = [each[what] for each in rounds]
        print(f"{what}: {min(values):.0f} to {max(values):.0f}")  # type: ignore[type-var,str-format]
    if args.json:
        record = {
            "command": "benchmarks/roofline.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "environment": environment(),
            "columns": RATES,
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
