"""Cores and memory nodes, from folders written as Linux writes them. Interleaving was never run on two real nodes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from octavo.core import resolve
from octavo.engine import machine


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_quota_bounds_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.usable_cores(write(tmp_path, files)) == cores


def test_a_quota_of_the_own_cgroup_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `systemd-run -p CPUQuota=300%`, where the root has no quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    said = write(tmp_path, {"own": "0::/system.slice/octavo.service\n"}) / "own"
    write(tmp_path, {"system.slice/octavo.service/cpu.max": "300000 100000\n"})
    assert machine.usable_cores(tmp_path, said) == 3
    write(tmp_path, {"system.slice/cpu.max": "200000 100000\n"})
    assert machine.usable_cores(tmp_path, said) == 2, "the narrowest of those above counts"


def two_nodes(root: Path) -> Path:
    return write(
        root,
        {
            "node0/cpulist": "0-3,8-11\n",
            "node0/meminfo": "Node 0 MemTotal: 1024 kB\n",
            "node1/cpulist": "4-7,12-15\n",
            "node1/meminfo": "Node 1 MemTotal: 1024 kB\n",
            "node2/cpulist": "\n",
            "node2/meminfo": "Node 2 MemTotal: 4096 kB\n",
            "possible": "0-2\n",
        },
    )


@pytest.mark.parametrize(
    ("cores", "nodes"),
    [({0, 1, 9}, (0,)), ({3, 4}, (0, 1)), ({12}, (1,)), (set(range(16)), (0, 1)), ({99}, ())],
)
def test_nodes_of_the_cores(tmp_path: Path, cores: set[int], nodes: tuple[int, ...]) -> None:
    assert machine.memory_nodes(cores, two_nodes(tmp_path)) == nodes


def test_nodes_of_this_machine() -> None:
    if not machine.NODES.is_dir():
        pytest.skip("this system shows no memory nodes")
    assert machine.memory_nodes(os.sched_getaffinity(0))


def test_one_node_is_nothing_to_decide() -> None:
    assert machine.spread_memory((0,), lambda nodes: pytest.fail("asked")) is None
    assert machine.spread_memory((), lambda nodes: pytest.fail("asked")) is None


def test_pages_are_spread_over_several_nodes() -> None:
    asked = []
    decision = machine.spread_memory((0, 1), lambda nodes: asked.append(tuple(nodes)) or 0)
    assert asked == [(0, 1)]
    assert decision is not None and decision.value == "interleaved over 0, 1"


def test_a_refusal_says_what_to_do() -> None:
    decision = machine.spread_memory((0, 1), lambda nodes: errno.EPERM)
    assert decision is not None and decision.value == "first touch"
    assert "numactl --interleave=0,1" in decision.reason
    assert os.strerror(errno.EPERM) in decision.reason


def test_the_system_call_is_the_right_one() -> None:
    """On the node there is; the policy is the thread's own, and the thread ends."""
    if not (machine.NODES / "node0").is_dir():
        pytest.skip("this system has no memory node 0")
    found = []
    numa_maps = Path("/proc/thread-self/numa_maps")

    def ask() -> None:
        found.append(machine.interleave((0,)))
        found.append(numa_maps.read_text() if numa_maps.exists() else "interleave:0")

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if found[0] in (errno.EPERM, errno.ENOSYS):
        pytest.skip(f"set_mempolicy is refused here: {os.strerror(found[0])}")
    assert found[0] == 0
    assert "interleave:0" in found[1]


@pytest.mark.parametrize(
    ("asked", "usable", "threads", "words"),
    [
        (None, 4, 4, "the cores there are"),
        (2, 4, 2, "as given"),
        (4, 4, 4, "as given"),
        (64, 4, 4, "--threads 64 is more than the 4 cores"),
    ],
)
def test_threads(asked: int | None, usable: int, threads: int, words: str) -> None:
    value, decision = resolve.cpu_threads(asked, usable)
    assert (value, decision.value) == (threads, str(threads))
    assert words in decision.reason


def test_what_is_freed_while_loading_goes_back_to_the_system() -> None:
    """Originals and packed forms in turn, as a loader makes them; in a process of its own, whose heap is new."""
    script = """
import numpy as np, sys
from octavo.engine import machine

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def load():
    packed = []
    for _ in range(24):
        original = np.ones(6 << 20, np.uint8)
        packed.append(np.ones(2 << 20, np.uint8))
        del original
    return packed

del_first = np.ones(32 << 20, np.uint8)  # from here on glibc's own rule keeps what is below 32 MiB on the heap
del del_first
before = resident()
if sys.argv[1] == "on":
    machine.free_large_at_once()
kept = load()
machine.keep_freed()
print(resident() - before)
"""
    grown = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", script, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("on", "off")
    }
    assert 48 << 20 <= grown["on"] < 50 << 20, grown
    assert grown["off"] > grown["on"] + (4 << 20), grown
