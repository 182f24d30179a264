"""Who runs next. Pure: `schedule(now)` makes a plan, `apply(result)` takes what came of it; no clock, no I/O, no torch.

There is one kind of work: a sequence has tokens that still have to go through the model (`num_pending`). One pending
token is a decode, more are a prompt or what a preemption threw away; both get slices of the same plan.

A step is filled in this order: running sequences with one pending token; running sequences with more, within the
prefill budget; then the waiting ones, first in policy order first, each only if blocks for all its known tokens are
free. Nobody overtakes the head of the queue. When a running sequence finds no block, the policy names a victim, which
goes back to the queue and is computed again later (mostly from its own cached blocks).

Progress: the first in order is never a victim; a sequence preempted MAX_PREEMPTIONS times is admitted again only with
everything it can need reserved, and then always runs through. While anyone stalls for blocks nobody is admitted, so
every request ends. `tests/sim` drives this against `invariants.check`.
"""

from __future__ import annotations

import bisect

from octavo.cache.groups import KVCache, Match
from octavo.core.errors import ContextLengthError, ErrorInfo, OverloadError
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import (
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    Pooled,
    RequestTiming,
    SliceResult,
    StepResult,
    TokenOut,
)
from octavo.core.sequence import Sequence, SequenceState
from octavo.scheduler.limits import MAX_PREEMPTIONS, WATERMARK, Limits
from octavo.scheduler.policies.base import Policy
from octavo.scheduler.stats import Counters
from octavo.scheduler.steptime import StepTimeFit, context_of


