"""Goodput under overload, with and without limits of time: what refusing at once is worth, and how fast it is.

    python benchmarks/overload.py --json benchmarks/results/overload.json

Starts `octavo serve` on one thread, measures its capacity with a few calls always under way, then sends calls at random
(Poisson) at multiples of that, whether earlier ones are answered or not. An answer is good when its first token and its
last come within `--ttft-slo-ms` and `--deadline-ms`; `refused` are 429s, and `refuse_ms` is from the call's first byte
to the refusal's, as its caller sees it. `plain` sends the same load without saying how long it waits, and looks at the
same limits afterwards. Prompts are random token ids, so that nothing is found in the prefix cache. Short prompts fit more often
into the time that is left, so `good_tokens_per_s` counts the prompt tokens of good answers beside the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

VOCAB = 4096
IN_FLIGHT = 16


class Outcome(NamedTuple):
    """One call, in seconds from its first byte."""

    status: int
    first_s: float
    """To the first event of the stream, or to the end of a refusal."""
    last_s: float
    error: str
    prompt_tokens: int


class Server(NamedTuple):
    """Where it listens."""

    port: int

    async def call(self, body: dict[str, Any]) -> Outcome:
        """One streamed completion, on a connection of its own."""
        payload = json.dumps(body).encode()
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(payload) + payload
            )
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            text = await reader.read(1 << 16)
            first = time.perf_counter() - began
            while part := await reader.read(1 << 16):
                text += part
            last, error = time.perf_counter() - began, _error(text.decode())
            return Outcome(status, first, last, error, len(body["prompt"]))
        finally:
            writer.close()

    async def metric(self, name: str, labels: str = "") -> float:
        """The sum of a metric's samples."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        text = (await reader.read()).decode()
        writer.close()
        found = re.findall(rf"^{re.escape(name)}\{{[^}}]*{labels}[^}}]*\}} (\S+)$", text, re.M)
        return sum(map(float, found))


def _error(text: str) -> str:
    found = re.search(r'"code": ?"(\w+)"', text)
    return found[1] if found else ""


def body(rng: random.Random, args: argparse.Namespace, limits: dict[str, int]) -> dict[str, Any]:
    """A call: a prompt of random ids of 0.3 to 1.7 times the mean length, and about the mean output."""
    length = int(args.prompt_tokens * rng.uniform(0.3, 1.7))
    return {
        "prompt": [rng.randrange(10, VOCAB) for _ in range(length)],
        "max_tokens": rng.randint(args.output_tokens // 2, args.output_tokens * 3 // 2),
        "ignore_eos": True,
        "stream": True,
        **limits,
    }


@asynccontextmanager
async def serving(flags: list[str]) -> AsyncIterator[Server]:
    """`octavo serve` in a process of its own."""
    command = [sys.executable, "-m", "octavo.tools.cli", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--disable-access-log", *flags], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = 0
    for line in process.stdout:
        if found := re.search(r"URL\s+http://[\d.]+:(\d+)", line):
            port = int(found[1])
        if "Python  " in line:
            break
    try:
        yield Server(port)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        process.stdout.close()


async def capacity(server: Server, args: argparse.Namespace) -> float:
    """Calls a second with `IN_FLIGHT` of them always under way."""
    rng = random.Random(0)
    until = time.perf_counter() + args.seconds / 2
    num = 0

    async def one_after_another() -> None:
        nonlocal num
        while time.perf_counter() < until:
            await server.call(body(rng, args, {}))
            num += 1

    began = time.perf_counter()
    await asyncio.gather(*[one_after_another() for _ in range(IN_FLIGHT)])
    return num / (time.perf_counter() - began)


async def load(
    server: Server, args: argparse.Namespace, rate: float, limits: dict[str, int]
) -> dict[str, float]:
    """Send at `rate`; what is not answered some seconds after the end is given up."""
    rng = random.Random(f"{rate} {limits}")
    tasks: list[asyncio.Task[Outcome]] = []
    began = due = time.perf_counter()
    while due < began + args.seconds:
        due += rng.expovariate(rate)
        made = body(rng, args, limits)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(server.call(made)))
    await asyncio.wait(tasks, timeout=args.deadline_ms / 1000 + 1)
    for task in tasks:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    return summary([one for one in found if isinstance(one, Outcome)], len(tasks), args)


def summary(outcomes: list[Outcome], num_sent: int, args: argparse.Namespace) -> dict[str, float]:
    """The figures of one phase."""
    served = [one for one in outcomes if one.status == 200 and not one.error]
    good = [
        one
        for one in served
        if one.first_s * 1000 <= args.ttft_slo_ms and one.last_s * 1000 <= args.deadline_ms
    ]
    refused = [one for one in outcomes if one.status == 429]
    expired = [one for one in outcomes if one.error == "deadline_exceeded"]
    result = {
        "sent": num_sent,
        "served": len(served),
        "good": len(good),
        "refused": len(refused),
        "expired": len(expired),
        "goodput_per_s": len(good) / args.seconds,
        "good_tokens_per_s": sum(one.prompt_tokens for one in good) / args.seconds,
    }
    for name, times in (
        ("ttft_ms", [one.first_s for one in served]),
        ("refuse_ms", [one.last_s for one in refused]),
    ):
        if len(times) > 1:
            cuts = statistics.quantiles(times, n=100)
            result |= {f"{name}_p50": cuts[49] * 1000, f"{name}_p99": cuts[98] * 1000}
    return result


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All phases over one server."""
    limits = {"ttft_slo_ms": args.ttft_slo_ms, "deadline_ms": args.deadline_ms}
    phases: dict[str, dict[str, float]] = {}
    async with serving(["--threads", str(args.threads), "--model", args.model]) as server:
        most = await capacity(server, args)
        for times in (0.8, 1.0, 3.0):
            phases[f"{times:g}x"] = await load(server, args, times * most, limits)
            coverage = await server.metric("octavo:ttft_interval_coverage")
            phases[f"{times:g}x"]["coverage"] = coverage
        promises = await server.metric("octavo:promises_total", 'kind="ttft_slo"')
        broken = await server.metric("octavo:promises_broken_total", 'kind="ttft_slo"')
        phases["3x plain"] = await load(server, args, 3.0 * most, {})
    return {"capacity_per_s": most, "phases": phases, "promises": promises, "broken": broken}


def main() -> None:
    """Measure, print, maybe write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="octavo-mini")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=25.0, help="of each load")
    parser.add_argument("--prompt-tokens", type=int, default=500)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--ttft-slo-ms", type=int, default=1000)
    parser.add_argument("--deadline-ms", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = asyncio.run(measure(args))
    names = list(dict.fromkeys(name for phase in result["phases"].values() for name in phase))
    loads = result["phases"].items()
    rows = [
        [name, *(f"{phase[name]:.4g}" if name in phase else "" for _, phase in loads)]
        for name in names
    ]
    print(f"capacity {result['capacity_per_s']:.1f} calls/s")
    print(table(["", *result["phases"]], rows))
    print(f"promises {result['promises']:.0f}, broken {result['broken']:.0f}")
    if args.json:
        shown = {k: v for k, v in vars(args).items() if k != "json"}
        text = json.dumps({"command": shown, **result, "environment": environment()}, indent=2)
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
