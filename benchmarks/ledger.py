"""The ledger: what it costs a step, and whether it closes over a long run in which everything happens.

    python benchmarks/ledger.py overhead
    python benchmarks/ledger.py close --minutes 10 [--postgres URL]

`overhead` times booking alone, without a model: microseconds per step of so many decodes. `close` starts a server with too
small a KV cache, has tenants call it with several features, hang up on some calls and kills its engine every so often; then it
asks `octavo cost`. The accounts must sum to the time in which the server ran within 0.1 %. It asks of every call where its
time went, too: the parts must sum to what the server says it took within 0.5 %, and that of an answered stream to what its
caller measured, within 0.5 % and 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent / "soak"))
sys.path.insert(0, str(Path(__file__).parent))

from octavo.core.params import SamplingParams
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import SliceResult, StepResult, TokenOut
from octavo.core.steptime import StepTime
from octavo.meter.ledger import Ledger

LINE = StepTime(base_s=0.01, token_s=1e-4, context_s=1e-8, num_steps=100)
MOST_OFF = 1e-3
STREAMED = 0.7
WHY_OFF = 5e-3
WHY_SLACK_S = 0.25
"""Between a caller's clock readings and the server's lie a socket and event loops of two processes, on cores that an engine
loads on meanwhile. The table says what it was."""


def overhead() -> None:
    """Microseconds per step."""
    print("| decodes | add, us | due when nothing is, us | telling all, us | per 0.5 s |")
    print("|---|---|---|---|---|")
    for rows in (1, 8, 64, 256):
        add, due, tell = _times(rows)
        print(f"| {rows} | {add:.1f} | {due:.1f} | {tell:.0f} | {tell / 0.5e6:.4%} |")


def _times(rows: int) -> tuple[float, float, float]:
    ledger, now, steps = Ledger(), 0.0, 400
    ledger.wake(now)
    requests = [
        Request(
            id=f"request-{row}",
            token_ids=(1,) * 100,
            params=SamplingParams(),
            max_tokens=9999,
            seed=0,
            arrived=0.0,
        )
        for row in range(rows)
    ]
    starts = tuple(
        SequenceStart(row=row, request=one, token_ids=one.token_ids, blocks=(), epochs=())
        for row, one in enumerate(requests)
    )
    events = [TokenOut(id=one.id, token_ids=(1,)) for one in requests]
    spent = [0.0, 0.0, 0.0]
    for step in range(steps):
        slices = tuple(Slice(row=r, start=100 + step, count=1, sample=True) for r in range(rows))
        plan = StepPlan(step=step, starts=starts if step == 0 else (), slices=slices)
        results = tuple(SliceResult(row, (1,)) for row in range(rows))
        result = StepResult(step=step, slices=results, elapsed_s=0.001)
        now += 0.001
        at = time.perf_counter()
        ledger.add(plan, result, LINE, now)
        spent[0] += time.perf_counter() - at
        is_told = step % 100 == 99
        ledger.every_s = 0.0 if is_told else 1e9
        at = time.perf_counter()
        ledger.due(events, now, is_idle=False)
        spent[2 if is_told else 1] += time.perf_counter() - at
    told = steps // 100
    return 1e6 * spent[0] / steps, 1e6 * spent[1] / (steps - told), 1e6 * spent[2] / told


class Whys:
    """What was said of where the time of calls went, against their callers' clocks."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.worst_sum = 0.0
        self.off_s: list[float] = []

    async def ask(
        self, http: httpx.AsyncClient, name: str, headers: dict[str, str], took: float | None
    ) -> None:
        """Of a call that took its caller so long; None: who left, and cannot know how long it went on."""
        answer = await http.get(f"/v1/requests/{name}", headers=headers)
        if answer.status_code != 200:
            self.wrong.append(f"{name}: {answer.status_code}")
            return
        found = answer.json()
        timing = found["timing"]
        total = timing["total_s"]
        parts = sum(part["seconds"] for part in timing["parts"])
        self.ended["answered" if took is not None else "left"] += 1
        for part in timing["parts"]:
            self.seconds[part["name"]] += part["seconds"]
        for mark in ("preemption", "restart"):
            self.ended[mark] += any(part["name"] == mark for part in timing["parts"])
        off = abs(parts / total - 1)
        self.worst_sum = max(self.worst_sum, off)
        is_wrong = off > WHY_OFF
        if took is not None:
            off_s = abs(total - took)
            self.off_s.append(off_s)
            is_wrong = is_wrong or off_s > WHY_OFF * took + WHY_SLACK_S
        if is_wrong:
            self.wrong.append(f"{name}: parts {parts:.4f}, told {total:.4f}, measured {took}")

    def tell(self) -> None:
        """Print it."""
        off_ms = sorted(1000 * one for one in self.off_s) or [0.0]
        print(
            f"why: {self.ended['answered']} answered, {self.ended['left']} hung up on, of these "
            f"{self.ended['preemption']} preempted and {self.ended['restart']} through an engine's end; "
            f"parts off their sum by at most {self.worst_sum:.5%}, the sum off the caller's clock by p50 "
            f"{off_ms[len(off_ms) // 2]:.1f}, p95 {off_ms[int(0.95 * len(off_ms))]:.1f}, at most {off_ms[-1]:.1f} ms; "
            f"wrong: {len(self.wrong)}"
        )
        print(", ".join(f"{name} {spent:.1f} s" for name, spent in self.seconds.most_common()))
        print("\n".join(self.wrong[:20]))


