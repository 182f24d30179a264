"""A million different schemas: memory and disk stay where they are.

    python benchmarks/grammar_caches.py --schemas 1000000 --built 5000

The first half of each kind fills what there is to fill; then resident memory is read ten times. `front end` keeps what a
compile answered, without the compile; `engine` builds each grammar with the real backend. Exits 1 if memory grows by more
than 16 MiB over the second half, or anything is written to disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from grammar_corpus import Instant, vocabulary
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.llguidance import Backend

MOST_MIB = 16.0


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def front_end(count: int, readings: list[float]) -> int:
    """Bytes in the cache at the end."""
    compiler = Instant(vocabulary)

    async def run() -> None:
        for number in range(count):
            await compiler.compile(StructuredOutputs(json=json.dumps({"const": f"no {number}"})))
            await asyncio.sleep(
                0
            )  # as a compile that takes time does: what is done at its end is done now
            note(number, count, readings)

    asyncio.run(run())
    return compiler._cache.num_bytes


def engine(count: int, readings: list[float]) -> int:
    """Bytes in the cache at the end, its bound a tenth of what these would take."""
    backend = Backend(vocabulary())
    backend._cache.max_bytes = 1 << 22
    for number in range(count):
        backend.build(backend.compile(StructuredOutputs(regex=f"a{number}[b-z]{{3}}")))
        note(number, count, readings)
    return backend._cache.num_bytes


def note(number: int, count: int, readings: list[float]) -> None:
    """Read memory ten times in the second half."""
    half = count // 2
    if number >= half and (number - half) % max(1, half // 10) == 0:
        readings.append(resident_mib())


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--schemas", type=int, default=1_000_000)
    parser.add_argument("--built", type=int, default=5_000)
    args = parser.parse_args()
    is_good = True
    print("| what | schemas | seconds | cache, MiB | resident, MiB: half way, end, most | files |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = folder
        for name, run, count in (
            ("front end", front_end, args.schemas),
            ("engine", engine, args.built),
        ):
            begun, readings = time.monotonic(), list[float]()
            num_bytes = run(count, readings)
            num_files = sum(1 for path in Path(folder).rglob("*") if path.is_file())
            is_good = is_good and not num_files and max(readings) - readings[0] <= MOST_MIB
            print(
                f"| {name} | {count:,} | {time.monotonic() - begun:.0f} | {num_bytes / (1 << 20):.1f} "
                f"| {readings[0]:.1f}, {readings[-1]:.1f}, {max(readings):.1f} | {num_files} |",
                flush=True,
            )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
