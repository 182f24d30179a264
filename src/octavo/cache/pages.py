"""Pages of memory for KV blocks, found before they are written. No torch.

A pool costs next to no memory until it is used, so whoever writes a block first waits for its page: the system has to find and
clear it, 0.1 to 0.2 ms for a large page of 2 MiB, several times that on a virtual machine whose host has to find it, too
(4 ms measured). With large pages all layers reach the next one with the same block: tens of them in one step, which is what
the slowest steps of a young pool were (45 of 60 ms). So a thread finds them a little ahead of the highest block handed out,
and no two layers at the same time. Blocks are handed out in ascending order at first (`blocks.py`), so that is who comes next.
The first blocks are found at the start and while there is nothing else to do: the first burst of requests needs them at
once, and the thread that finds them would take a core from what computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

from octavo.core.log import get_logger

logger = get_logger(__name__)

LARGE_PAGE = 2 << 20
MADV_POPULATE_WRITE = 23
"""Linux 5.14, madvise(2): find the pages and make them writable; contents stay."""

_PIECE_S = 0.002

Find = Callable[[int, int], int]
"""(address, bytes) -> 0 or an errno."""


@dataclass(slots=True)
class Region:
    """One tensor of a pool: `block_bytes` for each block from `address` on."""

    address: int
    num_bytes: int
    block_bytes: int
    done: int = 0
    """Address up to which pages were found."""


class PagesAhead:
    """The regions of one KV group. Owner: the pool; `reach` is called by the engine's loop.

    `keep` is what the regions are part of: it stays in memory while a thread is at work, which is only as long as something
    is to be found.
    """

    def __init__(self, regions: Iterable[Region], keep: object, find: Find | None = None) -> None:
        self._regions = list(regions)
        self._keep = keep
        self._find = find or _populate
        self._lock = threading.Lock()
        self._highest = 0
        self._enough_to = 0
        """Up to this block nothing has to be found, so that the regions, two of each layer, need not be looked at."""
        self._thread: threading.Thread | None = None
        self._is_over = not self._regions
        for region in self._regions:
            region.done = region.address

    def reach(self, block: int) -> None:
        """Blocks up to this one are handed out."""
        if self._is_over or block <= self._highest:
            return
        if block <= self._enough_to:
            self._highest = block
            return
        with self._lock:
            self._highest = block
            if self._thread is None and self._next(block) is not None:
                self._begin()

    def find_one(self, block: int) -> bool:
        """Find one piece of what blocks up to this one want, here and now; whether there may be more. The loop's thread.

        What the other thread is at comes first; that is waited for, no longer than a piece takes.
        """
        thread = self._thread
        if thread is not None:
            thread.join(_PIECE_S)
            return True
        with self._lock:
            piece = self._next(block)
            if piece is None:
                return False
            self._take(*piece)
            return not self._is_over

    def wait(self) -> None:
        """Until what has been asked for is there: for tests and measurements."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="pages", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no room for one: whoever writes a page waits for it
            logger.info("pages are found as they are written: %s", error)
            self._thread, self._is_over = None, True

    def _run(self) -> None:
        while True:
            with self._lock:
                piece = self._next(self._highest)
                if piece is None:
                    self._thread = None
                    break
            self._take(*piece)

    def _take(self, region: Region, size: int) -> None:
        error = self._find(region.done, size)
        if error:
            logger.info("pages are found as they are written: %s", os.strerror(error))
            self._is_over = True
        region.done += size

    def _next(self, highest: int) -> tuple[Region, int] | None:
        """What to find next for blocks up to `highest`: of the region that is furthest behind, to the end of a large page."""
        if self._is_over:
            return None
        behind, count = 0, len(self._regions)
        chosen: Region | None = None
        for at, region in enumerate(self._regions):
            used = (highest + 1) * region.block_bytes
            wanted = region.address + min(region.num_bytes, used + self._ahead(at))
            if wanted - region.done > behind:
                behind, chosen = wanted - region.done, region
        if chosen is None:
            self._is_over = all(r.done >= r.address + r.num_bytes for r in self._regions)
            self._enough_to = min(map(self._last_found, range(count)), default=0)
            return None
        end = min((chosen.done // LARGE_PAGE + 1) * LARGE_PAGE, chosen.address + chosen.num_bytes)
        return chosen, end - chosen.done

    def _ahead(self, at: int) -> int:
        return LARGE_PAGE // 2 + LARGE_PAGE * at // len(self._regions)

    def _last_found(self, at: int) -> int:
        """The highest block up to which a region has what it wants."""
        region = self._regions[at]
        found = region.done - region.address
        if found >= region.num_bytes:
            return 1 << 62
        return (found - self._ahead(at)) // region.block_bytes - 1


def _populate(address: int, num_bytes: int) -> int:
    """madvise on the whole pages around; 0 or an errno."""
    page = os.sysconf("SC_PAGE_SIZE")
    start = address // page * page
    failed = _madvise()(start, address + num_bytes - start, MADV_POPULATE_WRITE)
    return ctypes.get_errno() if failed else 0


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    call = ctypes.CDLL(None, use_errno=True).madvise  # calls let go of the interpreter's lock
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast("Callable[[int, int, int], int]", call)