async def disturb(
    url: str, keys: list[str], engine: object, minutes: float, whys: Whys
) -> dict[str, int]:
    """Calls of all kinds, some cut off, and kills."""
    done = time.monotonic() + 60 * minutes
    counts = {"answers": 0, "hung up": 0, "kills": 0, "refused": 0}

    async def call(http: httpx.AsyncClient, rng: random.Random) -> None:
        while time.monotonic() < done:
            headers = {
                "authorization": f"Bearer {rng.choice(keys)}",
                "x-octavo-feature": rng.choice(["search", "chat", "mail"]),
            }
            body = {
                "prompt": "def f(x):\n" * rng.choice([1, 10, 60]),
                "max_tokens": rng.choice([4, 60, 400]),
                "n": rng.choice([1, 1, 3]),
                "ignore_eos": True,
                "stream": rng.random() < STREAMED,
            }
            patience = rng.choice([None, None, None, rng.uniform(0.05, 2.0)])
            name, took, begun = "", None, time.monotonic()
            try:
                async with (
                    asyncio.timeout(patience),
                    http.stream("POST", "/v1/completions", json=body, headers=headers) as answer,
                ):
                    name = answer.headers["x-request-id"] if answer.status_code == 200 else ""
                    async for _ in answer.aiter_raw():
                        took = time.monotonic() - begun
                counts["answers" if name else "refused"] += 1
            except TimeoutError:
                counts["hung up"] += 1
                took = None
            if name:
                await whys.ask(http, name, headers, took)
            await asyncio.sleep(rng.choice([0.0, 0.0, 3.0]) * rng.random())

    async def kill(rng: random.Random) -> None:
        while time.monotonic() < done - 20:
            await asyncio.sleep(rng.uniform(15, min(90, 20 * minutes)))
            pid = engine.engine()  # type: ignore[attr-defined]
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                counts["kills"] += 1

    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        await asyncio.gather(
            kill(random.Random(0)), *(call(http, random.Random(n)) for n in range(1, 13))
        )
    return counts


def close(minutes: float, postgres: str | None) -> int:
    """Start, disturb, stop, ask."""
    from kills import Target

    with tempfile.TemporaryDirectory() as folder:
        keys = [
            _octavo("keys", "create", "--name", t, "--tenant", t, "--state-dir", folder).strip()
            for t in ("ann", "bob", "eve")
        ]
        where = ["--ledger-url", postgres] if postgres else []
        flags = ["--state-dir", folder, *where, "--device-price", "2.5", "--threads", "1"]
        small = ["--kv-cache-memory-bytes", "12M", "--max-model-len", "2048"]
        target = Target([*flags, *small], Path(folder) / "server.log")
        whys = Whys()
        try:
            counts = asyncio.run(disturb(target.url, keys, target, minutes, whys))
        finally:
            code = target.stop()
        named = where or ["--state-dir", folder]
        print(_octavo("cost", *named))
        found = json.loads(_octavo("cost", *named, "--json"))
    total, covered = sum(one["device_s"] for one in found["accounts"]), found["covered_s"]
    off = total / covered - 1
    print(counts)
    print(
        f"exit code {code}; accounts {total:.3f} s, servers ran {covered:.3f} s, off by {off:+.5%}"
    )
    whys.tell()
    return 0 if abs(off) <= MOST_OFF and code == 0 and not whys.wrong else 1


def _octavo(*words: str) -> str:
    code = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("overhead", "close"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--postgres", metavar="URL")
    args = parser.parse_args()
    if args.what == "overhead":
        overhead()
        return 0
    return close(args.minutes, args.postgres)


if __name__ == "__main__":
    sys.exit(main())
