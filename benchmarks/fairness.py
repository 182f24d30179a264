"""What a tenant with twenty times the load and long prompts does to another's inter-token latency, in the real engine.

    python benchmarks/fairness.py --json benchmarks/results/fairness.json

The engine runs in this process. Tenant b has a few callers who ask again when they are answered; tenant a always has
twenty times as many requests of long prompts under way. Each setting is run twice, without a and with it, in one process and
on one engine after another; what counts is the ratio. The gaps are those between the steps that gave b a token.
"""

from __future__ import annotations

import argparse
import json
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Finished, TokenOut
from octavo.engine.boot import boot
from octavo.engine.ipc import (
    Abbreviation,
    Events,
    FrameBuffer,
    Submit,
    Went,
    decode_from_engine,
    frame,
)
from octavo.engine.link import SocketLink
from octavo.engine.worker import calm_collector
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

TIMES = 20


class Setting(NamedTuple):
    """One line of the table."""

    policy: str
    max_itl_ms: float | None


class Run:
    """One engine and what its two tenants saw."""

    def __init__(self, args: argparse.Namespace, setting: Setting) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, self.theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        config = EngineConfig(
            model=args.model,
            load_format=args.load_format,
            max_num_seqs=32,
            max_num_batched_tokens=args.step_tokens,
            max_model_len=args.long + 256,
            threads=args.threads,
            scheduling_policy=setting.policy,
            max_itl_ms=setting.max_itl_ms,
            kv_cache_memory_bytes=args.cache_mib << 20,
        )
        now = time.monotonic()
        self.engine = boot(config, SocketLink(ours), asked_at=now, process_at=now)
        self.buffer = FrameBuffer()
        self.abbreviation = Abbreviation()
        self.args = args
        self.gaps: list[float] = []
        self.firsts: list[float] = []
        self.tokens = {"a": 0, "b": 0}
        self._count = 0
        self._sent: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def ask(self, tenant: str) -> None:
        """One more request of a tenant."""
        self._count += 1
        name, length = (
            f"{tenant}{self._count}",
            self.args.long if tenant == "a" else self.args.short,
        )
        self._sent[name] = time.monotonic()
        request = Request(
            id=name,
            token_ids=tuple((7 * self._count + 3 * at + 300) % 4000 for at in range(length)),
            params=SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=self.args.output),
            max_tokens=self.args.output,
            seed=0,
            arrived=time.monotonic(),
            tenant=tenant,
        )
        self.theirs.setblocking(True)
        self.theirs.sendall(frame(Submit(request)))

    def play(self, seconds: float, *, with_a: bool) -> None:
        """Both tenants for so long, after the engine has met both kinds of step."""
        for tenant in ("b", "a"):
            self.ask(tenant)
            while self.engine.scheduler.has_work or self._sent:
                self._turn(again=False)
        self.gaps.clear()
        self.firsts.clear()
        self.tokens = {"a": 0, "b": 0}
        for _ in range(self.args.callers):
            self.ask("b")
        for _ in range(TIMES * self.args.callers if with_a else 0):
            self.ask("a")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._turn(again=True)

    def _turn(self, *, again: bool) -> None:
        self.engine.step()
        now = time.monotonic()
        while True:
            self.theirs.setblocking(False)  # asking again makes it wait
            try:
                data = self.theirs.recv(1 << 20)
            except BlockingIOError:
                return
            for body in self.buffer.feed(data):
                message = self.abbreviation.complete(decode_from_engine(body))
                for event in message.events if isinstance(message, Events | Went) else ():
                    self._take(event, now, again=again)

    def _take(self, event: Any, now: float, *, again: bool) -> None:
        if isinstance(event, TokenOut):
            tenant = event.id[0]
            self.tokens[tenant] += len(event.token_ids)
            if tenant == "b":
                before = self._last.get(event.id)
                where, since = (
                    (self.firsts, self._sent[event.id]) if before is None else (self.gaps, before)
                )
                where.append(now - since)
            self._last[event.id] = now
        else:
            assert isinstance(event, Finished), event
            del self._sent[event.id]
            if again:
                self.ask(event.id[0])


def quantile(values: list[float], q: float) -> float:
    """In milliseconds; -1 of nothing."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1e3 if values else -1.0


def measure(args: argparse.Namespace, setting: Setting) -> dict[str, Any]:
    """Both runs of a setting."""
    found: dict[str, Any] = {"policy": setting.policy, "max_itl_ms": setting.max_itl_ms}
    for name, with_a in (("alone", False), ("beside", True)):
        run = Run(args, setting)
        run.play(args.seconds, with_a=with_a)
        found[name] = {
            "itl_p50_ms": quantile(run.gaps, 0.5),
            "itl_p99_ms": quantile(run.gaps, 0.99),
            "ttft_p50_ms": quantile(run.firsts, 0.5),
            "b_tokens_per_s": run.tokens["b"] / args.seconds,
            "a_tokens_per_s": run.tokens["a"] / args.seconds,
            "error": run.engine.scheduler.stats().step_time.error,
        }
    found["ratio_p99"] = found["beside"]["itl_p99_ms"] / found["alone"]["itl_p99_ms"]
    return found


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="octavo-mini")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--long", type=int, default=1700, help="prompt tokens of tenant a")
    parser.add_argument("--short", type=int, default=300, help="prompt tokens of tenant b")
    parser.add_argument("--callers", type=int, default=4, help="requests of b under way")
    parser.add_argument("--output", type=int, default=40)
    parser.add_argument("--step-tokens", type=int, default=512)
    parser.add_argument("--cache-mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-itl-ms", type=float, nargs="*", default=[])
    parser.add_argument("--policy", nargs="+", default=[EngineConfig().scheduling_policy, "fcfs"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    settings = [Setting(policy, None) for policy in args.policy]
    settings += [Setting(args.policy[0], bound) for bound in args.max_itl_ms]
    with calm_collector():
        results = [measure(args, setting) for setting in settings]
    keys = ("itl_p50_ms", "itl_p99_ms", "ttft_p50_ms", "b_tokens_per_s", "a_tokens_per_s")
    lines = [
        [found["policy"], str(found["max_itl_ms"]), name, *(f"{found[name][k]:.1f}" for k in keys)]
        for found in results
        for name in ("alone", "beside")
    ]
    print(table(("policy", "max itl", "b", *keys), lines))
    for found in results:
        print(f"{found['policy']} {found['max_itl_ms']}: p99 ITL x {found['ratio_p99']:.2f}")
    if args.json:
        record = {
            "command": "benchmarks/fairness.py",
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "environment": environment(),
            "settings": results,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
