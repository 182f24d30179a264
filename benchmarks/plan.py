"""What `octavo plan` predicts for this CPU against what the engine then does: memory, time per token, time to first token.

    python benchmarks/plan.py --json benchmarks/results/plan.json

Each subject runs in a process of its own: the plan is made, the engine is started with random weights in that process and
decodes one sequence, then some at once. Predicting and measuring take turns, because shared machines change within
seconds; medians over the rounds are compared, and "at best" the shortest of each. Memory is what the process grows by from before the weights to the most
after a full step (its peak is reset after loading, and every page of the KV cache is written first).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from octavo.tools.bench.environment import environment
from octavo.tools.plan.speed import Measured, decode_s, prompt_s
from octavo.tools.plan.target import Given, find, network_of, speed_of
from octavo.tools.tables import bytes_text, seconds_text, table

SUBJECTS = (
    ("octavo-mini", "none"),
    ("benchmarks/shapes/qwen3-0.6b", "none"),
    ("benchmarks/shapes/qwen3-0.6b", "int8"),
)
WARM = 4
SECONDS = 1.0


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def one(args: argparse.Namespace) -> dict[str, Any]:
    """A subject, in this process."""
    # lazy: the parent needs none of this
    from octavo.core.config import EngineConfig
    from octavo.core.params import SamplingParams
    from octavo.core.request import Request
    from octavo.engine.boot import boot
    from octavo.engine.ipc import Submit
    from octavo.engine.worker import calm_collector
    from octavo.kernels.cpu import extension

    class Link:
        inbox: list[Any] = []

        def receive(self, *, wait: bool) -> list[Any]:
            messages, self.inbox = self.inbox, []
            return messages

        def wake(self) -> None:
            """Nobody sleeps."""

        def send(self, message: Any) -> None:
            pass

    def config(model: str) -> EngineConfig:
        return EngineConfig(
            model=model,
            load_format="dummy",
            quantization=args.quantization,
            threads=args.threads,
            max_num_seqs=args.seqs,
            max_model_len=min(1024, args.prompt + args.output + 64),
            kv_cache_memory_bytes=args.kv_mib << 20,
            enable_prefix_caching=False,
            device="cpu",
        )

    now = time.monotonic()
    boot(config("benchmarks/shapes/tiny"), Link(), asked_at=now, process_at=now)  # loads libraries
    target = find("cpu", Given())
    resolved = target.resolve(config(args.model))
    network = network_of(resolved)
    base = status("VmRSS")
    link = Link()
    engine = boot(config(args.model), link, asked_at=now, process_at=now)
    for layer in range(len(engine.runner.model.kv_specs())):
        for tensor in engine.runner.pool.layer(layer).tensors():
            tensor.zero_()
    calm_collector()
    Path("/proc/self/clear_refs").write_text("5")

    count = 0

    def submit(num_seqs: int) -> None:
        nonlocal count
        for _ in range(num_seqs):
            count += 1
            link.inbox.append(
                Submit(
                    Request(
                        id=str(count),
                        token_ids=tuple((7 * at + count) % 250 + 3 for at in range(args.prompt)),
                        params=SamplingParams(
                            temperature=0.0, max_tokens=args.output, ignore_eos=True
                        ),
                        max_tokens=args.output,
                        seed=0,
                        arrived=time.monotonic(),
                    )
                )
            )

    def steps(num_seqs: int) -> tuple[float, float]:
        """Seconds of the prompts' steps, and the median of those in which all decode."""
        submit(num_seqs)
        first = 0.0
        taken = []
        while engine.scheduler.has_work or link.inbox:
            begun = time.perf_counter()
            engine.step()
            elapsed = time.perf_counter() - begun
            sequences = engine.scheduler.running
            is_decode = len(sequences) == num_seqs and all(s.num_output > 1 for s in sequences)
            if is_decode:
                taken.append(elapsed)
            elif not taken:
                first += elapsed
        return first, statistics.median(taken[WARM:])

    def for_a_while(num_seqs: int) -> tuple[float, float]:
        """Medians of `steps`, as often as takes about as long as predicting does."""
        until = time.monotonic() + SECONDS
        found = [steps(num_seqs)]
        while time.monotonic() < until:
            found.append(steps(num_seqs))
        return statistics.median(f for f, _ in found), statistics.median(i for _, i in found)

    steps(args.seqs)
    grown = status("VmHWM") - base
    memory = resolved.memory
    context = args.prompt + args.output / 2
    rounds: list[dict[str, float]] = []
    for _ in range(args.rounds):
        speed = speed_of(target, resolved, network)
        assert isinstance(speed, Measured)
        extension.take_over()
        row = {"host": speed.timing.host_s}
        for name, num_seqs in (("1", 1), ("n", args.seqs)):
            row[f"itl {name} predicted"] = decode_s(speed, network, num_seqs, context)
            first, itl = for_a_while(num_seqs)
            row[f"itl {name} measured"] = itl
            row[f"rest {name}"] = speed.rest_s(num_seqs)
            if num_seqs == 1:
                budget = resolved.limits.max_num_batched_tokens
                row["ttft predicted"] = prompt_s(speed, network, args.prompt, budget)
                row["ttft measured"] = first
        rounds.append(row)
    return {
        "model": args.model,
        "quantization": args.quantization,
        "memory predicted": memory.weights + memory.kv + memory.activations,
        "memory measured": grown,
        "parts": dict(memory.parts()),
        "rounds": rounds,
    }


def summary(found: dict[str, Any], seqs: int) -> list[list[str]]:
    """Rows of the table."""
    name = f"{Path(found['model']).name} {found['quantization']}"
    predicted, measured = found["memory predicted"], found["memory measured"]
    share = f"{predicted / measured - 1:+.1%}"
    rows = [[name, "memory", bytes_text(predicted), bytes_text(measured), share, ""]]
    for key, label in (("itl 1", "ITL, 1"), ("itl n", f"ITL, {seqs}"), ("ttft", "TTFT")):
        predicted = [row[f"{key} predicted"] for row in found["rounds"]]
        measured = [row[f"{key} measured"] for row in found["rounds"]]
        p, m = statistics.median(predicted), statistics.median(measured)
        best = min(predicted) / min(measured) - 1
        cells = (seconds_text(p), seconds_text(m), f"{p / m - 1:+.1%}", f"{best:+.1%}")
        rows.append([name, label, *cells])
    return rows


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=24)
    parser.add_argument("--seqs", type=int, default=4)
    parser.add_argument("--kv-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--child", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(one(args)))
        return
    subjects = [(args.model, args.quantization)] if args.model else SUBJECTS
    found = []
    for model, quantization in subjects:
        words = [sys.executable, __file__, "--child", "--model", model]
        words += ["--quantization", quantization]
        for name in ("prompt", "output", "seqs", "rounds"):
            words += [f"--{name}", str(getattr(args, name))]
        words += ["--kv-mib", str(args.kv_mib)]
        words += ["--threads", str(args.threads)] if args.threads else []
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    if args.json:
        record = {
            "command": "benchmarks/plan.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k not in ("json", "child")},
            "environment": environment(),
            "subjects": found,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    rows = [row for each in found for row in summary(each, args.seqs)]
    print(table(("subject", "what", "predicted", "measured", "error", "at best"), rows))


if __name__ == "__main__":
    main()
