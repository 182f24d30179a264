"""The step log on disk: a ring of files in a folder, at most so many bytes in all, oldest deleted first.

Each file can be read by itself: it begins with the machine and the open requests. What is written is on its way to the
file within a tenth of a second of work, and before the engine sleeps; a process that is killed loses no more. A disk that
is full ends the log and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import time
from array import array
from collections.abc import Callable, Iterator
from operator import add
from pathlib import Path
from typing import NamedTuple

from octavo.core.log import get_logger
from octavo.core.waits import REASONS
from octavo.meter.frames import VERSION, Arrived, Ended, Frame, Head, Machine, Ran, decode, encode
from octavo.meter.steplog import KeptStep, SliceRecord, StepRecord

logger = get_logger(__name__)

SUFFIX = ".steps"
_NUM_FILES = 32
"""A full ring has so many: the oldest goes at once, and who asks for a span of time reads no more than it has to."""
_LEAST_FILE_BYTES = 1 << 16
_MOST_BUFFERED = 1 << 16
_EVERY_S = 0.1
_REASON = {name: index for index, name in enumerate(REASONS)}


class StepFile:
    """Writes one run into a folder that other runs may share. Owner: the engine loop."""

    def __init__(
        self,
        folder: Path,
        most_bytes: int,
        machine: Machine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OSError when the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._most_bytes = most_bytes
        self._machine = machine
        self._clock = clock
        self.epoch = time.time() - clock()
        self._run = f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}"
        self._numbers: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        """Ended since the last step or the one before: those under way then and the next plan are to name them once more."""
        self._gone_before: dict[str, int] = {}
        """Of those, who ended before the last step."""
        self._num_requests = 0
        self._last: _Columns | None = None
        self._buffer = bytearray()
        self._written_at = clock()
        self._segment = -1
        self._file_bytes = 0
        self._fd = -1
        self._roll()

    @property
    def is_open(self) -> bool:
        """Whether anything is still written."""
        return self._fd >= 0

    # -- what is said ----------------------------------------------------------------------------------------------

    def number_of(self, request_id: str) -> int | None:
        """The number of an open request."""
        return self._numbers.get(request_id)

    def arrived(self, request_id: str, describe: Callable[[int], Arrived]) -> None:
        """A request came; `describe` is given its number."""
        number, self._num_requests = self._num_requests, self._num_requests + 1
        self._numbers[request_id] = number
        self.put(describe(number))

    def ended(self, request_id: str, frame: Ended) -> None:
        """A request went."""
        self.put(frame)
        self._gone[request_id] = self._numbers.pop(request_id, -1)

    def put(self, frame: Frame) -> None:
        """Append a frame."""
        if self._fd >= 0:
            self._buffer += encode(frame)
            if len(self._buffer) > _MOST_BUFFERED:
                self.flush()

    def step(self, kept: KeptStep, planned: float, begun: float) -> None:
        """Append a step."""
        if self._fd < 0:
            return
        last = self._last
        counts, sampled, waits = kept.num_tokens, kept.num_sampled, kept.waits
        num = len(kept.ids)
        is_plain = counts.count(1) == num
        is_same = last is not None and last.ids == kept.ids
        self._last = _Columns(kept.ids, kept.starts, counts)

        def number(name: str) -> int:
            return self._numbers.get(name, self._gone.get(name, -1))

        self.put(
            Ran(
                kept.step,
                planned,
                begun,
                kept.elapsed_s,
                kept.gap_s,
                kept.num_free_blocks,
                None if is_same else [number(name) for name in kept.ids],
                None
                if is_same and last is not None and last.goes_on(kept.starts)
                else kept.starts.tolist(),
                None if is_plain else counts.tolist(),
                None if sampled.count(1) == num else sampled.tolist(),
                tuple(kept.blocks.items()) if kept.blocks else (),
                tuple([number(name) for name in kept.started]) if kept.started else (),
                tuple([self._gone.get(name, self._numbers.get(name, -1)) for name in kept.ended])
                if kept.ended
                else (),
                tuple([(_REASON[reason], count) for reason, count in waits.reasons])
                if waits.reasons
                else (),
                tuple([(number(name), _REASON[why]) for name, why in waits.heads])
                if waits.heads
                else (),
            )
        )
        if self._gone:
            for name in self._gone_before:
                self._gone.pop(name, None)
            self._gone_before = dict(self._gone)
        if self._clock() - self._written_at >= _EVERY_S:
            self.flush()

    # -- files -----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what is buffered; begin another file when this one is full."""
        self._written_at = self._clock()
        if self._fd < 0 or not self._buffer:
            return
        try:
            view = memoryview(self._buffer)
            while view:
                view = view[os.write(self._fd, view) :]
            view.release()
            self._file_bytes += len(self._buffer)
            self._buffer = bytearray()
            if self._file_bytes >= max(_LEAST_FILE_BYTES, self._most_bytes // _NUM_FILES):
                self._roll()
        except OSError as error:  # a full disk ends the log, not the engine
            logger.error("the step log ends here: %s", error)
            self._buffer = bytearray()
            self._close()

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _roll(self) -> None:
        self._close()
        self._segment += 1
        now = time.time()
        path = self._folder / f"{int(now * 1000):013d}-{os.getpid()}-{self._segment:06d}{SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        self._file_bytes = 0
        self._last = None
        names = {number: name for name, number in self._numbers.items()}
        self.put(Head(VERSION, self._run, self._segment, now, self.epoch, self._machine, names))
        self._trim(path)

    def _trim(self, newest: Path) -> None:
        """Delete what is oldest until there is room for another file."""
        kept = self._most_bytes - max(_LEAST_FILE_BYTES, self._most_bytes // _NUM_FILES)
        sizes: list[tuple[Path, int]] = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(FileNotFoundError):  # another process trims, too
                sizes.append((path, path.stat().st_size))
        total = sum(size for _, size in sizes)
        for path, size in sizes:
            if total <= kept or path == newest:
                return
            path.unlink(missing_ok=True)
            total -= size


class _Columns(NamedTuple):
    """Of the step before."""

    ids: tuple[str, ...]
    starts: array[int]
    counts: array[int]

    def goes_on(self, starts: array[int]) -> bool:
        """Whether each of the same requests begins where it ended."""
        return list(map(add, self.starts, self.counts)) == starts.tolist()


# -- reading -----------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What is left of one engine process."""

    head: Head
    is_whole: bool
    """Whether it begins where the process began."""
    frames: list[Frame]
    """Heads left out."""


def files(folder: Path, since: float = 0.0, until: float = float("inf")) -> list[Path]:
    """Those that may have steps of a span of Unix time, oldest first."""
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    begins = [_begins(path) for path in paths]
    ends: dict[str, float] = {}
    chosen: list[Path] = []
    for path, begin in reversed(list(zip(paths, begins, strict=True))):
        process = path.name.split("-")[1]
        end = ends.get(process, float("inf"))
        ends[process] = begin
        if begin <= until and end >= since:
            chosen.append(path)
    return chosen[::-1]


def read_runs(folder: Path, since: float = 0.0, until: float = float("inf")) -> list[Run]:
    """The runs in a folder, oldest first, or of them the files that may have steps of a span of Unix time."""
    runs: dict[str, Run] = {}
    for path in files(folder, since, until):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # trimmed meanwhile
            continue
        frames = decode(data)
        head = next(frames, None)
        if not isinstance(head, Head) or head.version != VERSION:
            continue
        run = runs.setdefault(head.run, Run(head, head.segment == 0, []))
        run.frames.append(head)
        run.frames.extend(frames)
    return list(runs.values())


def _begins(path: Path) -> float:
    digits = path.name.split("-")[0]
    return int(digits) / 1000 if digits.isdigit() else 0.0


def records(
    run: Run,
    epoch: float | None = None,
    since: float = float("-inf"),
    until: float = float("inf"),
) -> Iterator[StepRecord]:
    """The steps of a run, as they were told to those who followed; with `epoch` 0 on the run's own clock.

    Of them, those that ran at some time from `since` to `until` (on the run's clock).
    """
    epoch = run.head.epoch if epoch is None else epoch
    names: dict[int, str] = dict(run.head.open)
    num_blocks = sum(group.num_blocks - 1 for group in run.head.machine.groups)
    last: list[tuple[int, int, int]] = []
    for frame in run.frames:
        if isinstance(frame, Head):
            names |= frame.open
        elif isinstance(frame, Arrived):
            names[frame.number] = frame.id
        elif isinstance(frame, Ran):
            last = columns(frame, last)
            if frame.begun <= until and frame.begun + frame.elapsed_s >= since:
                yield _record(frame, last, names, epoch, num_blocks)


def columns(ran: Ran, last: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Number, start and count of each slice, given those of the step before."""
    numbers = [number for number, _, _ in last] if ran.numbers is None else ran.numbers
    starts = [start + count for _, start, count in last] if ran.starts is None else ran.starts
    counts = [1] * len(numbers) if ran.counts is None else ran.counts
    return list(zip(numbers, starts, counts, strict=True))


def _record(
    ran: Ran,
    slices: list[tuple[int, int, int]],
    names: dict[int, str],
    epoch: float,
    num_blocks: int,
) -> StepRecord:
    blocks = dict(ran.blocks)
    sampled = [1] * len(slices) if ran.sampled is None else ran.sampled
    return StepRecord(
        step=ran.step,
        at=epoch + ran.begun,
        elapsed_s=ran.elapsed_s,
        gap_s=ran.gap_s,
        num_tokens=sum(count for _, _, count in slices),
        slices=tuple(
            SliceRecord(
                id=names.get(number, ""),
                start=start,
                num_tokens=count,
                num_sampled=max(0, sampled[index]),
                failed=sampled[index] < 0,
                blocks=blocks.get(index, ()),
            )
            for index, (number, start, count) in enumerate(slices)
        ),
        started=tuple(names.get(number, "") for number in ran.started),
        ended=tuple(names.get(number, "") for number in ran.ended),
        waiting=tuple((REASONS[reason], count) for reason, count in ran.waiting),
        heads=tuple((names.get(number, ""), REASONS[reason]) for number, reason in ran.heads),
        num_blocks=num_blocks,
        num_free_blocks=ran.free_blocks,
    )


def read_steplog(folder: Path) -> list[StepRecord]:
    """All steps in a folder, run by run."""
    return [record for run in read_runs(folder) for record in records(run)]
