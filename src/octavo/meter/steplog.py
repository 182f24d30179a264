"""The append-only step log: who was in each step, for how many tokens, how long it took.

Kept as a ring in memory, and as a JSONL file when one is named. Knows plans and results; does not know why the
scheduler chose as it did.
"""

from __future__ import annotations

from array import array
from collections import deque
from pathlib import Path
from typing import NamedTuple

import msgspec

from octavo.core.log import get_logger
from octavo.core.plan import StepPlan
from octavo.core.result import StepResult

logger = get_logger(__name__)


class SliceRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request's share of a step."""

    id: str
    start: int
    """First position computed."""
    num_tokens: int
    """Tokens through the model, drafts included."""
    num_sampled: int
    """Tokens accepted."""
    failed: bool = False


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step. The token counts of its slices sum to `num_tokens`."""

    step: int
    elapsed_s: float
    num_tokens: int
    slices: tuple[SliceRecord, ...]
    started: tuple[str, ...] = ()
    """Requests whose first slice this is, since their (last) admission."""
    ended: tuple[str, ...] = ()
    """Requests that left since the last step: finished, failed, cancelled or preempted."""


class _Kept(NamedTuple):
    """A step as the ring keeps it: numbers in arrays, because thousands of steps of hundreds of slices as objects would
    take a hundred megabytes and have the garbage collector walk over them.
    """

    step: int
    elapsed_s: float
    ids: tuple[str, ...]
    starts: array[int]
    num_tokens: array[int]
    num_sampled: array[int]
    """-1 for a slice that failed."""
    started: tuple[str, ...]
    ended: tuple[str, ...]

    def record(self) -> StepRecord:
        """As read back from a file."""
        columns = (self.ids, self.starts, self.num_tokens, self.num_sampled)
        return StepRecord(
            step=self.step,
            elapsed_s=self.elapsed_s,
            num_tokens=sum(self.num_tokens),
            slices=tuple(
                SliceRecord(
                    id=id_,
                    start=start,
                    num_tokens=count,
                    num_sampled=max(0, sampled),
                    failed=sampled < 0,
                )
                for id_, start, count, sampled in zip(*columns, strict=True)
            ),
            started=self.started,
            ended=self.ended,
        )


class StepLog:
    """Ring of the last `capacity` steps. Owner: the engine loop, the only caller of `add`.

    Plans name rows, not requests; the log follows `starts` and `ended` to know who sits in which row.
    """

    def __init__(self, capacity: int = 4096, path: Path | None = None) -> None:
        self._records: deque[_Kept] = deque(maxlen=capacity)
        self._rows: dict[int, str] = {}
        # Unbuffered: whoever follows the file sees each step at once, and a killed engine loses none.
        self._file = path.open("ab", buffering=0) if path is not None else None

    def add(self, plan: StepPlan, result: StepResult) -> None:
        """Append one step that has run; a result without slices counts as one in which nobody got a token."""
        ended = tuple(self._rows.pop(row) for row in plan.ended if row in self._rows)
        for start in plan.starts:
            self._rows[start.row] = start.request.id
        names, slices = self._rows, plan.slices
        sampled = [-1 if each.error is not None else len(each.token_ids) for each in result.slices]
        kept = _Kept(
            step=plan.step,
            elapsed_s=result.elapsed_s,
            ids=tuple([names.get(piece.row, "") for piece in slices]),
            starts=array("i", [piece.start for piece in slices]),
            num_tokens=array("i", [piece.count + len(piece.draft) for piece in slices]),
            num_sampled=array("i", sampled or [0] * len(slices)),
            started=tuple(start.request.id for start in plan.starts),
            ended=ended,
        )
        self._records.append(kept)
        self._write(kept)

    def _write(self, kept: _Kept) -> None:
        if self._file is None:
            return
        try:
            self._file.write(msgspec.json.encode(kept.record()) + b"\n")
        except OSError as error:  # a full disk ends the log, not the engine
            logger.error("the step log ends here: %s", error)
            self.close()

    def tail(self, count: int) -> list[StepRecord]:
        """The last `count` steps, oldest first."""
        if count <= 0:
            return []
        return [kept.record() for kept in list(self._records)[-count:]]

    def __len__(self) -> int:
        return len(self._records)

    def close(self) -> None:
        """Flush and close the file, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_steplog(path: Path) -> list[StepRecord]:
    """Read a JSONL step log back."""
    decoder = msgspec.json.Decoder(StepRecord)
    return decoder.decode_lines(path.read_bytes())
