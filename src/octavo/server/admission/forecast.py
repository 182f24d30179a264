"""When a request would have its first token and its last: step times times what has to be done before. Pure.

A fluid model, on purpose: prompts ahead go through in full chunks beside today's decodes; where rows or blocks are
short, somebody has to finish first. What it leaves out (chunks that do not fill, decodes that come and go, prompts in
the prefix cache) is a factor that `calibration.py` learns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from octavo.core.result import EngineStats
from octavo.core.steptime import StepTime

LEAST_STEPS = 32
"""Steps that a fit of step times must stand on before anything is predicted by it."""
_MEMORY_S = 5.0
"""Of backlog, after which a measured pace counts a third."""
_HITS_KEPT = 0.98
"""Of what is known of prefix hits, what each look adds to."""


class Room(NamedTuple):
    """What the engine can do at once; see `Ready`."""

    rows: int
    step_tokens: int
    kv_tokens: int


class Ahead(NamedTuple):
    """What has to be done before a new request."""

    tokens: float
    """Prompt tokens that go first."""
    num_prompts: int
    """Requests that they belong to."""
    running: int
    """Sequences under way."""
    mean_tokens: float
    """Prompt and output of a typical request."""
    output_tokens: float
    """Output of a typical request."""


class Pace:
    """How fast a backlog goes down, measured: tokens per step and per second, and what the prefix cache saves."""

    def __init__(self) -> None:
        self.restarted_at = -math.inf
        """When the engine was first seen to have been started again, the last time."""
        self._last: EngineStats | None = None
        self._at = 0.0
        self._tokens = 0.0
        self._steps = 0.0
        self._seconds = 0.0
        self._queries = 0.0
        self._hits = 0.0

    def observe(self, stats: EngineStats, now: float) -> bool:
        """Take a snapshot; whether it is a new one."""
        last, since = self._last, self._at
        if stats is last:
            return False
        self._last, self._at = stats, now
        if last is None:
            return True
        if stats.step_time.num_steps < last.step_time.num_steps:
            # Of an engine that was started again: its counters go on, what it knows of steps does not.
            self.restarted_at = now
            return True
        queries = stats.prefix_queries - last.prefix_queries
        if queries > 0:
            self._queries = self._queries * _HITS_KEPT + queries
            self._hits = self._hits * _HITS_KEPT + stats.prefix_hits - last.prefix_hits
        steps = stats.num_steps - last.num_steps
        if steps and backlog(last) > 0 and backlog(stats) > 0:
            kept = math.exp(-(now - since) / _MEMORY_S)
            self._tokens = self._tokens * kept + stats.prompt_tokens - last.prompt_tokens
            self._steps = self._steps * kept + steps
            self._seconds = self._seconds * kept + now - since
        return True

    def chunk(self, most: int) -> float:
        """Prompt tokens in a step that has enough of them; `most` where none was seen."""
        if self._steps < 1.0 or self._tokens < 1.0:
            return float(most)
        return min(float(most), self._tokens / self._steps)

    def drain(self) -> float | None:
        """Prompt tokens a second while there is a backlog; None where none was seen."""
        if self._seconds <= 0.0 or self._tokens < 1.0:
            return None
        return self._tokens / self._seconds

    @property
    def missed(self) -> float:
        """The share of prompt tokens that the prefix cache does not have."""
        return 1.0 - self._hits / self._queries if self._queries else 1.0


def backlog(stats: EngineStats) -> int:
    """Prompt tokens that wait in the engine; a running decode's own next token is none."""
    return stats.queued_tokens + max(0, stats.pending_tokens - stats.num_running)


def first_token_s(step: StepTime, room: Room, chunk: float, ahead: Ahead, own: float) -> float:
    """Seconds until a request with `own` prompt tokens to compute has its first token."""
    tokens = ahead.tokens + own
    num_steps = max(1.0, math.ceil(tokens / chunk))
    per_prompt = ahead.tokens / ahead.num_prompts if ahead.num_prompts else 0.0
    attended = (ahead.tokens * per_prompt + own * own) / 2
    around = step.predict(ahead.running, ahead.running * ahead.mean_tokens, is_mixed=True)
    work = num_steps * around + step.token_s * tokens + step.context_s * attended
    return work if not ahead.running else max(work, _row_s(step, room, ahead))


def decode_s(step: StepTime, ahead: Ahead) -> float:
    """Seconds of a step of nothing but the decodes of today."""
    return step.predict(ahead.running, ahead.running * ahead.mean_tokens)


def _row_s(step: StepTime, room: Room, ahead: Ahead) -> float:
    """Seconds until a row and its blocks are free: 0 where they are, else so many must finish first."""
    rows = min(room.rows, max(1.0, room.kv_tokens / max(1.0, ahead.mean_tokens)))
    lacking = ahead.running + ahead.num_prompts + 1 - rows
    if lacking <= 0:
        return 0.0
    num_steps = lacking * max(1.0, ahead.output_tokens) / min(ahead.running, rows)
    return num_steps * decode_s(step, ahead)