class Scheduler:
    """Owner of all sequences. Calls alternate: any number of `add` and `cancel`, then `schedule`, then `apply`."""

    def __init__(self, limits: Limits, cache: KVCache, policy: Policy) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = policy
        self.waiting: list[Sequence] = []  # sorted by policy.order
        self.running: list[Sequence] = []  # sorted by policy.order
        self.by_id: dict[str, Sequence] = {}
        self.reserved: set[str] = set()
        self.counters = Counters()
        self.step_time = StepTimeFit()
        self._rows: list[int] = list(range(limits.max_num_seqs - 1, -1, -1))
        self._by_row: dict[int, Sequence] = {}
        self._ended_rows: list[int] = []

    @property
    def has_work(self) -> bool:
        """Whether `schedule` could run something."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Accept a request.

        Raises:
            OverloadError: the queue is full.
            ContextLengthError: it could never fit into the KV cache or the context.
        """
        if len(self.waiting) >= self.limits.max_num_waiting:
            raise OverloadError(
                f"{len(self.waiting)} requests are waiting; at most {self.limits.max_num_waiting}.",
                fix="Try again later.",
                retry_after_s=1.0,
            )
        total = request.num_prompt + request.max_tokens
        if total > self.limits.max_model_len:
            raise ContextLengthError(
                f"{request.num_prompt} prompt tokens plus {request.max_tokens} output tokens exceed the "
                f"context of {self.limits.max_model_len} tokens.",
                param="max_tokens",
            )
        sequence = Sequence(request=request, token_ids=list(request.token_ids))
        self.by_id[request.id] = sequence
        bisect.insort(self.waiting, sequence, key=self.policy.order)

    def cancel(self, request_id: str, reason: FinishReason = "abort") -> list[Event]:
        """End a request now, wherever it stands; [] when it is not (or no longer) known."""
        sequence = self.by_id.get(request_id)
        if sequence is None:
            return []
        return [self._finish(sequence, reason, None)]

    # -- plan ----------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run."""
        slices: dict[int, Slice] = {}  # by row
        starts: dict[int, SequenceStart] = {}
        stalled = self._schedule_running(slices)
        if not stalled:
            self._admit(slices, starts, now)
        if not slices and not self._ended_rows:
            return None
        self.counters.num_steps += 1
        ended, self._ended_rows = tuple(self._ended_rows), []
        return StepPlan(
            step=self.counters.num_steps,
            ended=ended,
            starts=tuple(starts.values()),
            slices=tuple(slices.values()),
        )

    def _schedule_running(self, slices: dict[int, Slice]) -> bool:
        """Give every running sequence its slice; True when one had to stall or give way."""
        stalled = False
        chunks: list[Sequence] = []
        running = SequenceState.RUNNING
        for sequence in tuple(self.running):  # a victim leaves the list
            start = sequence.num_computed
            if len(sequence.token_ids) - start != 1:
                chunks.append(sequence)
            elif start < sequence.room and sequence.state is running:
                # Fifteen times of sixteen: the last block has room and nothing has to be asked.
                row = sequence.row
                slices[row] = Slice(row=row, start=start, count=1, sample=True)
            elif not self._place(sequence, 1, slices):
                stalled = True
        budget = self.limits.prefill_budget(len(slices))
        for sequence in chunks:
            count = min(sequence.num_pending, budget)
            if count < 1 or sequence.state is not SequenceState.RUNNING:
                continue
            if self._place(sequence, count, slices):
                budget -= count
            else:
                stalled = True
        return stalled

    def _place(self, sequence: Sequence, count: int, slices: dict[int, Slice]) -> bool:
        """Find blocks for `count` tokens, preempting others if need be. False when the sequence did not get them."""
        if sequence.state is not SequenceState.RUNNING:
            return False  # a victim of this very step
        clean = True
        end = sequence.num_computed + count
        while not self._has_blocks(sequence, self.cache.missing(sequence, end)):
            victim = self._victim(sequence)
            if victim is None:
                return False  # waits for reserved sequences to finish
            clean = False
            slices.pop(victim.row, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        slices[sequence.row] = self._slice(sequence, count, self.cache.extend(sequence, end))
        return clean

    def _slice(self, sequence: Sequence, count: int, blocks: tuple[tuple[int, ...], ...]) -> Slice:
        return Slice(
            row=sequence.row,
            start=sequence.num_computed,
            count=count,
            sample=count == sequence.num_pending,
            new_blocks=blocks,
        )

    def _victim(self, needy: Sequence) -> Sequence | None:
        """Whom to preempt so that `needy` can go on; itself when it is the last in order; None when nobody may be."""
        candidates = [s for s in self.running if s.id not in self.reserved]
        others = [s for s in candidates if s is not needy]
        if not others:
            return None
        return self.policy.victim(candidates)

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.counters.num_preemptions += 1
        bisect.insort(self.waiting, sequence, key=self.policy.order)

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit(
        self, slices: dict[int, Slice], starts: dict[int, SequenceStart], now: float
    ) -> None:
        """Start waiting sequences, in order, as long as rows, tokens and blocks allow."""
        if not self.waiting:
            return
        decodes = sum(1 for piece in slices.values() if piece.count == 1)
        budget = self.limits.prefill_budget(decodes)
        budget -= sum(piece.count for piece in slices.values() if piece.count > 1)
        held_back: list[Sequence] = []
        while self.waiting and self._rows and budget > 0:
            sequence = self.waiting[0]
            match = self.cache.match(sequence)
            count = min(sequence.num_tokens - match.num_tokens, budget)
            whole = count == sequence.num_tokens - match.num_tokens
            if not whole and not self.limits.enable_chunked_prefill:
                break
            if self._twin_is_computing(sequence, match):
                held_back.append(self.waiting.pop(0))
                continue
            if not self._can_admit(sequence, match):
                break
            self.waiting.pop(0)
            starts_at = self._start(sequence, match, count, now)
            starts[sequence.row] = starts_at
            slices[sequence.row] = self._slice(sequence, count, ())
            budget -= count
        for sequence in held_back:
            bisect.insort(self.waiting, sequence, key=self.policy.order)

    def _can_admit(self, sequence: Sequence, match: Match) -> bool:
        chunk = self.limits.max_num_batched_tokens
        need = self.cache.admission_need(sequence, match, chunk)
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            whole = self.cache.whole_need(sequence, chunk)
            need = [max(pair) for pair in zip(need, whole, strict=True)]
        elif self.running:
            need = [
                blocks + int(pool.num_usable * WATERMARK)
                for blocks, pool in zip(need, self.cache.pools, strict=True)
            ]
        return self._has_blocks(sequence, need)

    def _has_blocks(self, sequence: Sequence, need: list[int]) -> bool:
        """Whether `need` blocks per group are free beside what is reserved for others."""
        if not any(need):
            return True
        kept = [0] * len(need)
        chunk = self.limits.max_num_batched_tokens
        for other_id in self.reserved:
            if other_id != sequence.id:
                other = self.by_id[other_id]
                rest = self.cache.remaining_need(other, chunk)
                kept = [a + b for a, b in zip(kept, rest, strict=True)]
        return all(
            blocks + keep <= pool.num_free
            for blocks, keep, pool in zip(need, kept, self.cache.pools, strict=True)
        )

    def _twin_is_computing(self, sequence: Sequence, match: Match) -> bool:
        """Whether a running sequence is about to compute the next block that this one needs.

        Waiting for it a step or a few saves computing the same prompt twice (n choices, bursts with one system prompt).
        """
        index = match.num_tokens // BLOCK_SIZE
        if not self.cache.looks_up(sequence) or index >= (sequence.num_tokens - 1) // BLOCK_SIZE:
            return False
        wanted = sequence.hashes[index]
        return any(
            len(other.hashes) > index
            and other.hashes[index] == wanted
            and other.num_computed <= index * BLOCK_SIZE
            for other in self.running
        )

    def _start(self, sequence: Sequence, match: Match, count: int, now: float) -> SequenceStart:
        self.cache.admit(sequence, match)
        self.cache.extend(sequence, match.num_tokens + count)
        sequence.state = SequenceState.RUNNING
        sequence.row = self._rows.pop()
        self._by_row[sequence.row] = sequence
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.num_cached = match.num_tokens
            if self.cache.looks_up(sequence):
                self.counters.prefix_queries += sequence.num_tokens
                self.counters.prefix_hits += match.num_tokens
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            self.reserved.add(sequence.id)
        bisect.insort(self.running, sequence, key=self.policy.order)
        return SequenceStart(
            row=sequence.row,
            request=sequence.request,
            token_ids=tuple(sequence.token_ids),
            blocks=tuple(tuple(table) for table in sequence.blocks),
        )

    # -- apply ---------------------------------------------------------------------------------------------------

    def apply(self, plan: StepPlan, result: StepResult, now: float) -> list[Event]:
        """Take a step's results: advance, append tokens, finish, free, publish prefixes."""
        events: list[Event] = []
        self.counters.last_step_tokens = plan.num_tokens
        self.counters.last_step_s = result.elapsed_s
        if result.elapsed_s > 0:
            self.step_time.observe(plan.num_tokens, context_of(plan), result.elapsed_s)
        for piece, outcome in zip(plan.slices, result.slices, strict=True):
            sequence = self._by_row[piece.row]
            if outcome.error is not None:
                events.append(self._fail(sequence, outcome.error))
                continue
            if piece.start < sequence.num_prompt:
                in_prompt = min(piece.start + piece.count, sequence.num_prompt) - piece.start
                self.counters.prompt_tokens += in_prompt
            sequence.num_computed = piece.start + piece.count
            self.cache.advance(sequence)
            if outcome.pooled is not None:
                sequence.first_token_at = sequence.last_token_at = now
                events.append(
                    Pooled(id=sequence.id, values=outcome.pooled, num_cached=sequence.num_cached)
                )
                events.append(self._finish(sequence, "stop", None))
            elif outcome.token_ids or outcome.is_finished or outcome.prompt_logprobs is not None:
                self._take(sequence, outcome, now, events)
        return events

    def _take(
        self, sequence: Sequence, outcome: SliceResult, now: float, events: list[Event]
    ) -> None:
        """Append the accepted tokens up to a stop, and to `events` what follows."""
        token_ids, known = outcome.token_ids, sequence.token_ids
        logprobs = outcome.logprobs
        end: tuple[FinishReason, int | None] | None = None
        for taken, token_id in enumerate(token_ids, 1):
            known.append(token_id)
            if token_id in sequence.stop_ids or len(known) >= sequence.most_tokens:
                end = _end_of(sequence, token_id)
                if end is not None:
                    token_ids = token_ids[:taken]
                    logprobs = None if logprobs is None else logprobs[:taken]
                    break
        if outcome.is_finished and token_ids == outcome.token_ids:
            end = end if end is not None and end[0] == "stop" else ("stop", None)
        num_cached = 0
        if token_ids:
            if sequence.first_token_at is None:
                sequence.first_token_at = now
                num_cached = sequence.num_cached
            sequence.last_token_at = now
            self.counters.generation_tokens += len(token_ids)
        events.append(
            TokenOut(
                id=sequence.request.id,
                token_ids=token_ids,
                logprobs=logprobs,
                prompt_logprobs=outcome.prompt_logprobs,
                num_cached=num_cached,
            )
        )
        if end is not None:
            events.append(self._finish(sequence, *end))

    def _leave(self, sequence: Sequence) -> None:
        """Stop running: blocks and row come back."""
        self.running.remove(sequence)
        self.cache.release(sequence)
        self.reserved.discard(sequence.id)
        del self._by_row[sequence.row]
        self._rows.append(sequence.row)
        self._ended_rows.append(sequence.row)
        sequence.row = -1

    def _drop(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.state = SequenceState.FINISHED
        del self.by_id[sequence.id]

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> Failed:
        self._drop(sequence)
        return Failed(id=sequence.id, error=error)

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_token: int | None) -> Finished:
        self._drop(sequence)
        return Finished(
            id=sequence.id,
            reason=reason,
            stop_token=stop_token,
            num_prompt=sequence.request.num_prompt,
            num_output=sequence.num_output,
            num_cached=sequence.num_cached,
            num_preemptions=sequence.num_preemptions,
            timing=RequestTiming(
                arrived=sequence.request.arrived,
                admitted=sequence.admitted_at,
                first_token=sequence.first_token_at,
                last_token=sequence.last_token_at,
            ),
        )

    def stats(self) -> EngineStats:
        """A snapshot for the meters."""
        return self.counters.snapshot(
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_blocks=self.cache.num_blocks,
            num_free_blocks=self.cache.num_free,
            step_time=self.step_time.line,
        )


def _end_of(sequence: Sequence, token_id: int) -> tuple[FinishReason, int | None] | None:
    """Why the sequence ends with this token, if it does. Stop tokens before min_tokens are masked by the sampler."""
    request = sequence.request
    if sequence.num_output >= request.params.min_tokens:
        if token_id in request.eos_token_ids:
            return ("stop", None)
        if token_id in request.params.stop_token_ids:
            return ("stop", token_id)
    if sequence.num_output >= request.max_tokens:
        return ("length", None)
    return None
