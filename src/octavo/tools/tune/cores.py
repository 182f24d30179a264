"""How much of this machine's cores others used meanwhile: what a measurement on shared cores cannot tell by itself.

All that was not idle, less what this process and its children used. Linux only; elsewhere nothing is said.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

_STAT = Path("/proc/stat")
_BUSY = (0, 1, 2, 5, 6, 7)
"""user, nice, system, irq, softirq and steal: what another guest took is as gone."""


class Watched:
    """What was seen; whole once the context is left."""

    others: float | None = None
    """Cores that others used on average; None: not known here."""


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Children that ended within count as this process's own, and must have begun within."""
    seen = Watched()
    busy, own, began = _busy_s(), _own_s(), time.monotonic()
    yield seen
    end = _busy_s()
    if busy is not None and end is not None:
        wall = max(1e-3, time.monotonic() - began)
        seen.others = max(0.0, (end - busy) - (_own_s() - own)) / wall


def _busy_s() -> float | None:
    try:
        words = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        return sum(int(words[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
