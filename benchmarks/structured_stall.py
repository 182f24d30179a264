"""What the first structured request of a server's life does to streams that run: the longest time between two of their
tokens, and the longest time that the server takes to answer `/livez`, before and after it.

    python benchmarks/structured_stall.py --work WORK --json benchmarks/results/structured-stall.json

The model has random weights and a vocabulary of 151,936 tokens (`structured.py` makes it in `--work`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
from structured import RECORD, large_model

from octavo.tools.bench.environment import environment

PORT = 8917
URL = f"http://127.0.0.1:{PORT}"


async def stream(session: aiohttp.ClientSession, arrivals: list[float]) -> None:
    """A completion without a grammar that runs throughout; when each of its chunks comes."""
    body = {"model": "large", "prompt": "a", "max_tokens": 1400, "ignore_eos": True, "stream": True}
    async with session.post(f"{URL}/v1/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                arrivals.append(time.perf_counter())


async def ping(session: aiohttp.ClientSession, found: list[tuple[float, float]]) -> None:
    """When `/livez` was asked, and how long it took to answer."""
    while True:
        begun = time.perf_counter()
        async with session.get(f"{URL}/livez") as response:
            await response.read()
        found.append((begun, time.perf_counter() - begun))
        await asyncio.sleep(0.005)


async def measure(quiet_s: float) -> dict[str, Any]:
    """All times in milliseconds."""
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            try:
                async with session.get(f"{URL}/readyz") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        await asyncio.sleep(quiet_s)
        arrivals: list[float] = []
        pings: list[tuple[float, float]] = []
        tasks = [
            asyncio.create_task(stream(session, arrivals)),
            asyncio.create_task(ping(session, pings)),
        ]
        await asyncio.sleep(quiet_s)
        asked = time.perf_counter()
        body = {
            "model": "large", "prompt": "a", "max_tokens": 64,
            "structured_outputs": {"json": RECORD},
        }  # fmt: skip
        async with session.post(f"{URL}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
            await response.read()
        answered = time.perf_counter()
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    gaps = [(at, after - at) for at, after in zip(arrivals, arrivals[1:], strict=False)]

    def longest(times: list[tuple[float, float]], after: bool) -> float:
        return 1e3 * max(took for at, took in times if (at + took > asked) == after)

    return {
        "structured request": 1e3 * (answered - asked),
        "longest between tokens, before": longest(gaps, False),
        "longest between tokens, from then on": longest(gaps, True),
        "longest /livez, before": longest(pings, False),
        "longest /livez, from then on": longest(pings, True),
    }


def main() -> None:
    """Serve, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the vocabulary")
    parser.add_argument("--quiet", type=float, default=4.0, help="seconds before the request")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = large_model(options.work)
    command = [
        sys.executable, "-c", "from octavo.tools.cli import main; main()", "serve", str(folder), "--served-model-name", "large", "--load-format", "dummy",
        "--port", str(PORT), "--max-model-len", "1536",
    ]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        found = asyncio.run(measure(options.quiet))
    finally:
        server.terminate()
        server.wait()
    for name, milliseconds in found.items():
        print(f"{name}: {milliseconds:.0f} ms")
    if options.json is not None:
        record = {"environment": environment(), "milliseconds": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
