"""How much memory a CPU's engine could use now, and what to say when it got less. The only reader of it."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

from octavo.core.errors import MemoryPlanError
from octavo.engine import cgroup

MEMINFO = Path("/proc/meminfo")
_FILES = (
    ("memory.max", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Of cgroups, version 2 and 1: the limit, what is used of it, and how names in memory.stat begin."""


def available_bytes() -> int:
    """The smaller of MemAvailable and what the limits of this process's cgroups leave.

    Raises:
        MemoryPlanError: the system does not say.
    """
    return min([_mem_available(MEMINFO), *cgroups_left(cgroup.folders(controller="memory"))])


def _mem_available(meminfo: Path) -> int:
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise MemoryPlanError(f"{meminfo} has no MemAvailable line.", code="E-MEM-02")


def cgroups_left(folders: list[Path]) -> list[int]:
    """What each of these cgroups still allows; [] without a limit."""
    left = []
    for folder in folders:
        for limit_name, used_name, prefix in _FILES:
            limit_file, used_file = folder / limit_name, folder / used_name
            if limit_file.is_file() and used_file.is_file():
                limit = limit_file.read_text().strip()
                if limit != "max":
                    used = int(used_file.read_text())
                    used -= _file_cache(folder / "memory.stat", prefix)
                    left.append(max(0, int(limit) - max(0, used)))
    return left


def _file_cache(stat: Path, prefix: str) -> int:
    """Bytes of cached files that count as used and are given up under pressure, as MemAvailable has it.

    Without this a container that has just copied or read its weights would seem full.
    """
    if not stat.is_file():
        return 0
    sizes = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(sizes.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


_SAYINGS = ("can't allocate memory", "not enough memory", "failed to map segment")
"""Of torch's allocator, and of the dynamic linker, in errors of no type of their own."""


def refused(error: Exception) -> MemoryPlanError | None:
    """What to tell an operator of an error that means that the system gave no memory; None of any other.

    The plan knows what is free and what cgroups allow, not a limit on addresses (`ulimit -v`), which libraries count against
    that are never resident, nor a system that does not overcommit.
    """
    says_so = isinstance(error, RuntimeError | ImportError) and any(
        words in str(error) for words in _SAYINGS
    )
    is_os = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if not (isinstance(error, MemoryError) or is_os or says_so):
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    is_limited = most != resource.RLIM_INFINITY
    limit = (
        f" Its addresses are limited to {most / 2**30:.2f} GiB (ulimit -v)." if is_limited else ""
    )
    raising = "Raise that limit, or ask" if is_limited else "Ask"
    return MemoryPlanError(
        f"the system refused the engine memory while it started: {str(error).rstrip('.') or type(error).__name__}.{limit}",
        code="E-MEM-06",
        fix=f"{raising} for less: --kv-cache-memory-bytes, --max-num-batched-tokens, or a smaller model.",
    )
