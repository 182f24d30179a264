"""The memory that an engine's process and its parent both map: what `pulse.py` writes and the parent reads. Loads nothing."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import NamedTuple

BEAT, MOVED, ALLOWED, STEPS, FIELDS = range(5)
"""Which double is what; the last is how many there are."""
_PAGE_BYTES = 8 * FIELDS


class Reading(NamedTuple):
    """What the page says now."""

    beat_age_s: float
    """Since the last sign of life."""
    step_age_s: float
    """Since the loop last got on; 0 while it has nothing to do."""
    allowed_s: float
    """What that may come to before the loop is said to hang."""
    num_steps: int
    """Steps done, in the life of the process."""


class Page:
    """The memory itself: five doubles that two processes map. Owner: the client; its engine writes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _PAGE_BYTES)
        self.fields = memoryview(self._map).cast("d")

    @classmethod
    def create(cls) -> Page:
        """A fresh one; `fd` is what a child process is to inherit.

        Memory and no file on disk: a page of a file is locked while it is written back, and would stop the engine as
        long as a disk is slow.
        """
        if sys.platform == "linux":
            fd = os.memfd_create("octavo-pulse")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _PAGE_BYTES)
        return cls(fd)

    def read(self, now: float) -> Reading:
        """What it says, `now` being `time.monotonic()`."""
        fields = self.fields
        # The writer sets the limit last: read first, it is never that of a later moment than the one below.
        allowed = fields[ALLOWED]
        moved = fields[MOVED]
        return Reading(
            beat_age_s=max(0.0, now - fields[BEAT]),
            step_age_s=max(0.0, now - moved) if moved else 0.0,
            allowed_s=allowed,
            num_steps=int(fields[STEPS]),
        )

    def close(self) -> None:
        """Give the memory back, once."""
        if self._map.closed:
            return  # by then the number may be another file's
        self.fields.release()
        self._map.close()
        os.close(self.fd)
