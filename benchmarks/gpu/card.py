"""The card under a benchmark: what it is, how fast it can be at most, and how long something takes on it."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

GIB = 1 << 30
FLUSH_BYTES = 256 << 20
"""More than any L2: written before each run, so that nothing is found there, and the host is ahead of the device."""


class Timing(NamedTuple):
    """Of one run among several."""

    median_s: float
    least_s: float
    most_s: float


class Card:
    """Times work on the CUDA device; or, dry, runs it once on the CPU and keeps no time."""

    def __init__(self, *, is_dry: bool, rounds: int) -> None:
        self.device = torch.device("cpu" if is_dry else "cuda")
        self.is_dry = is_dry
        self._rounds = rounds
        self._flush = torch.empty(
            16 if is_dry else FLUSH_BYTES, dtype=torch.int8, device=self.device
        )

    def time(self, run: Callable[[], Any]) -> Timing | None:
        """Device seconds of `run`, by events around it; None when dry."""
        run()
        if self.is_dry:
            return None
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        pairs = []
        for _ in range(self._rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        seconds = [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
        return Timing(statistics.median(seconds), min(seconds), max(seconds))

    def host_seconds(self, run: Callable[[], Any]) -> float | None:
        """Least host seconds of `run`, which does not wait for the device; None when dry."""
        run()
        if self.is_dry:
            return None
        found = []
        for _ in range(self._rounds):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            run()
            found.append(time.perf_counter() - begun)
        return min(found)

    def ceilings(self) -> dict[str, float | None]:
        """Bytes per second of a copy and of a plain sum, and operations per second of a large bfloat16 product."""
        num_bytes, side = (1 << 10, 16) if self.is_dry else (2 * GIB, 8192)
        copying, summing = self._time_memory(num_bytes)
        a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in "ab")
        multiplying = self.time(lambda: a @ b)
        if copying is None or summing is None or multiplying is None:
            return dict.fromkeys(("copy_bytes_per_s", "read_bytes_per_s", "bf16_flop_per_s"))
        return {
            "copy_bytes_per_s": 2 * num_bytes / copying.median_s,
            "read_bytes_per_s": num_bytes / summing.median_s,
            "bf16_flop_per_s": 2 * side**3 / multiplying.median_s,
        }

    def _time_memory(self, num_bytes: int) -> tuple[Timing | None, Timing | None]:
        """Of a copy and of a sum; the memory is free again behind it."""
        source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        copying = self.time(lambda: target.copy_(source))
        return copying, self.time(lambda: source.view(torch.float32).sum())

    def describe(self) -> dict[str, Any]:
        """Name, memory, multiprocessors, driver, clocks and versions."""
        if self.is_dry:
            return {"name": "none: interpreted on a CPU, no figure here is a speed"}
        has = torch.cuda.get_device_properties(0)
        return {
            "name": has.name,
            "memory_bytes": has.total_memory,
            "multiprocessors": has.multi_processor_count,
            "compute_capability": f"{has.major}.{has.minor}",
            "cuda": torch.version.cuda,
            "smi": _smi(
                "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,mig.mode.current"
            ),
        }


def _smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return f"nvidia-smi: {error}"
    return f"{fields}: {done.stdout.strip()}"
