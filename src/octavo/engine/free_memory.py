"""How much memory a CPU's engine could use now. The only reader of it."""

from __future__ import annotations

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
