"""Where the time of an engine step goes: everything around the forward pass, part by part, at steady decoding.

    python benchmarks/step.py --batch 1 16 64 256 --json benchmarks/results/step.json

The real engine runs in this process over a real socket whose other end is read between the steps. A step's parts are
timed from outside, by wrapping the calls that the loop makes; what lies between them is the row "rest", so that the
rows sum to the whole. Forward pass, logits and the choice of tokens are kernels, with the Python that calls them; all
else counts as "around". Parts are medians, and so sum to the whole only nearly: the row "sum" beside "step" shows by how
much.

With `--output N` a request ends after N tokens and another takes its place: at 256 rows and N = 256 one ends and one begins
in nearly every step, as in a busy server. With `--ahead` steps are planned while the ones before them run, as on a GPU, and
with `--no-kernels` forward pass, logits and choice give what they gave the first time for as many rows: what a host pays
whose caches no kernels of its own have filled.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Finished
from octavo.engine.boot import boot
from octavo.engine.engine import Engine
from octavo.engine.ipc import (
    Abbreviation,
    Cancel,
    Events,
    FrameBuffer,
    Submit,
    decode_from_engine,
    frame,
)
from octavo.engine.link import SocketLink
from octavo.engine.worker import calm_collector
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

P = ParamSpec("P")
R = TypeVar("R")

PARTS = (
    "drain",
    "foresee",
    "schedule",
    "update",
    "pack",
    "forward",
    "logits",
    "choose",
    "sample",
    "apply",
    "log",
    "emit",
    "rest",
)
SPARE = 512
"""Output tokens for the steps before all sequences decode."""
KERNELS = ("forward", "logits", "choose")
KINDS = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=1 << 20),
    "seeded": SamplingParams(
        temperature=1.0, top_p=0.9, top_k=50, seed=7, ignore_eos=True, max_tokens=1 << 20
    ),
}


class Stopwatch:
    """Adds up what each part takes within one step, less what parts called within it take."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = dict.fromkeys(PARTS, 0)
        self._inner = 0

    def watch(self, part: str, call: Callable[P, R]) -> Callable[P, R]:
        """`call`, with its time added to `part`."""
        clock, spent = time.perf_counter_ns, self.spent

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            outer, self._inner = self._inner, 0
            begun = clock()
            result = call(*args, **kwargs)
            elapsed = clock() - begun
            spent[part] += elapsed - self._inner
            self._inner = outer + elapsed
            return result

        return timed

    def step(self, engine: Engine) -> dict[str, float]:
        """Microseconds of each part of one step, and of the "step" whole."""
        for part in PARTS:
            self.spent[part] = 0
        begun = time.perf_counter_ns()
        engine.step()
        whole = time.perf_counter_ns() - begun
        self.spent["rest"] = whole - sum(self.spent.values())
        return {part: spent / 1e3 for part, spent in {**self.spent, "step": whole}.items()}


