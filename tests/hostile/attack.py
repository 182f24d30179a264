"""Fires hostile requests at a real server while golden streams run, and says what came of it.

PYTHONPATH=tests python -m hostile.attack --fuzzed 20000 --raw 5000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from hostile.advisories import advisories
from hostile.fuzz import fuzzed, plausible
from hostile.golden import Golden
from hostile.raw_http import raw_shots
from hostile.server import Served
from hostile.shots import RawShot, Shot

_PATIENCE_S = 20.0
"""Longest a hostile caller waits; then it leaves, which is one more thing that must do no harm."""
_WORKERS = 6


@dataclass
class Report:
    """What an attack came to."""

    requests: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    gave_up: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers that should not have been: errors of the server's, or an acceptance of what has to be refused."""
    golden_streams: int = 0
    differences: list[str] = field(default_factory=list)
    worst_stall_s: float = 0.0
    exits: int = 0
    """Processes of the server that are not the ones it had."""
    leaked_blocks: int = 0
    grown_mib: float = 0.0
    """Resident memory of the server and its engine, from a quarter of the way on."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing happened."""
        return not (self.wrong or self.differences or self.exits or self.leaked_blocks)

    def table(self) -> str:
        """One line per figure."""
        rows = {
            "requests": self.requests,
            "statuses": json.dumps({str(k): v for k, v in sorted(self.statuses.items())}),
            "left before an answer": self.gave_up,
            "wrong answers": len(self.wrong),
            "golden streams": self.golden_streams,
            "golden differences": len(self.differences),
            "worst stall of a stream, s": round(self.worst_stall_s, 3),
            "process exits": self.exits,
            "leaked blocks": self.leaked_blocks,
            "memory growth, MiB": round(self.grown_mib, 1),
        }
        return "\n".join(f"{name:28} {value}" for name, value in rows.items())


async def attack(served: Served, shots: Sequence[Shot | RawShot], num_golden: int = 32) -> Report:
    """Fire all shots while golden streams run; then look at what is left."""
    report = Report()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as client:
        golden = Golden(client, num_golden)
        await golden.record()
        pids = served.pids()
        is_over = asyncio.Event()
        asking = asyncio.create_task(golden.keep_asking(is_over))
        quarter = len(shots) // 4
        await fire(served, client, shots[:quarter], report)
        before = served.resident_bytes()
        await fire(served, client, shots[quarter:], report)
        is_over.set()
        await asking
        report.golden_streams = golden.num_streams
        report.differences = golden.differences
        report.worst_stall_s = golden.worst_gap_s
        report.leaked_blocks = await leaked(client)
        report.grown_mib = (served.resident_bytes() - before) / (1 << 20)
        report.exits = len(pids ^ served.pids())
    return report


async def fire(
    served: Served, client: httpx.AsyncClient, shots: Sequence[Shot | RawShot], report: Report
) -> None:
    """Send all of them, a few at a time, and note what came back."""
    queue = iter(shots)

    async def work() -> None:
        for one in queue:
            report.requests += 1
            if isinstance(one, RawShot):
                await _send_raw(served.port, one)
            else:
                await _send(client, one, report)

    await asyncio.gather(*[work() for _ in range(_WORKERS)])


async def _send(client: httpx.AsyncClient, one: Shot, report: Report) -> None:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            answer = await client.request(
                one.method, one.path, content=one.body, headers=one.headers
            )
    except TimeoutError:
        report.gave_up += 1
        return
    except httpx.InvalidURL:
        return  # the client's own refusal
    except httpx.HTTPError as error:
        report.wrong.append(f"{one.name}: {one.path}: {type(error).__name__} {error}")
        return
    status = answer.status_code
    report.statuses[status] = report.statuses.get(status, 0) + 1
    # 504: a deadline in the body, which has passed.
    right = status in one.statuses if one.statuses is not None else status < 500 or status == 504
    if not right:
        shown = one.body[:300]
        report.wrong.append(f"{one.name}: {one.path} {shown!r}: {status} {answer.text[:300]}")


async def _send_raw(port: int, one: RawShot) -> None:
    """Whatever comes back is right, as long as something does or the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError):
        for part in one.parts:
            writer.write(part)
            await writer.drain()
        if one.half_close:
            writer.write_eof()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1 << 16), _PATIENCE_S)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def leaked(client: httpx.AsyncClient) -> int:
    """KV blocks still held once nothing runs, per mille of the pool; waits for what the callers left behind."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        text = (await client.get("/metrics")).text
        busy = [_gauge(text, f"vllm:num_requests_{state}") for state in ("running", "waiting")]
        if not any(busy):
            return round(1000 * _gauge(text, "vllm:kv_cache_usage_perc"))
        await asyncio.sleep(0.05)
    return 1000


def _gauge(text: str, name: str) -> float:
    return sum(map(float, re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.M)))


def all_shots(num_fuzzed: int, num_raw: int, seed: int) -> list[Shot | RawShot]:
    """Every advisory, `num_fuzzed` bodies that are wrong, half as many that may be right, in an order of the seed."""
    shots: list[Shot | RawShot] = [*advisories(), *fuzzed(num_fuzzed, seed)]
    shots += plausible(num_fuzzed // 2, seed)
    shots += raw_shots(num_raw, seed)
    random.Random(seed).shuffle(shots)
    return shots


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fuzzed", type=int, default=20_000)
    parser.add_argument("--raw", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with Served.start() as served:
        report = asyncio.run(attack(served, all_shots(args.fuzzed, args.raw, args.seed)))
    print(report.table())
    for line in (*report.wrong[:20], *report.differences[:5]):
        print(line)
    if args.out is not None:
        args.out.write_text(report.table() + "\n")
    return int(not report.is_clean)


if __name__ == "__main__":
    raise SystemExit(main())
