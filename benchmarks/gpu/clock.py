"""Time on a device, and what the device could do at best: copied bytes and multiplied numbers per second, in this run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait for all that the device was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(compute: Callable[[], object], device: torch.device, *, repeats: int = 20) -> float:
    """Median seconds of one call, the host's part included, after three that do not count."""
    for _ in range(3):
        compute()
    synchronize(device)
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        compute()
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def queued_seconds(
    compute: Callable[[], object], device: torch.device, *, calls: int = 20
) -> float:
    """Median seconds per call of calls queued behind each other, so that launching them is hidden."""

    def many() -> None:
        for _ in range(calls):
            compute()

    return seconds(many, device, repeats=5) / calls


def ceilings(device: torch.device, *, small: bool) -> dict[str, float]:
    """Bytes per second of a copy, read plus written, and FLOP per second of products in bfloat16."""
    count = (1 << 22) if small else (1 << 30)
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = queued_seconds(lambda: target.copy_(source), device, calls=10)
    size = 256 if small else 8192
    a = torch.randn(size, size, device=device).to(torch.bfloat16)
    b = torch.randn(size, size, device=device).to(torch.bfloat16)
    multiplied = queued_seconds(lambda: a @ b, device, calls=10)
    return {
        "copy_bytes_per_s": 2 * count / copied,
        "bf16_flop_per_s": 2 * size**3 / multiplied,
    }
