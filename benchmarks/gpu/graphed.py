"""What the GPU benchmarks share: what card this is, what it can do, and how long something takes on it.

Ceilings are measured in the run that quotes them. Where Triton is interpreted (`--interpret`) everything runs on CPU tensors
of small sizes: it shows that a benchmark works, and its times mean nothing.
"""

from __future__ import annotations

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

from octavo.kernels.triton import support
from octavo.tools.bench.environment import environment

IS_INTERPRETED = "--interpret" in sys.argv
DEVICE = "cpu" if IS_INTERPRETED else "cuda"


class Ceilings(NamedTuple):
    """Of this card, now."""

    read_gb_s: float
    """Reading memory: a sum over 1 GiB."""
    copy_gb_s: float
    """Reading and writing: a copy of 1 GiB, both counted."""
    bf16_tflop_s: float
    """A product of square matrices by cuBLAS."""


def check() -> None:
    """Exit with the reason where the kernels cannot run."""
    reason = support.refusal(DEVICE, "bfloat16")
    if reason is not None:
        sys.exit(f"{reason}. --interpret shows that this benchmark runs, without a card.")


def facts() -> dict[str, Any]:
    """Hardware, driver and versions."""
    found: dict[str, Any] = {**environment(), "is_interpreted": IS_INTERPRETED}
    if IS_INTERPRETED:
        return found
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit"]
    told = subprocess.run(
        [*query, "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return found | {
        "gpu": card.name,
        "gpu_memory_bytes": card.total_memory,
        "gpu_units": card.multi_processor_count,
        "gpu_capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "driver_clock_max_power": told.stdout.strip() or "unknown",
    }


def ceilings() -> Ceilings:
    """Measured now."""
    size, side = (1 << 16, 64) if IS_INTERPRETED else (1 << 29, 8192)
    source = torch.ones(size, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    left, right = (torch.randn(side, side, device=DEVICE).bfloat16() for _ in range(2))
    read_s = seconds([lambda: source.view(torch.int32).sum()])
    copy_s = seconds([lambda: target.copy_(source)])
    product_s = seconds([lambda: torch.mm(left, right)])
    num_bytes = 2 * size
    return Ceilings(
        num_bytes / read_s / 1e9, 2 * num_bytes / copy_s / 1e9, 2 * side**3 / product_s / 1e12
    )


def seconds(calls: Sequence[Callable[[], Any]], rounds: int = 20) -> float:
    """Median seconds of one call: all calls as one CUDA graph, so that no Python stands between them.

    Give as many calls, on different tensors, as the caches cannot hold, where a cold read is meant.
    """
    if IS_INTERPRETED:
        started = time.perf_counter()
        calls[0]()
        return time.perf_counter() - started
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for call in calls:  # compiles
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times[2:])
