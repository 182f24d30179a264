"""What the driver's own command says of this machine's GPUs. No torch."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

QUERY = ("name", "memory.total", "memory.used", "driver_version", "compute_cap")
TIMEOUT_S = 20.0
_NAMES = (
    ("h100 nvl", "h100-nvl"),
    ("h100 pcie", "h100-pcie"),
    ("a100-sxm4-40gb", "a100-40gb"),
    ("a100-pcie-40gb", "a100-40gb"),
    ("rtx 4090", "rtx4090"),
    ("rtx 3090", "rtx3090"),
    ("b200", "b200"),
    ("h200", "h200"),
    ("h100", "h100"),
    ("a100", "a100"),
    ("l40s", "l40s"),
    ("l4", "l4"),
    ("a10", "a10"),
)
"""Part of the driver's name of a device -> its row in `plan/devices.py`; the first that is in it."""


class Gpu(NamedTuple):
    """One device."""

    name: str
    total_mib: int
    used_mib: int
    driver: str
    compute_capability: str


def query(command: str = "nvidia-smi") -> tuple[Gpu, ...] | str:
    """The GPUs, or why they cannot be told: no driver, or one that does not answer."""
    words = [command, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        return f"{command} is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command}: {error}"
    if done.returncode:
        told = " ".join((done.stderr or done.stdout).split())[:200]
        return f"{command} failed: {told or f'exit code {done.returncode}'}"
    return parse(done.stdout)


def parse(text: str) -> tuple[Gpu, ...] | str:
    """The lines of `nvidia-smi --query-gpu`."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(QUERY) or not (cells[1].isdigit() and cells[2].isdigit()):
            return f"a line that is not understood: {line[:120]!r}"
        name, total, used, driver, capability = cells
        found.append(Gpu(name, int(total), int(used), driver, capability))
    return tuple(found)


def row_of(name: str) -> str | None:
    """The row of `plan/devices.py` for a driver's name of a device; None where there is none."""
    words = name.lower().removeprefix("nvidia ")
    return next(
        (row for part, row in _NAMES if words.startswith(part) or f" {part}" in words), None
    )


def known_here() -> str | None:
    """The row of this machine's first GPU; None without one, or where it is not known."""
    found = query()
    return row_of(found[0].name) if not isinstance(found, str) and found else None
