"""Who runs next. Pure: `schedule(now)` makes a plan, `apply(result)` takes what came of it; no clock, no I/O, no torch.

There is one kind of work: a sequence has tokens that still have to go through the model (`num_pending`). One pending
token is a decode, more are a prompt or what a preemption threw away; both get slices of the same plan.

A step is filled in this order: running sequences with one pending token; then prompts, within the budget for them, from
the account served least (`accounts.py`): its running chunks, then the heads of its queue. A head starts only if blocks
for all its known tokens are free, what the running ones are predicted to grow by is spared (`room.py`) and the step
stays under `max_itl_s`. Within an account nobody overtakes the head. Others may, MAX_PASSED times: then all wait with
it. When a running sequence finds no block, another gives way (`victims.py`), goes back to its place in the queue and is
computed again later (mostly from its own cached blocks).

Progress: whoever runs moves on unless it stalls for blocks or gives way. It gives way MAX_PREEMPTIONS times at most: then
it starts again only with everything it can need reserved, and always runs through. Stalling ends when the reserved ones
do, for while anyone stalls nobody starts, and the first in order never gives way. A head ends waiting: the clocks of
accounts rise as they are served and its own does not, so its account comes first; the requests that pass it are
counted; those that run end, and alone it starts whenever it fits into the pool, which `add` has checked. So every
request ends. `tests/sim` drives this against `invariants.check`.
"""

from __future__ import annotations

import bisect
import enum
import heapq

from octavo.cache.groups import KVCache, Match
from octavo.core.errors import ContextLengthError, ErrorInfo, OverloadError
from octavo.core.plan import SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import (
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    Pooled,
    SliceResult,
    StepResult,
    TokenOut,
)
from octavo.core.sequence import Sequence, SequenceState
from octavo.scheduler import victims
from octavo.scheduler.accounts import Account, Accounts
from octavo.scheduler.budget import PrefillBudget, fits_row
from octavo.scheduler.ends import end_of, expired, finished
from octavo.scheduler.limits import MANY_ROWS, MAX_IN_VAIN, Limits
from octavo.scheduler.policies.base import Policy
from octavo.scheduler.room import Room
from octavo.scheduler.stats import Counters
from octavo.scheduler.steptime import StepTimeFit, context_of
from octavo.scheduler.turns import Stuck, Turns

_MOST_ENDED = 64
"""Deadlines of ended requests that are kept beside as many as are open."""


class _Verdict(enum.Enum):
    """What became of the head of a queue."""

    STARTED = enum.auto()
    HELD_BACK = enum.auto()
    NO_ROW = enum.auto()
    LAST_ROW = enum.auto()
    NO_ROOM = enum.auto()
    NO_BUDGET = enum.auto()


