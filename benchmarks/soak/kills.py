"""Kill the engine process of a server under load, again and again: no call may fail, no answer may differ.

    python benchmarks/soak/kills.py --kills 100 --json benchmarks/results/soak-kills.json

A server of the bundled model answers a mix of calls (`mix.py`) once undisturbed. Then callers go on making the same calls,
and compare, while the engine gets SIGKILL at random times: under load, in its first steps after a start, and while it
loads again. Prints a table; exits 1 if a call failed, an answer differed or a block of the KV cache is missing at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from mix import TEMPLATE, Call, calls, perform

START_S = 300.0
CALL_S = 600.0
MOMENTS = ("under load", "loading", "first steps")


@dataclass
class Report:
    """What was seen."""

    requests: int = 0
    streams: int = 0
    tokens: int = 0
    failures: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    pauses_s: list[float] = field(default_factory=list)
    """From the end of one engine to the next that is ready, as the server logged it."""
    gaps_s: list[float] = field(default_factory=list)
    """The worst silence of each stream."""
    resumed: int = 0
    """Open requests that went on, over all restarts."""
    begun: int = 0
    """Those of which the caller had a part of the answer."""
    blocks_in_use: float = 0.0
    memory_mib: tuple[float, float] = (0.0, 0.0)
    """Resident memory of the server process before and after."""
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Nothing failed, differed or leaked."""
        return not (self.failures or self.differences or self.blocks_in_use)

    def rows(self) -> list[tuple[str, str]]:
        """The table."""
        gaps = sorted(self.gaps_s) or [0.0]
        pauses = sorted(self.pauses_s) or [0.0]
        moments = ", ".join(f"{self.kills[name]} {name}" for name in MOMENTS)
        return [
            ("seconds", f"{self.seconds:.0f}"),
            ("kills", f"{sum(self.kills.values())} ({moments})"),
            ("requests", f"{self.requests} of {len(self.kinds)} kinds, {self.streams} streamed"),
            ("output tokens", str(self.tokens)),
            (
                "requests that went on in another engine",
                f"{self.resumed}, {self.begun} in mid-answer",
            ),
            ("failures", str(len(self.failures))),
            ("differences", str(len(self.differences))),
            ("KV blocks in use at the end", f"{self.blocks_in_use:.2%}"),
            ("server memory, MiB", f"{self.memory_mib[0]:.0f} to {self.memory_mib[1]:.0f}"),
            ("engine away, s", f"p50 {statistics.median(pauses):.2f}, max {pauses[-1]:.2f}"),
            (
                "worst silence of a stream, s",
                f"p50 {statistics.median(gaps):.2f}, max {gaps[-1]:.2f}",
            ),
        ]


class Target:
    """A server that this script started."""

    def __init__(self, flags: list[str], log: Path) -> None:
        self.log = log
        code = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
        self._errors = log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--port", "0", "--disable-access-log", *flags],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.url = self._wait()

    def _wait(self) -> str:
        assert self.process.stdout is not None
        url = ""
        for line in self.process.stdout:
            if found := re.search(r"URL\s+(\S+)/v1", line):
                url = found[1]
            if line.lstrip().startswith("Python  "):
                return url
        raise SystemExit(f"the server ended before it was ready; see {self.log}")

    def engine(self) -> int | None:
        """The process id of the engine, if there is one now."""
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            for child in _read(task / "children").split():
                if "octavo.engine.worker" in _read(Path("/proc") / child / "cmdline"):
                    return int(child)
        return None

    def memory_mib(self) -> float:
        """Resident memory of the server process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        self.process.stdout.close()
        code = self.process.wait(60)
        self._errors.close()
        return code


def _read(path: Path) -> str:
    """A file of a process or a thread, which may have ended meanwhile."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def is_ready(client: httpx.AsyncClient) -> bool:
    """Whether the server would take a call and an engine would run it."""
    return (await client.get("/readyz")).status_code == 200


async def kill(
    target: Target, client: httpx.AsyncClient, rng: random.Random, report: Report, count: int
) -> None:
    """Kill the engine `count` times.

    Two kills in a row at most come before anything was answered: a server gives up on an engine that only ever ends.
    """
    unanswered = 0
    for number in range(count):
        moment = rng.choice(MOMENTS if unanswered < 2 else MOMENTS[:1])
        if number < len(MOMENTS):
            moment = MOMENTS[number]
        if moment != "loading":
            deadline = time.monotonic() + START_S
            before = await _tokens(client)
            while not await is_ready(client) or (
                moment == "under load" and await _tokens(client) == before
            ):
                if time.monotonic() > deadline or target.process.poll() is not None:
                    report.failures.append("the server was not ready again")
                    return
                await asyncio.sleep(0.01)
        longest = {"under load": 2.5, "first steps": 0.3, "loading": 0.25}[moment]
        await asyncio.sleep(rng.uniform(0.0, longest))
        while (pid := target.engine()) is None:  # between two of them
            await asyncio.sleep(0.002)
        is_loading = not await is_ready(client)
        os.kill(pid, signal.SIGKILL)
        report.kills["loading" if is_loading else moment.replace("loading", "under load")] += 1
        unanswered = 0 if moment == "under load" else unanswered + 1
        deadline = time.monotonic() + START_S
        while target.engine() in (pid, None):  # until the server has seen it
            if time.monotonic() > deadline or target.process.poll() is not None:
                report.failures.append("the server started no other engine")
                return
            await asyncio.sleep(0.002)


