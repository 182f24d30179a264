"""The machine's cores and memory nodes: how many threads can run at once, where pages go, and when they go back. The only
reader of both.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from octavo.core.resolve import Decision
from octavo.engine import cgroup

NODES = Path("/sys/devices/system/node")
SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""Number of the system call by machine."""
MPOL_INTERLEAVE = 3

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
LOAD_THRESHOLD = 1 << 20
STEP_THRESHOLD = 32 << 20
"""The most that glibc takes, and what its own rule comes to once anything so large was freed."""

SetPolicy = Callable[[Sequence[int]], int]
"""Interleaves new pages over nodes; returns 0 or an errno."""


def usable_cores(root: Path = cgroup.ROOT, own: Path = cgroup.OWN) -> int:
    """Cores that this process may keep busy: those of its affinity, or fewer where one of its cgroups has a quota.

    A container with `--cpus 4` on a large host sees all cores; with a thread on each it would be stopped for most of
    every scheduling period.
    """
    return max(
        1,
        min(
            [
                len(os.sched_getaffinity(0)),
                *_quotas(cgroup.folders(root, controller="cpu", own=own)),
            ]
        ),
    )


def _quotas(folders: list[Path]) -> list[int]:
    """Cores that the quotas (v2 or v1) of these cgroups are worth, rounded up; [] without one."""
    found = []
    for folder in folders:
        for name, period_name in (("cpu.max", None), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            path = folder / name
            if not path.is_file():
                continue
            words = path.read_text().split()
            if period_name is not None:
                words += (folder / period_name).read_text().split()
            if words[0] not in ("max", "-1"):
                found.append(math.ceil(int(words[0]) / int(words[1])))
    return found


def memory_nodes(cores: set[int], nodes: Path = NODES) -> tuple[int, ...]:
    """Ids of the nodes that hold memory and any of these cores."""
    found = []
    for folder in nodes.glob("node[0-9]*"):
        has_memory = "MemTotal:" in (folder / "meminfo").read_text()
        if has_memory and cores & parse_list((folder / "cpulist").read_text()):
            found.append(int(folder.name.removeprefix("node")))
    return tuple(sorted(found))


def parse_list(text: str) -> set[int]:
    """Sets of numbers as Linux writes them: "0-3,8"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def spread_memory(nodes: tuple[int, ...], set_policy: SetPolicy | None = None) -> Decision | None:
    """Interleave the pages of this thread, and of threads it starts from now on, over several nodes.

    Threads take the next piece of work as they become free, so none has weights of its own that could lie beside it:
    spread evenly, all memory controllers serve all threads. With one node, None: nothing to decide.
    """
    if len(nodes) < 2:
        return None
    named = ", ".join(map(str, nodes))
    error = (set_policy or interleave)(nodes)
    if error:
        return Decision(
            "memory nodes",
            "first touch",
            f"cores lie on nodes {named}, but interleaving was refused ({os.strerror(error)}); "
            f"start under numactl --interleave={','.join(map(str, nodes))}",
        )
    return Decision("memory nodes", f"interleaved over {named}", "cores lie on all of them")


def interleave(nodes: Sequence[int]) -> int:
    """set_mempolicy(2) of the calling thread; 0 or an errno."""
    number = SET_MEMPOLICY.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    words = max(nodes) // bits + 1
    mask = (ctypes.c_ulong * words)()
    for node in nodes:
        mask[node // bits] |= 1 << node % bits
    libc = ctypes.CDLL(None, use_errno=True)
    # The kernel takes one bit less than it is told.
    failed = libc.syscall(
        ctypes.c_long(number), MPOL_INTERLEAVE, mask, ctypes.c_ulong(words * bits + 1)
    )
    return ctypes.get_errno() if failed else 0


def free_large_at_once() -> None:
    """From now on allocations of 1 MiB and more are mapped apart, and go back to the system when they are freed.

    While weights are loaded and packed, originals and packed forms of a few MiB are allocated and freed in turn; on the heap
    they leave holes that no later weight fits in, which cost a 0.6B model 430 MiB beside weights of 1,137 MiB (measured
    2026-11-21, glibc 2.36). `keep_freed` ends it. Nothing happens where the C library is another.
    """
    _mallopt({M_MMAP_THRESHOLD: LOAD_THRESHOLD})


def keep_freed() -> None:
    """From now on what is freed is kept for what comes next, as steps want it: the same sizes again and again."""
    _mallopt({M_MMAP_THRESHOLD: STEP_THRESHOLD, M_TRIM_THRESHOLD: 2 * STEP_THRESHOLD})


def _mallopt(settings: dict[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in settings.items():
            libc.mallopt(option, value)
