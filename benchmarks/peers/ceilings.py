"""What this machine can do at most: bytes read per second, and multiply-adds per second.

Prints one JSON object. Run by the comparison before each round, because shared machines change.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import PackedWeight

CACHES = 8
"""Read so many times the last-level cache, so that little of it is still there."""
LEAST_BYTES = 1 << 28
SHAPES = ((256, 1024, 3072), (512, 1024, 4096), (512, 3072, 1024))
"""(rows, inputs, outputs) of products like those of a small model's prefill."""
SECONDS = 0.8
"""How long each thing is repeated; the best counts, because a ceiling is what is possible."""


def best(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """The shortest time of many calls."""
    work()
    until, least = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begun)
    return least


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where Linux does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20}[text[-1]])
    return max(sizes, default=32 << 20)


def compiled_sum() -> Callable[[int, int], int] | None:
    """`read_bandwidth.c` for this processor; None without a C compiler."""
    source = Path(__file__).with_name("read_bandwidth.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read_bandwidth.so"
        command = ["cc", "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", library]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        function = ctypes.CDLL(str(library)).sum_words
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint64
    return function


def bandwidth(threads: int) -> dict[str, float]:
    """GB/s of reading, by way."""
    size = max(LEAST_BYTES, CACHES * last_level_cache())
    values = torch.ones(size // 4)
    found = {"torch sum": size / best(values.sum) / 1e9}
    function = compiled_sum()
    if function is not None:
        share = size // threads // 4096 * 4096
        parts = [values.data_ptr() + index * share for index in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            seconds = best(lambda: list(pool.map(lambda at: function(at, share), parts)))
        found["compiled sum"] = threads * share / seconds / 1e9
    return found


def products(threads: int) -> dict[str, float]:
    """GFLOP/s of matrix products, by way; the best of the shapes."""
    found: dict[str, float] = {}
    for rows, inputs, outputs in SHAPES:
        x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs).bfloat16().float()
        flop = 2.0 * rows * inputs * outputs
        ways: dict[str, Callable[[], object]] = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, b = x.to(dtype), weight.to(dtype)
            name = f"torch {str(dtype).removeprefix('torch.')}"
            ways[name] = lambda a=a, b=b: torch.nn.functional.linear(a, b)
        if extension.missing() is None:
            packed, out = PackedWeight(weight), torch.empty(rows, outputs)
            ways["octavo"] = lambda p=packed, x=x, out=out: p.multiply(x, out, num_threads=threads)
        for name, work in ways.items():
            found[name] = max(found.get(name, 0.0), flop / best(work) / 1e9)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    with torch.inference_mode():
        print(json.dumps({"gb_per_s": bandwidth(threads), "gflop_per_s": products(threads)}))


if __name__ == "__main__":
    main()