async def _tokens(client: httpx.AsyncClient) -> float:
    return _metric((await client.get("/metrics")).text, "vllm:generation_tokens_total")


async def work(
    client: httpx.AsyncClient,
    todo: itertools.cycle[Call],
    truth: dict[str, str],
    report: Report,
    done: asyncio.Event,
) -> None:
    """Make calls until told to stop, and compare."""
    while not done.is_set():
        call = next(todo)
        answer = await perform(client, call)
        report.requests += 1
        report.kinds[call.kind] += 1
        report.tokens += answer.num_tokens
        if call.body.get("stream"):
            report.streams += 1
            report.gaps_s.append(answer.worst_gap_s)
        if answer.status != 200:
            report.failures.append(f"{call.kind}: {answer.status} {answer.said[:400]}")
        elif answer.said != truth[key_of(call)]:
            report.differences.append(f"{call.kind}:\n  {truth[key_of(call)]}\n  {answer.said}")


def key_of(call: Call) -> str:
    """What tells one call from another."""
    return json.dumps([call.path, call.body], sort_keys=True)


async def disturbed(target: Target, *, kills: int, callers: int, seeds: int, seed: int) -> Report:
    """The whole run."""
    report, rng = Report(), random.Random(seed)
    asked = [call for one in range(seeds) for call in calls(one)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=target.url, timeout=CALL_S, limits=limits) as client:
        answers = await asyncio.gather(*(perform(client, call) for call in asked))
        for call, answer in zip(asked, answers, strict=True):
            if answer.status != 200:
                raise SystemExit(f"undisturbed, {call.kind} failed: {answer.status} {answer.said}")
        truth = {key_of(call): answer.said for call, answer in zip(asked, answers, strict=True)}
        rng.shuffle(asked)
        before, begun, done = target.memory_mib(), time.monotonic(), asyncio.Event()
        todo = itertools.cycle(asked)
        workers = [
            asyncio.create_task(work(client, todo, truth, report, done)) for _ in range(callers)
        ]
        try:
            await kill(target, client, rng, report, kills)
        finally:
            done.set()
            await asyncio.gather(*workers)
        report.seconds = time.monotonic() - begun
        report.memory_mib = (before, target.memory_mib())
        report.blocks_in_use = _metric(
            (await client.get("/metrics")).text, "vllm:kv_cache_usage_perc"
        )
    log = target.log.read_text()
    report.pauses_s = [float(s) for s in re.findall(r"is ready after ([\d.]+) s", log)]
    report.resumed = sum(int(n) for n in re.findall(r"(\d+) open requests go on", log))
    report.begun = sum(int(n) for n in re.findall(r"(\d+) of them in mid-answer", log))
    return report


def _metric(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.M))


def soak(*, kills: int, callers: int, seeds: int, seed: int, flags: list[str], log: Path) -> Report:
    """Start a server, disturb it, stop it."""
    template = log.with_name("template.jinja")
    template.write_text(TEMPLATE)
    more = ["--chat-template", str(template), "--tool-call-parser", "hermes"]
    target = Target([*flags, *more], log)
    try:
        report = asyncio.run(
            disturbed(target, kills=kills, callers=callers, seeds=seeds, seed=seed)
        )
    finally:
        code = target.stop()
    if code != 0:
        report.failures.append(f"the server's exit code was {code}")
    return report


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--callers", type=int, default=12, help="calls under way at a time")
    parser.add_argument("--seeds", type=int, default=4, help="variants of each kind of call")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the times at which the engine is killed"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from octavo.tools.bench.environment import environment

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        report = soak(
            kills=args.kills,
            callers=args.callers,
            seeds=args.seeds,
            seed=args.seed,
            flags=["--threads", "1", "--dtype", "float32"],
            log=log,
        )
        if not report.is_good:
            sys.stderr.write(log.read_text()[-8000:])
    for name, value in report.rows():
        print(f"| {name} | {value} |")
    for line in (*report.failures[:5], *report.differences[:5]):
        print(line)
    if args.json is not None:
        result = {"command": " ".join(sys.argv), "table": dict(report.rows())}
        result |= {"pauses_s": report.pauses_s, "kinds": dict(report.kinds)}
        args.json.write_text(json.dumps({**result, "environment": environment()}, indent=1) + "\n")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