def _repeated(call: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    """`call`, made once for each size; what it gave then is given again."""
    known: dict[int, Any] = {}

    def repeat(*args: Any) -> Any:
        of = size(*args)
        if of not in known:
            known[of] = call(*args)
        return known[of]

    return repeat


class LocalEngine:
    """An engine in this process, its socket, and the stopwatch on its parts."""

    def __init__(self, args: argparse.Namespace) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        config = EngineConfig(
            model=args.model,
            load_format=args.load_format,
            max_num_seqs=max(args.batch),
            max_model_len=args.context + args.steps + SPARE,
            threads=args.threads,
            enable_prefix_caching=True,
            step_log=args.step_log,
            async_scheduling=args.ahead,
        )
        now = time.monotonic()
        self.engine = boot(config, SocketLink(ours), asked_at=now, process_at=now)
        self.buffer = FrameBuffer()
        self.abbreviation = Abbreviation()
        self.watch = Stopwatch()
        if args.no_kernels:
            self._leave_out_kernels()
        self._wrap()
        self.read()

    def _leave_out_kernels(self) -> None:
        runner: Any = self.engine.runner
        for owner, name, size in (
            (runner.graphs, "run", lambda _, batch: batch.num_tokens),
            (runner.model, "logits", len),
            (runner.sampler.chooser_for(runner.device), "choose", lambda logits, _: len(logits)),
        ):
            setattr(owner, name, _repeated(getattr(owner, name), size))

    def _wrap(self) -> None:
        watch, engine = self.watch.watch, self.engine
        runner: Any = engine.runner
        for owner, name, part in (
            (engine.link, "receive", "drain"),
            (engine.scheduler, "schedule", "schedule"),
            (engine.scheduler, "foresee", "foresee"),
            (engine.scheduler, "planned", "foresee"),
            (runner, "update", "update"),
            (runner.rows, "pack", "pack"),
            (runner.graphs, "run", "forward"),
            (runner.model, "logits", "logits"),
            (runner.sampler.chooser_for(runner.device), "choose", "choose"),
            (runner.sampler, "sample", "sample"),
            (engine.scheduler, "apply", "apply"),
            (engine, "_log", "log"),
            (engine.link, "send", "emit"),
        ):
            setattr(owner, name, watch(part, getattr(owner, name)))

    def read(self) -> int:
        """Take what the engine sent, as its client would; how many requests have ended."""
        self.theirs.setblocking(False)
        num_ended = 0
        while True:
            try:
                data = self.theirs.recv(1 << 20)
            except BlockingIOError:
                return num_ended
            for body in self.buffer.feed(data):
                message = self.abbreviation.complete(decode_from_engine(body))
                if isinstance(message, Events):
                    failed = [event for event in message.events if hasattr(event, "error")]
                    assert not failed, failed
                    num_ended += sum(isinstance(event, Finished) for event in message.events)

    def send(self, *messages: Any) -> None:
        """Frames to the engine, all before its next step."""
        if not messages:
            return
        self.theirs.setblocking(True)
        self.theirs.sendall(b"".join(map(frame, messages)))

    def measure(self, kind: str, batch: int, args: argparse.Namespace) -> list[dict[str, float]]:
        """One row per step with all `batch` sequences decoding."""
        names: list[str] = []

        def request(max_tokens: int) -> Submit:
            index = len(names)
            names.append(f"{kind}-{batch}-{index}")
            ids = tuple((7 * index + 3 * at + 300) % 4000 for at in range(args.context))
            return Submit(
                Request(
                    id=names[-1],
                    token_ids=ids,
                    params=KINDS[kind],
                    max_tokens=max_tokens,
                    seed=index,
                    arrived=float(index),
                )
            )

        most = args.output or args.steps + SPARE - 1
        # Where they end, they are not to end together.
        first = [most - (args.output or 0) * index // batch for index in range(batch)]
        self.send(*map(request, first))
        scheduler = self.engine.scheduler
        self.engine.step()
        while scheduler.waiting or any(s.num_pending > 1 for s in scheduler.running):
            self.engine.step()
            self.send(*[request(most) for _ in range(self.read())])
        rows = []
        for turn in range(-10, args.steps):
            row = self.watch.step(self.engine)
            self.send(*[request(most) for _ in range(self.read())])
            if turn >= 0:
                rows.append(row)
        assert args.output or len(scheduler.running) == batch, "the sequences were to run through"
        self.send(Cancel(tuple(names)))
        self.engine.step()
        self.read()
        assert not scheduler.has_work
        return rows


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Medians of the parts and the whole; the 99th percentile and the share around the kernels."""
    found = {part: statistics.median(row[part] for row in rows) for part in (*PARTS, "step")}
    around = sorted(row["step"] - sum(row[part] for part in KERNELS) for row in rows)
    found["sum"] = sum(found[part] for part in PARTS)
    found["around"] = statistics.median(around)
    found["log mean"] = statistics.fmean(row["log"] for row in rows)
    found["around p99"] = around[int(0.99 * (len(around) - 1))]
    found["around max"] = around[-1]
    return found


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="octavo-mini")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--context", type=int, default=32, help="prompt tokens")
    parser.add_argument(
        "--output", type=int, help="tokens after which a request ends and another comes"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step-log", help="folder: write the step log as a server would")
    parser.add_argument(
        "--ahead", action="store_true", help="plan a step while the one before it runs, as on a GPU"
    )
    parser.add_argument("--no-kernels", action="store_true", help="compute nothing anew")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    local = LocalEngine(args)
    with calm_collector():
        results = {
            f"{kind} {batch}": summary(local.measure(kind, batch, args))
            for kind in args.kind
            for batch in args.batch
        }
    names = (*PARTS, "log mean", "sum", "step", "around", "around p99", "around max")
    lines = [[name, *(f"{found[name]:.0f}" for found in results.values())] for name in names]
    print(table(("us", *results), lines))
    if args.json:
        record = {
            "command": "benchmarks/step.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "environment": environment(),
            "microseconds": results,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
