"""The card under a benchmark: what it is, what it can do at most, and how long something takes on it. The one way to time.

Device times are of calls in one CUDA graph, so that no Python stands between them; what a graph cannot hold is queued behind
a long write instead, so that the host is ahead. Without a card (`is_dry`) everything runs once, on CPU tensors of tiny sizes:
that shows that a benchmark works, and its times mean nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

if "--interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch

from octavo.engine.device import probe
from octavo.tools.bench.environment import environment

GIB = 1 << 30
FLUSH_BYTES = 256 << 20
"""More than any L2."""


class Timing(NamedTuple):
    """Of one call among several."""

    median_s: float
    least_s: float
    most_s: float


class Card:
    """Times work on the CUDA device; or, dry, runs it once on the CPU."""

    def __init__(self, *, is_dry: bool, rounds: int = 20) -> None:
        if not is_dry:
            _, wrong = probe()
            if wrong is not None:
                sys.exit(f"{wrong.code}: {wrong.message} {wrong.fix}")
        self.device = torch.device("cpu" if is_dry else "cuda")
        self.is_dry = is_dry
        self._rounds = rounds
        self._flush = torch.empty(
            16 if is_dry else FLUSH_BYTES, dtype=torch.int8, device=self.device
        )

    def synchronize(self) -> None:
        """Wait for all that the device was told."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def time(
        self, calls: Callable[[], Any] | Sequence[Callable[[], Any]], rounds: int | None = None
    ) -> Timing:
        """Device seconds of one call. Give as many, on different tensors, as the caches cannot hold, where a cold read is
        meant; one call alone is timed behind a write that flushes them.
        """
        each = [calls] if callable(calls) else list(calls)
        if self.is_dry:
            begun = time.perf_counter()
            each[0]()
            took = time.perf_counter() - begun
            return Timing(took, took, took)
        for call in each * 3:  # compiles
            call()
        torch.cuda.synchronize()
        replay = _captured(each)
        found = []
        for _ in range(rounds or self._rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            begin.record()
            replay()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3 / len(each))
        return Timing(statistics.median(found), min(found), max(found))

    def host_seconds(self, run: Callable[[], Any]) -> float:
        """Least host seconds of `run`, which does not wait for the device."""
        found = []
        for _ in range(1 if self.is_dry else self._rounds):
            self.synchronize()
            begun = time.perf_counter()
            run()
            found.append(time.perf_counter() - begun)
        return min(found)

    def ceilings(self) -> dict[str, float]:
        """Bytes per second of a copy (read plus written) and of a sum, and operations per second of a large product."""
        num_bytes, side = (1 << 16, 32) if self.is_dry else (2 * GIB, 8192)
        copying, summing = self._time_memory(num_bytes)
        a, b = (torch.randn(side, side, device=self.device).bfloat16() for _ in "ab")
        multiplying = self.time(lambda: a @ b)
        return {
            "copy_bytes_per_s": 2 * num_bytes / copying.median_s,
            "read_bytes_per_s": num_bytes / summing.median_s,
            "bf16_flop_per_s": 2 * side**3 / multiplying.median_s,
        }

    def _time_memory(self, num_bytes: int) -> tuple[Timing, Timing]:
        """Of a copy and of a sum; the memory is free again behind it."""
        source = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        copying = self.time(lambda: target.copy_(source))
        return copying, self.time(lambda: source.view(torch.float32).sum())

    def describe(self) -> dict[str, Any]:
        """Hardware, driver, clocks and versions."""
        return {"is_dry": self.is_dry, "environment": environment(), "versions": versions()} | (
            {"name": "none: on a CPU, no figure here is a speed"} if self.is_dry else _facts()
        )


def _captured(calls: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()

        def queued() -> None:
            for call in calls:
                call()

        return queued
    return graph.replay


def versions() -> dict[str, str]:
    """Of what computes, and of peers that are installed."""
    found = {}
    for name in ("torch", "triton", "transformers", "vllm", "flashinfer-python", "flash-attn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _facts() -> dict[str, Any]:
    has = torch.cuda.get_device_properties(0)
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        told = f"{fields}: {done.stdout.strip()}"
    except OSError as error:
        told = f"nvidia-smi: {error}"
    return {
        "name": has.name,
        "memory_bytes": has.total_memory,
        "multiprocessors": has.multi_processor_count,
        "compute_capability": f"{has.major}.{has.minor}",
        "cuda": torch.version.cuda,
        "smi": told,
    }