class Scheduler:
    """Owner of all sequences. Calls alternate: any number of `add` and `cancel`, then `schedule`, then `apply`."""

    def __init__(self, limits: Limits, cache: KVCache, policy: Policy) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = policy
        self.running: list[Sequence] = []  # sorted by policy.order
        self.by_id: dict[str, Sequence] = {}
        self.accounts = Accounts(policy)
        self.room = Room(cache, limits)
        self.counters = Counters()
        self.step_time = StepTimeFit()
        self._rows: list[int] = list(range(limits.max_num_seqs - 1, -1, -1))
        self._by_row: dict[int, Sequence] = {}
        self._ended_rows: list[int] = []
        self._deadlines: list[tuple[float, str]] = []  # a heap; some of those who ended are in it
        self._stuck = Stuck()
        self._starts: dict[int, SequenceStart] = {}  # of this step, by row
        self._row_taken_at = 0
        self._keeps_row = limits.max_num_seqs >= MANY_ROWS
        self._pending = 0

    @property
    def has_work(self) -> bool:
        """Whether `schedule` could run something."""
        return bool(self.accounts.num_waiting or self.running)

    @property
    def waiting(self) -> list[Sequence]:
        """Everyone who waits, account by account, in order within each. O(n)."""
        return self.accounts.waiting()

    def add(self, request: Request) -> list[Event]:
        """Accept a request. Its end, when what its caller has already is all there will be; else [].

        Raises:
            OverloadError: the queue is full.
            ContextLengthError: it could never fit into the KV cache or the context.
        """
        if self.accounts.num_waiting >= self.limits.max_num_waiting and not request.restarts:
            raise OverloadError(
                f"{self.accounts.num_waiting} requests are waiting; at most {self.limits.max_num_waiting}.",
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
        sequence = Sequence(request=request, token_ids=[*request.token_ids, *request.resumed])
        self.by_id[request.id] = sequence
        self._enqueue(sequence)
        if request.deadline is not None:
            self._note_deadline(request.deadline, request.id)
        end = end_of(sequence, request.resumed[-1]) if request.resumed else None
        return [] if end is None else [self._finish(sequence, *end)]

    def expire(self, now: float) -> list[Event]:
        """End what is worth nothing any more, waiting or running. O(1) when nothing is; call it before `schedule`."""
        events: list[Event] = []
        while self._deadlines and self._deadlines[0][0] < now:
            deadline, request_id = heapq.heappop(self._deadlines)
            sequence = self.by_id.get(request_id)
            if sequence is not None and sequence.request.deadline == deadline:
                late = expired(sequence, now)
                self._drop(sequence)  # no fault: what it computed stays good
                events.append(Failed(id=request_id, error=late))
        return events

    def _note_deadline(self, deadline: float, request_id: str) -> None:
        heapq.heappush(self._deadlines, (deadline, request_id))
        if len(self._deadlines) > 2 * len(self.by_id) + _MOST_ENDED:
            known = [(s.request.deadline, s.id) for s in self.by_id.values()]
            self._deadlines = [(due, name) for due, name in known if due is not None]
            heapq.heapify(self._deadlines)

    def cancel(self, request_id: str, reason: FinishReason = "abort") -> list[Event]:
        """End a request now, wherever it stands; [] when it is not (or no longer) known."""
        sequence = self.by_id.get(request_id)
        if sequence is None:
            return []
        computed = max(sequence.num_computed, sequence.num_computed_before)
        self.counters.aborted_tokens += max(0, computed - sequence.num_cached)
        return [self._finish(sequence, reason, None)]

    # -- plan ----------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run."""
        slices: dict[int, Slice] = {}  # by row
        self._starts = {}
        chunks: list[Sequence] = []
        stalled = self._schedule_decodes(slices, chunks)
        self._pending = 0  # of running prompts, beyond the one token that every row has pending
        if chunks or (self.accounts.num_waiting and not stalled):
            self._schedule_prompts(slices, chunks, now, admitting=not stalled)
        if not slices and not self._ended_rows:
            return None
        self.counters.num_steps += 1
        self.accounts.tick(self.step_time.line if self.step_time.is_fitted else None)
        ended, self._ended_rows = tuple(self._ended_rows), []
        return StepPlan(
            step=self.counters.num_steps,
            ended=ended,
            starts=tuple(self._starts.values()),
            slices=tuple(slices.values()),
        )

    def _schedule_decodes(self, slices: dict[int, Slice], chunks: list[Sequence]) -> bool:
        """Give every running sequence with one token its slice and note the others; True when one stalled or gave way."""
        stalled = False
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
        return stalled

    def _schedule_prompts(
        self,
        slices: dict[int, Slice],
        chunks: list[Sequence],
        now: float,
        *,
        admitting: bool,
    ) -> None:
        """Fill the step with running chunks and new starts, account by account, least served first."""
        accounts = self.accounts
        line = self.step_time.line if self.step_time.is_fitted else None
        context = accounts.settled_context()
        budget = PrefillBudget(self.limits, line, len(slices), context)
        turns = Turns(accounts, [s for s in chunks if s.state is SequenceState.RUNNING])
        self.room.begin()
        starved: Account | None = None
        in_vain = 0
        while budget.most(0) > 0:
            due = self._stuck.due() if admitting else None
            account = accounts.of(due.request) if due else turns.next(admitting=admitting)
            if account is None:
                break
            chunk = turns.chunk(account)
            if chunk is not None:
                # Nobody starts while one stalls, and a step that is full ends here.
                admitting &= self._run_chunk(chunk, account, budget, slices)
                continue
            verdict = self._start_head(account, turns, budget, slices, now)
            if verdict in (_Verdict.NO_ROW, _Verdict.NO_ROOM):
                starved = starved or account
            in_vain += verdict is not _Verdict.STARTED
            admitting = in_vain <= MAX_IN_VAIN and self._goes_on(verdict, account, turns, due)
        turns.end()
        for sequence in chunks:
            if sequence.state is SequenceState.RUNNING:
                piece = slices.get(sequence.row)
                left = sequence.num_pending - (piece.count if piece is not None else 0)
                self._pending += max(0, left - 1)
        if starved is not None:
            self._take_row_for(starved, slices, now)

    def _goes_on(
        self, verdict: _Verdict, account: Account, turns: Turns, due: Sequence | None
    ) -> bool:
        """Whether heads are looked at after this one, which had the verdict; `due`: it was the turn of that one."""
        if verdict is _Verdict.STARTED:
            return True
        if verdict is _Verdict.NO_ROOM and self._stuck.may_be_passed(turns.head(account)):
            turns.pass_over(account)
            return True
        if verdict is _Verdict.LAST_ROW and due is None:
            turns.pass_over(account)
            return True
        return verdict is _Verdict.HELD_BACK and due is None

    def _run_chunk(
        self, chunk: Sequence, account: Account, budget: PrefillBudget, slices: dict[int, Slice]
    ) -> bool:
        """A running prompt's next slice; False when it stalled."""
        start = chunk.num_computed
        count = min(chunk.num_pending, budget.most(start))
        if chunk.state is not SequenceState.RUNNING or count < 1:
            return True
        placed = self._place(chunk, count, slices)
        if chunk.state is SequenceState.RUNNING and chunk.row in slices:
            budget.spend(start, count)
            self.accounts.charge(account, start, count)
        return placed

    def _place(self, sequence: Sequence, count: int, slices: dict[int, Slice]) -> bool:
        """Find blocks for `count` tokens, preempting others if need be. False when the sequence did not get them."""
        if sequence.state is not SequenceState.RUNNING:
            return False  # a victim of this very step
        clean = True
        end = sequence.num_computed + count
        while not self.room.has(sequence, self.cache.missing(sequence, end)):
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
            new_epochs=self.cache.epochs(blocks) if blocks else (),
        )

    def _victim(self, needy: Sequence) -> Sequence | None:
        return victims.for_blocks(
            self._may_leave(), self.room.reserved, needy, self.cache, self.accounts
        )

    def _may_leave(self) -> list[Sequence]:
        """Who runs and did not start in this very step, which a rank would not understand."""
        return [s for s in self.running if s.row not in self._starts]

    def _preempt(self, sequence: Sequence) -> None:
        sequence.num_computed_before = max(sequence.num_computed_before, sequence.num_computed)
        sequence.counted_to = max(sequence.counted_to, sequence.num_computed_before)
        self._leave(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        match = self.cache.match(sequence)
        self.accounts.enqueue(sequence, sequence.num_tokens - match.num_tokens)

    # -- admission -----------------------------------------------------------------------------------------------

    def _start_head(
        self,
        account: Account,
        turns: Turns,
        budget: PrefillBudget,
        slices: dict[int, Slice],
        now: float,
    ) -> _Verdict:
        """Start the first in the account's queue, if there is room for it."""
        sequence = turns.head(account)
        if sequence is None:
            turns.pass_over(account)
            return _Verdict.HELD_BACK
        if not self._rows:
            return _Verdict.NO_ROW
        if len(self._rows) == 1 and self._keeps_row and self.accounts.leaves_last_row(account):
            return _Verdict.LAST_ROW
        match = self.cache.match(sequence)
        left = sequence.num_tokens - match.num_tokens
        count = min(left, budget.most(match.num_tokens))
        if count < 1 or (count < left and not self.limits.enable_chunked_prefill):
            return _Verdict.NO_BUDGET
        if self.room.twin_is_computing(sequence, match, self.running):
            turns.hold_back(account)
            return _Verdict.HELD_BACK
        if not self._is_room_for(sequence, match):
            return _Verdict.NO_ROOM
        self.accounts.dequeue(sequence)
        start = self._start(sequence, match, count, now)
        self._starts[sequence.row] = start
        slices[sequence.row] = self._slice(sequence, count, ())
        self._pending += max(0, left - count - 1)
        budget.spend(match.num_tokens, count)
        self.accounts.charge(account, match.num_tokens, count)
        self._stuck.note_start(sequence)
        return _Verdict.STARTED

    def _is_room_for(self, sequence: Sequence, match: Match) -> bool:
        """Whether blocks and, where it is bounded, the time of a step allow one more; an account may always have a row."""
        if self.step_time.is_fitted and self.accounts.of(sequence.request).rows:
            rows = len(self.running) + 1
            context = self.accounts.settled_context() + sequence.num_tokens
            if not fits_row(self.limits, self.step_time.line, rows, context):
                return False
        return self.room.admits(sequence, match, self.running)

    def _take_row_for(self, starved: Account, slices: dict[int, Slice], now: float) -> None:
        """Free a row, and its blocks, for an account far below its share, from one above its own; now and then."""
        head = starved.waiting[0] if starved.waiting else None
        if head is None or now - head.request.arrived < victims.PATIENCE_S:
            return
        if self.counters.num_steps - self._row_taken_at < victims.PAUSE_STEPS:
            return
        victim = victims.for_row(
            starved, self._may_leave(), self.room.reserved, self.cache, self.accounts
        )
        if victim is not None:
            self._row_taken_at = self.counters.num_steps
            slices.pop(victim.row, None)
            self._preempt(victim)

    def _order(self, sequence: Sequence) -> tuple[float, ...]:
        return self.policy.order(sequence.request)

    def _start(self, sequence: Sequence, match: Match, count: int, now: float) -> SequenceStart:
        self.cache.admit(sequence, match)
        self.cache.extend(sequence, match.num_tokens + count)
        sequence.state = SequenceState.RUNNING
        sequence.row = self._rows.pop()
        self._by_row[sequence.row] = sequence
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.num_cached = min(match.num_tokens, sequence.num_prompt)
            if self.cache.looks_up(sequence):
                self.counters.prefix_queries += sequence.num_tokens
                self.counters.prefix_hits += match.num_tokens
        sequence.num_matched = match.num_tokens
        self.room.start(sequence)
        self.accounts.start(sequence)
        bisect.insort(self.running, sequence, key=self._order)
        return SequenceStart(
            row=sequence.row,
            request=sequence.request,
            token_ids=tuple(sequence.token_ids),
            blocks=tuple(tuple(table) for table in sequence.blocks),
            epochs=self.cache.epochs(sequence.blocks),
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
            if piece.start < sequence.counted_to:
                line = self.accounts.line if self.step_time.is_fitted else None
                self.counters.count(sequence, piece, line)
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
                end = end_of(sequence, token_id)
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
        if token_ids or outcome.prompt_logprobs is not None:
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
        self.room.leave(sequence)
        self.accounts.leave(sequence)
        del self._by_row[sequence.row]
        self._rows.append(sequence.row)
        self._ended_rows.append(sequence.row)
        sequence.row = -1

    def _drop(self, sequence: Sequence) -> None:
        if sequence.state is SequenceState.RUNNING:
            self._leave(sequence)
        else:
            self.accounts.dequeue(sequence)
        sequence.state = SequenceState.FINISHED
        del self.by_id[sequence.id]

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> Failed:
        if (
            error.status >= 500
        ):  # not the caller's doing: what it left in the cache is not to be built on
            self.counters.count_fault(error)
            self.cache.distrust(sequence)
        self._drop(sequence)
        return Failed(id=sequence.id, error=error)

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_token: int | None) -> Finished:
        if sequence.admitted_at is not None and sequence.request.max_tokens:
            self.room.growth.learn(
                sequence.request, sequence.num_output, cut_off=reason == "length"
            )
        self._drop(sequence)
        return finished(sequence, reason, stop_token)

    def stats(self) -> EngineStats:
        """A snapshot for the meters."""
        return self.counters.snapshot(
            num_running=len(self.running),
            num_waiting=self.accounts.num_waiting,
            num_blocks=self.cache.num_blocks,
            num_free_blocks=self.cache.num_free,
            queued_tokens=self.accounts.queued_tokens,
            pending_tokens=len(self.running) + self._pending,
            step_time=self.step_time.line,
        )
