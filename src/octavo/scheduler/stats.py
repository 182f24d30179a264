"""Counters of the scheduler; they only grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.errors import ErrorInfo
from octavo.core.plan import Slice
from octavo.core.result import EngineStats
from octavo.core.sequence import Sequence
from octavo.core.steptime import StepTime, attended


@dataclass(slots=True)
class Counters:
    """Owner: the scheduler. Meanings as in `EngineStats`."""

    num_steps: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    aborted_tokens: int = 0
    last_step_tokens: int = 0
    last_step_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    def count_fault(self, error: ErrorInfo) -> None:
        """A request failed inside the engine."""
        kind = error.phase or error.code
        self.faults[kind] = self.faults.get(kind, 0) + 1

    recomputed_tokens: int = 0
    recomputed_s: float = 0.0

    def count(self, sequence: Sequence, piece: Slice, line: StepTime | None) -> None:
        """Book a slice's tokens as prompt, or as computed again after a preemption; `line` once it is fitted."""
        end = piece.start + piece.count
        fresh = max(piece.start, min(end, sequence.num_computed_before))
        self.prompt_tokens += max(0, min(end, sequence.num_prompt) - fresh)
        again = fresh - piece.start
        self.recomputed_tokens += again
        if again and line is not None:
            read = attended(piece.start, again)
            self.recomputed_s += line.token_s * again + line.context_s * read

    def snapshot(
        self,
        *,
        num_running: int,
        num_waiting: int,
        num_blocks: int,
        num_free_blocks: int,
        queued_tokens: int,
        pending_tokens: int,
        step_time: StepTime,
    ) -> EngineStats:
        """Frozen, with the gauges of the moment."""
        return EngineStats(
            num_running=num_running,
            num_waiting=num_waiting,
            num_blocks=num_blocks,
            num_free_blocks=num_free_blocks,
            num_steps=self.num_steps,
            num_preemptions=self.num_preemptions,
            prefix_queries=self.prefix_queries,
            prefix_hits=self.prefix_hits,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            aborted_tokens=self.aborted_tokens,
            last_step_tokens=self.last_step_tokens,
            last_step_s=self.last_step_s,
            faults=tuple(self.faults.items()),
            queued_tokens=queued_tokens,
            pending_tokens=pending_tokens,
            step_time=step_time,
            recomputed_tokens=self.recomputed_tokens,
            recomputed_s=self.recomputed_s,
        )
