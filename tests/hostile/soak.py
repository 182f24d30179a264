"""Everything at once: golden streams while engines are killed, clients leave, load comes in bursts, hostile requests fall and the
server is replaced again and again. One table says what came of it.

    PYTHONPATH=tests python -m hostile.soak --minutes 20 --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from hostile.attack import Report, all_shots, fire, leaked
from hostile.golden import Golden
from hostile.server import Served

_COMPLETIONS = "/v1/completions"
_BURST = 64
_LEFT = frozenset({200, 429, 503, 504})
"""What a caller with a deadline may be told under overload."""


@dataclass(kw_only=True)
class Plan:
    """How long, and how often each trouble comes, in seconds."""

    seconds: float
    kill_every: float = 15.0
    replace_every: float = 45.0
    burst_every: float = 10.0
    seed: int = 1
    num_golden: int = 32


@dataclass(kw_only=True)
class Soaked:
    """The table."""

    seconds: float = 0.0
    golden_streams: int = 0
    golden_failures: list[str] = field(default_factory=list)
    worst_stall_s: float = 0.0
    hostile_requests: int = 0
    wrong_answers: list[str] = field(default_factory=list)
    overload_requests: int = 0
    overload_statuses: dict[int, int] = field(default_factory=dict)
    disconnects: int = 0
    kills: int = 0
    restarts: int = 0
    leaked_blocks_per_mille: int = 0
    grown_mib: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nobody was hurt."""
        odd = set(self.overload_statuses) - _LEFT
        return not (
            self.golden_failures or self.wrong_answers or self.leaked_blocks_per_mille or odd
        )

    def figures(self) -> dict[str, object]:
        """For print and file: lists as their lengths."""
        return {
            name: len(value) if isinstance(value, list) else value
            for name, value in asdict(self).items()
        }


class Soak:
    """A server and its troubles."""

    def __init__(self, served: Served, client: httpx.AsyncClient, plan: Plan) -> None:
        self._served, self._client, self._plan = served, client, plan
        self._drawn = random.Random(plan.seed)
        self._is_over = asyncio.Event()
        self.found = Soaked()

    async def run(self) -> Soaked:
        """Record the golden streams, make trouble for the planned time, look at what is left."""
        golden = Golden(self._client, self._plan.num_golden)
        await golden.record()
        begun = time.monotonic()
        resident = self._served.server_bytes()
        plan = self._plan
        troubles = [
            golden.keep_asking(self._is_over),
            self._every(plan.kill_every, self._kill),
            self._every(plan.replace_every, self._replace),
            self._every(plan.burst_every, self._burst),
            self._hostile(),
            self._leave(),
        ]
        async with asyncio.TaskGroup() as group:
            for trouble in troubles:
                group.create_task(trouble)
            await asyncio.sleep(plan.seconds)
            self._is_over.set()
        found = self.found
        found.seconds = round(time.monotonic() - begun, 1)
        found.golden_streams, found.golden_failures = golden.num_streams, golden.differences
        found.worst_stall_s = round(golden.worst_gap_s, 3)
        found.leaked_blocks_per_mille = await leaked(self._client)
        found.grown_mib = round((self._served.server_bytes() - resident) / (1 << 20), 1)
        return found

    async def _every(self, seconds: float, make: Callable[[], Awaitable[None]]) -> None:
        """Make a trouble now and again, at times drawn around its pace."""
        while not self._is_over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._is_over.wait(), seconds * self._drawn.uniform(0.5, 1.5)
                )
                return
            await make()

    async def _kill(self) -> None:
        for pid in self._served.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.found.kills += 1

    async def _replace(self) -> None:
        await asyncio.to_thread(self._served.replace)
        self.found.restarts += 1

    async def _burst(self) -> None:
        """More than fits, with deadlines."""

        async def ask(number: int) -> None:
            prompt = f"{number} " + "word " * self._drawn.randint(20, 400)
            body = {"prompt": prompt, "max_tokens": 32, "deadline_ms": 1500}
            answer = await self._client.post(_COMPLETIONS, json=body)
            self.found.overload_requests += 1
            statuses = self.found.overload_statuses
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

        await asyncio.gather(*[ask(number) for number in range(_BURST)])

    async def _hostile(self) -> None:
        """The corpus again and again, in another order each time."""
        report = Report()
        seed = self._plan.seed
        while not self._is_over.is_set():
            shots = all_shots(600, 200, seed)
            seed += 1
            for first in range(0, len(shots), 24):
                if self._is_over.is_set():
                    break
                await fire(self._served, self._client, shots[first : first + 24], report)
        self.found.hostile_requests = report.requests
        self.found.wrong_answers = report.wrong

    async def _leave(self) -> None:
        """Clients that go away: before the first token, in the middle, at the end."""
        while not self._is_over.is_set():
            body = {"prompt": "Once", "max_tokens": 64, "stream": True, "n": 2, "ignore_eos": True}
            lines = self._drawn.randint(0, 40)
            with contextlib.suppress(httpx.HTTPError):
                async with self._client.stream("POST", _COMPLETIONS, json=body) as answer:
                    async for _ in answer.aiter_lines():
                        lines -= 1
                        if lines < 0:
                            break
            self.found.disconnects += 1


async def soak(plan: Plan) -> Soaked:
    """Start a server and soak it."""
    limits = httpx.Limits(max_connections=256)
    with Served.start("--shutdown-timeout", "30") as served:
        async with httpx.AsyncClient(base_url=served.url, timeout=180, limits=limits) as client:
            return await Soak(served, client, plan).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = asyncio.run(soak(Plan(seconds=60 * args.minutes, seed=args.seed)))
    figures = {**found.figures(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name, value in figures.items():
        print(f"{name:26} {value}")
    for line in (*found.golden_failures[:5], *found.wrong_answers[:20]):
        print(line)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return int(not found.is_clean)


if __name__ == "__main__":
    raise SystemExit(main())
