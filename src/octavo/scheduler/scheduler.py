"""Who runs next. Pure: `schedule(now)` makes a plan, `apply(result)` takes what came of it; no clock, no I/O, no torch.

There is one kind of work: a sequence has tokens that still have to go through the model (`num_pending`). One pending
token is a decode, more are a prompt or what a preemption threw away; both get slices of the same plan.

A step is filled in this order: running sequences with one pending token; then prompts, within the budget for them, from
the account served least (`accounts.py`): its running chunks, then the heads of its queue. A head starts only if blocks
for all its known tokens are free, what the running ones are predicted to grow by is spared (`room.py`) and the step
stays under `max_itl_s`. Within an account nobody overtakes the head. Others may, MAX_PASSED times: then all wait with
it. A step looks at MAX_IN_VAIN heads that cannot start, however many wait. When a running sequence finds no block, another
gives way (`victims.py`), goes back to its place in the queue and is computed again later (mostly from its own cached
blocks).

Progress: whoever runs moves on unless it stalls for blocks or gives way. It gives way MAX_PREEMPTIONS times at most: then
it starts again only with everything it can need reserved, and always runs through. Stalling ends when the reserved ones
do, for while anyone stalls nobody starts, and the first in order never gives way. A head ends waiting: the clocks of
accounts rise as they are served and its own does not, so its account comes first; the requests that pass it are
counted; those that run end, and alone it starts whenever it fits into the pool, which `add` has checked. So every
request ends. `tests/sim` drives this against `invariants.check`.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from octavo.cache.groups import KVCache
from octavo.core.errors import ContextLengthError, ErrorInfo, OverloadError
from octavo.core.plan import Decodes, SequenceStart, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import (
    EngineStats,
    Event,
    Failed,
    Finished,
    FinishReason,
    Pooled,
    StepResult,
)
from octavo.core.sequence import Sequence, SequenceState
from octavo.scheduler import ahead, victims
from octavo.scheduler.accounts import Account, Accounts
from octavo.scheduler.budget import PrefillBudget, fits_row
from octavo.scheduler.cohort import Cohort
from octavo.scheduler.deadlines import Deadlines
from octavo.scheduler.ends import end_of, expired, finished, take
from octavo.scheduler.limits import MANY_ROWS, Limits
from octavo.scheduler.places import Places
from octavo.scheduler.policies.base import Policy
from octavo.scheduler.room import Room
from octavo.scheduler.stats import Counters
from octavo.scheduler.steptime import StepTimeFit, context_of, is_mixed
from octavo.scheduler.turns import Stuck, Turns, Verdict
from octavo.scheduler.waits import Waits


class Scheduler:
    """Owner of all sequences. Calls alternate: any number of `add` and `cancel`, then `schedule`, then `apply`; or, with one
    step under way, `foresee` of that step, `schedule` of the next, `apply` of the first.
    """

    def __init__(self, limits: Limits, cache: KVCache, policy: Policy) -> None:
        self.limits = limits
        self.cache = cache
        self.policy = policy
        self.accounts = Accounts(policy)
        self.room = Room(cache, limits)
        self.counters = Counters()
        self.places = Places(limits.max_num_seqs, cache, self.accounts, self.room, self.counters)
        self.step_time = StepTimeFit()
        self._deadlines = Deadlines(self.places.by_id)
        self.waits = Waits()
        """Why those who wait did not start in the last step."""
        self._stuck = Stuck()
        self._starts: dict[int, SequenceStart] = {}  # of this step, by row
        self._row_taken_at = 0
        self._keeps_row = limits.max_num_seqs >= MANY_ROWS
        self._pending = 0
        self._cohort: Cohort | None = None

    @property
    def running(self) -> list[Sequence]:
        """Everyone who runs, in the policy's order, as they are now."""
        self._catch_up()
        return self.places.running

    @property
    def by_id(self) -> dict[str, Sequence]:
        """Everyone who waits or runs, as they are now."""
        self._catch_up()
        return self.places.by_id

    def _catch_up(self) -> None:
        """Before anyone looks at what sequences that run know of themselves, or at their tokens."""
        if self._cohort is not None:
            self._cohort.catch_up()
            self._cohort.foretell()

    @property
    def has_work(self) -> bool:
        """Whether `schedule` could run something."""
        return bool(self.accounts.num_waiting or self.places.running)

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
        self.places.enter(sequence)
        if request.deadline is not None:
            self._deadlines.add(request.deadline, request.id)
        end = end_of(sequence, request.resumed[-1]) if request.resumed else None
        return [] if end is None else [self._finish(sequence, *end)]

    def expire(self, now: float) -> list[Event]:
        """End what is worth nothing any more, waiting or running. O(1) when nothing is; call it before `schedule`."""
        events: list[Event] = []
        for sequence in self._deadlines.passed(now):
            self._catch_up()
            late = expired(sequence, now)
            self.places.drop(sequence)  # no fault: what it computed stays good
            events.append(Failed(id=sequence.id, error=late))
        return events

    def cancel(self, request_id: str, reason: FinishReason = "abort") -> list[Event]:
        """End a request now, wherever it stands; [] when it is not (or no longer) known.

        `reason` is "stop" where its caller has all that was asked for: a stop string is found in text, which is not here.
        """
        sequence = self.places.by_id.get(request_id)
        if sequence is None:
            return []
        self._catch_up()
        if reason == "abort":
            computed = max(sequence.num_computed, sequence.num_computed_before)
            self.counters.aborted_tokens += max(0, computed - sequence.num_cached)
        return [self._finish(sequence, reason, None)]

    # -- plan ----------------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan | None:
        """The next step, or None when nothing can run."""
        slices: dict[int, Slice] = {}  # by row
        self._starts = {}
        chunks: list[Sequence] = []
        decodes = self._schedule_cohort()
        stalled = decodes is None and self._schedule_decodes(slices, chunks)
        self.waits.begin(stalled=stalled)
        self._pending = 0  # of running prompts, beyond the one token that every row has pending
        if chunks or (self.accounts.num_waiting and not stalled):
            if decodes is not None:
                slices = dict(zip(decodes.rows, decodes, strict=True))
            self._schedule_prompts(slices, chunks, now, admitting=not stalled)
            decodes = decodes if self._is_same() else None
        if decodes is None and not slices and not self.places.ended_rows:
            return None
        self.counters.num_steps += 1
        self.accounts.tick(self.step_time.line if self.step_time.is_fitted else None)
        return StepPlan(
            step=self.counters.num_steps,
            ended=self.places.take_ended_rows(),
            starts=tuple(self._starts.values()),
            slices=tuple(slices.values()) if decodes is None else decodes,
        )

    def _schedule_cohort(self) -> Decodes | None:
        """The slices of everyone who runs, where each has one token pending and there are blocks for all."""
        if not self._is_same():
            self._cohort = Cohort.of(self.places.running, self.places.num_moves)
        decodes = None if self._cohort is None else self._cohort.plan(self.cache, self.room)
        if decodes is None:
            self._catch_up()
            self._cohort = None
        return decodes

    def _is_same(self) -> bool:
        """Whether nobody came or left since the cohort was made."""
        cohort = self._cohort
        return cohort is not None and cohort.num_moves == self.places.num_moves

    def _schedule_decodes(self, slices: dict[int, Slice], chunks: list[Sequence]) -> bool:
        """Give every running sequence with one token its slice and note the others; True when one stalled or gave way."""
        stalled = False
        running = SequenceState.RUNNING
        for sequence in tuple(self.places.running):  # a victim leaves the list
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
        turns = Turns(
            accounts, self._stuck, [s for s in chunks if s.state is SequenceState.RUNNING]
        )
        self.room.begin()
        starved: Account | None = None
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
            head = turns.head(account)
            verdict = self._start_head(account, turns, budget, slices, now)
            if head is not None:
                self.waits.note(head, verdict)
            if verdict in (Verdict.NO_ROW, Verdict.NO_ROOM):
                starved = starved or account
            admitting = turns.goes_on(verdict, account, due)
        if admitting and budget.most(0) <= 0:
            self.waits.fill()
        turns.end()
        for sequence in chunks:
            if sequence.state is SequenceState.RUNNING:
                piece = slices.get(sequence.row)
                left = sequence.num_pending - (piece.count if piece is not None else 0)
                self._pending += max(0, left - 1)
        if starved is not None:
            self._take_row_for(starved, slices, now)

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
            self.places.preempt(victim)
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
        return [s for s in self.places.running if s.row not in self._starts]

    # -- admission -----------------------------------------------------------------------------------------------

    def _start_head(
        self,
        account: Account,
        turns: Turns,
        budget: PrefillBudget,
        slices: dict[int, Slice],
        now: float,
    ) -> Verdict:
        """Start the first in the account's queue, if there is room for it."""
        sequence = turns.head(account)
        if sequence is None:
            turns.pass_over(account)
            return Verdict.HELD_BACK
        if not self.places.num_free_rows:
            return Verdict.NO_ROW
        if (
            self.places.num_free_rows == 1
            and self._keeps_row
            and self.accounts.leaves_last_row(account)
        ):
            return Verdict.LAST_ROW
        if self.room.has_refused(sequence):
            return Verdict.NO_ROOM
        if self.room.has_seen_enough():
            return Verdict.NO_BUDGET
        self._catch_up()
        num_cached = self.cache.reach(sequence)
        if not budget.first(sequence.num_tokens, num_cached):
            return Verdict.NO_BUDGET
        if self.room.twin_is_computing(sequence, num_cached, self.places.running):
            turns.hold_back(account)
            return Verdict.HELD_BACK
        if not self._is_time_for(sequence):
            return Verdict.NO_ROOM
        match = self.cache.match(sequence)
        count = budget.first(sequence.num_tokens, match.num_tokens)
        if not count:
            return Verdict.NO_BUDGET
        if not self.room.admits(sequence, match, self.places.running):
            return Verdict.NO_ROOM
        start = self.places.start(sequence, match, count, now)
        self._starts[sequence.row] = start
        slices[sequence.row] = self._slice(sequence, count, ())
        self._pending += max(0, sequence.num_pending - count - 1)
        budget.spend(match.num_tokens, count)
        self.accounts.charge(account, match.num_tokens, count)
        self._stuck.note_start(sequence)
        return Verdict.STARTED

    def _is_time_for(self, sequence: Sequence) -> bool:
        """Whether the time of a step, where it is bounded, allows one more row; an account may always have one."""
        if self.step_time.is_fitted and self.accounts.of(sequence.request).rows:
            rows = len(self.places.running) + 1
            context = self.accounts.settled_context() + sequence.num_tokens
            return fits_row(self.limits, self.step_time.line, rows, context)
        return True

    def _take_row_for(self, starved: Account, slices: dict[int, Slice], now: float) -> None:
        """Free a row, and its blocks, for an account far below its share, from one above its own; now and then."""
        head = starved.waiting[0] if starved.waiting else None
        if head is None or now - head.request.arrived < victims.PATIENCE_S:
            return
        if self.counters.num_steps - self._row_taken_at < victims.PAUSE_STEPS:
            return
        self._catch_up()
        victim = victims.for_row(
            starved, self._may_leave(), self.room.reserved, self.cache, self.accounts
        )
        if victim is not None:
            self._row_taken_at = self.counters.num_steps
            slices.pop(victim.row, None)
            self.places.preempt(victim)

    # -- apply ---------------------------------------------------------------------------------------------------

    def planned(self, plan: StepPlan) -> list[Sequence]:
        """The sequences of a plan just made, slice by slice: for `foresee` and `apply`, when rows may have changed hands. They
        may lag: they are for no other eyes.
        """
        cohort, by_row = self._cohort, self.places.by_row
        if cohort is not None and cohort.decodes is plan.slices:
            return cohort.sequences
        return [by_row[piece.row] for piece in plan.slices]

    def foresee(self, plan: StepPlan, sequences: list[Sequence]) -> None:
        """Let the next plan count on a step that runs and has no results yet: whoever samples goes on from a token that is
        UNKNOWN. `schedule` and then `apply` of that step must follow, and nothing else in between.
        """
        if self._cohort is not None and self._is_same() and self._cohort.foresee(plan.slices):
            return
        self._catch_up()
        self._cohort = None  # it knows nothing of this
        ahead.foresee(plan.slices, sequences)

    def apply(
        self,
        plan: StepPlan,
        result: StepResult,
        now: float,
        sequences: list[Sequence] | None = None,
    ) -> Ordered[Event]:
        """Take a step's results: advance, append tokens, finish, free, publish prefixes.

        `sequences` is what `planned` said, where other calls came in between; those that have ended are passed over, and
        those that gave way meanwhile keep their tokens.
        """
        events: list[Event] = []
        self.counters.last_step_tokens = plan.num_tokens
        self.counters.last_step_s = result.elapsed_s
        if result.elapsed_s > 0:
            self.step_time.observe(
                plan.num_tokens, context_of(plan), result.elapsed_s, is_mixed=is_mixed(plan)
            )
        is_late = sequences is not None
        cohort = self._cohort
        if cohort is not None and cohort.awaited is plan.slices:
            advanced = cohort.take(result.slices, self.cache, now)
            if advanced is not None:
                self.counters.generation_tokens += len(advanced)
                return advanced
            cohort.catch_up()
            self._cohort = None
        elif not is_late:
            self._catch_up()
            self._cohort = None
        sequences = self.planned(plan) if sequences is None else sequences
        running = SequenceState.RUNNING
        for piece, outcome, sequence in zip(plan.slices, result.slices, sequences, strict=True):
            if is_late and not ahead.settle(piece, sequence):
                continue
            if outcome.error is not None:
                events.append(self._fail(sequence, outcome.error))
                continue
            if piece.start < sequence.counted_to:
                line = self.accounts.line if self.step_time.is_fitted else None
                self.counters.count(sequence, piece, line)
            if sequence.state is running:
                sequence.num_computed = piece.start + piece.count
                self.cache.advance(sequence)
            if outcome.pooled is not None:
                sequence.first_token_at = sequence.last_token_at = now
                events.append(
                    Pooled(id=sequence.id, values=outcome.pooled, num_cached=sequence.num_cached)
                )
                events.append(self._finish(sequence, "stop", None))
            elif outcome.token_ids or outcome.is_finished or outcome.prompt_logprobs is not None:
                token_out, end = take(sequence, outcome, now)
                if token_out is not None:
                    events.append(token_out)
                    self.counters.generation_tokens += len(token_out.token_ids)
                if end is not None:
                    events.append(self._finish(sequence, *end))
        if self._cohort is not None and not (self._is_same() and self._cohort.holds()):
            self._cohort = None
        return events

    def _fail(self, sequence: Sequence, error: ErrorInfo) -> Failed:
        if error.status >= 500:
            # Not the caller's doing: what it left in the cache is not to be built on.
            self.counters.count_fault(error)
            self.cache.distrust(sequence)
        self.places.drop(sequence)
        return Failed(id=sequence.id, error=error)

    def _finish(self, sequence: Sequence, reason: FinishReason, stop_token: int | None) -> Finished:
        if sequence.admitted_at is not None and sequence.request.max_tokens:
            self.room.growth.learn(
                sequence.request, sequence.num_output, cut_off=reason == "length"
            )
        self.places.drop(sequence)
        return finished(sequence, reason, stop_token)

    def stats(self) -> EngineStats:
        """A snapshot for the meters."""
        return self.counters.snapshot(
            num_running=len(self.places.running),
            num_waiting=self.accounts.num_waiting,
            num_blocks=self.cache.num_blocks,
            num_free_blocks=self.cache.num_free,
            queued_tokens=self.accounts.queued_tokens,
            pending_tokens=len(self.places.running) + self._pending,
            step_time=self.step_time.line,
        )
