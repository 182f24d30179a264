"""The append-only step log: who was in each step, for how many tokens, how long it took.

Kept as a ring in memory, and as a JSONL file when one is named. Knows plans and results; does not know why the
scheduler chose as it did.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

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


class StepLog:
    """Ring of the last `capacity` steps. Owner: the engine loop, the only caller of `add`.

    Plans name rows, not requests; the log follows `starts` and `ended` to know who sits in which row.
    """

    def __init__(self, capacity: int = 4096, path: Path | None = None) -> None:
        self._records: deque[StepRecord] = deque(maxlen=capacity)
        self._rows: dict[int, str] = {}
        # Unbuffered: whoever follows the file sees each step at once, and a killed engine loses none.
        self._file = path.open("ab", buffering=0) if path is not None else None

    def add(self, plan: StepPlan, result: StepResult) -> StepRecord:
        """Append one step that has run."""
        ended = tuple(self._rows.pop(row) for row in plan.ended if row in self._rows)
        for start in plan.starts:
            self._rows[start.row] = start.request.id
        outcomes = {outcome.row: outcome for outcome in result.slices}
        slices: list[SliceRecord] = []
        for piece in plan.slices:
            outcome = outcomes.get(piece.row)
            slices.append(
                SliceRecord(
                    id=self._rows.get(piece.row, ""),
                    start=piece.start,
                    num_tokens=piece.count + len(piece.draft),
                    num_sampled=len(outcome.token_ids) if outcome is not None else 0,
                    failed=outcome is not None and outcome.error is not None,
                )
            )
        record = StepRecord(
            step=plan.step,
            elapsed_s=result.elapsed_s,
            num_tokens=plan.num_tokens,
            slices=tuple(slices),
            started=tuple(start.request.id for start in plan.starts),
            ended=ended,
        )
        self._records.append(record)
        self._write(record)
        return record

    def _write(self, record: StepRecord) -> None:
        if self._file is None:
            return
        try:
            self._file.write(msgspec.json.encode(record) + b"\n")
        except OSError as error:  # a full disk ends the log, not the engine
            logger.error("the step log ends here: %s", error)
            self.close()

    def tail(self, count: int) -> list[StepRecord]:
        """The last `count` steps, oldest first."""
        if count <= 0:
            return []
        return list(self._records)[-count:]

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
