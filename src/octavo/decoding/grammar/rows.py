"""The grammars of the running rows, and which tokens a step may choose. No torch: masks leave here as words of bits.

The masks of a step depend on tokens that are known when the step before it ends. They are begun there, and a thread
computes them while the loop reports, plans and runs the model; what costs less than handing it over is computed on the
spot. Where a grammar leaves one text only, its tokens are those that the tokenizer would write: the mask allows the first
of them alone, and `take` hands out the rest at once, so that jumping over them and choosing them one by one come to the
same.

Shape letters: R rows, M masks of one computation, W words of 32 tokens, N entries of a step, E end tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ErrorInfo
from octavo.core.request import Request
from octavo.decoding.grammar.base import Grammar, GrammarError, WordArray
from octavo.kernels.sampling import RowMasks

IdArray = npt.NDArray[np.int64]
R = TypeVar("R")

NO_IDS: IdArray = np.empty(0, np.int64)
MAX_JUMP = 64
"""Forced tokens taken in one step."""
_CHEAP_S = 500e-6
"""Masks of one step that take less are computed by the loop: on two cores the thread, which takes one from the model and
hands the interpreter to and fro, made a step of 16 rows 750 us longer, grammars in turn 280 (bundled model)."""
_SMOOTHING = 0.2


class StepMasks(NamedTuple):
    """What a step's entries may choose, of those that have a grammar."""

    choices: RowMasks | None = None
    """None where no entry has a mask."""
    ended: frozenset[int] = frozenset()
    """Entries whose output is complete: nothing is chosen for them."""
    failed: tuple[tuple[int, ErrorInfo], ...] = ()


class Taken(NamedTuple):
    """What follows from a row's new token."""

    forced: tuple[int, ...] = ()
    """Tokens that come after it without being chosen."""
    is_finished: bool = False
    error: ErrorInfo | None = None


_FINISHED = Taken(is_finished=True)


class _Row:
    """One request's grammar in its row."""

    def __init__(self, grammar: Grammar, request: Request) -> None:
        params = request.params
        self.grammar = grammar
        self.request = request
        # A caller that forbids or favours single tokens chooses among all ways to write a text.
        self.forces = not (
            params.logit_bias or params.allowed_token_ids or request.bad_words_ids
        )  # fmt: skip
        # Log-probabilities of a token need the logits before it.
        self.jumps = self.forces and params.logprobs is None
        self.queue: tuple[int, ...] = ()
        """Forced tokens that are still to come."""
        self._has_looked = False
        """Whether the queue says what follows; asking costs as much as a mask at times."""
        self.num_taken = 0
        self.place = -1
        """Its row."""
        self.is_ended = False
        """Whether its mask allows nothing but the end."""
        self.error: ErrorInfo | None = None

    def restart(self, place: int, output_ids: Sequence[int]) -> None:
        """Go back to the start, then take the output so far, as it was taken then."""
        self.place = place
        self.grammar.rollback(self.num_taken)
        self.num_taken, self.queue, self._has_looked = 0, (), False
        for token_id in output_ids:
            self.next_forced()
            self.take(token_id)

    def next_forced(self) -> int | None:
        """The next token, if the grammar leaves one text only; asked for unless that is known."""
        if self.forces and not self._has_looked:
            self._has_looked = True
            self.queue = self.grammar.forced()
        return self.queue[0] if self.queue else None

    def take(self, token_id: int) -> None:
        self.grammar.advance(token_id)
        self.num_taken += 1
        self.queue = self.queue[1:] if self.queue[:1] == (token_id,) else ()
        self._has_looked = bool(self.queue)


class Guard(Protocol):
    """Calls what concerns one row alone."""

    def __call__(self, row: int, phase: str, call: Callable[..., R], *args: Any) -> R | None:
        """`call(*args)`; None where that is the row's fault."""


def _unguarded(row: int, phase: str, call: Callable[..., R], *args: Any) -> R | None:
    return call(*args)


class GrammarRows:
    """Owner: the runner of one rank. `learn` and `forget` are the engine's to call."""

    def __init__(self, max_rows: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._shape = (max_rows, -(-vocab_size // 32))
        self._words_RW: WordArray = np.empty((0, 0), np.uint32)
        self._known: dict[str, _Row] = {}
        self._rows: dict[int, _Row] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._pending: list[tuple[list[_Row], Future[None]]] = []
        self._lacking: set[_Row] = set()
        """Rows that have no mask yet: nobody has begun it, or it threw."""
        self._mask_of_R: IdArray = np.full(max_rows, -1)
        """Where a row's mask is, by row; -1 where it has none, or is in one of the next two."""
        self._ended: set[int] = set()
        self._failed: dict[int, ErrorInfo] = {}
        self._mask_s = _CHEAP_S
        """What a mask took of late."""
        self.set_ends(())

    @property
    def is_in_use(self) -> bool:
        """Whether any running row has a grammar."""
        return bool(self._rows)

    def set_ends(self, eos_token_ids: Sequence[int]) -> None:
        """Take note of the model's end tokens, before the first grammar comes."""
        known = [token_id for token_id in eos_token_ids if token_id < self.vocab_size]
        ids = np.array(known, np.int64)
        self._end_words_E = ids // 32
        self._end_bits_E = (1 << (ids % 32)).astype(np.uint32)
        self._others_W = np.full(self._shape[1], 0xFFFFFFFF, np.uint32)
        np.bitwise_and.at(self._others_W, self._end_words_E, ~self._end_bits_E)

    def learn(self, request: Request, grammar: Grammar) -> None:
        """Keep the grammar of a request until `forget`."""
        self._known[request.id] = _Row(grammar, request)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._known.pop(request_id, None)

    def start(self, row: int, request: Request, output_ids: Sequence[int]) -> None:
        """A row begins, or begins again after a preemption."""
        if not request.grammar:
            return
        if not len(self._words_RW):
            self._words_RW = np.zeros(self._shape, np.uint32)
        known = self._known[request.id]
        if any(known in work for work, _ in self._pending):
            self.settle()  # the thread is at work on this very grammar
        self.remove(row)
        self._rows[row] = known
        try:
            known.restart(row, output_ids)
        except GrammarError as error:
            known.error = error.info()
        self._lacking.add(known)

    def remove(self, row: int) -> None:
        """The row is free."""
        known = self._rows.pop(row, None)
        if known is not None:
            self._lacking.discard(known)
            self._mask_of_R[row] = -1
            self._ended.discard(row)
            self._failed.pop(row, None)

    def begin(self, rows: IdArray) -> None:
        """Start on the masks of a step's entries that were not started on when their last token was taken."""
        if self._lacking:
            self._start_on(self._lacking_of(rows))

    def _lacking_of(self, rows: IdArray) -> list[_Row]:
        known = [self._rows.get(row) for row in rows.tolist()]
        return [row for row in known if row is not None and row in self._lacking]

    def masks(self, rows: IdArray) -> StepMasks | None:
        """Those of a step's entries, once they are done; None when no entry has a grammar."""
        if not self._rows:
            return None
        self.begin(rows)
        self.settle()
        if self._lacking:
            self._compute_lacking(rows)
        ended: list[int] = []
        failed: list[tuple[int, ErrorInfo]] = []
        if self._ended or self._failed:
            for n, row in enumerate(rows.tolist()):
                if row in self._ended:
                    ended.append(n)
                elif row in self._failed:
                    failed.append((n, self._failed[row]))
        of_N = self._mask_of_R[rows]
        choices = RowMasks(self._words_RW, of_N) if of_N.max(initial=-1) >= 0 else None
        return StepMasks(choices, frozenset(ended), tuple(failed))

    def take(
        self, rows: IdArray, token_ids: Sequence[int], guard: Guard = _unguarded
    ) -> dict[int, Taken]:
        """Entries' new tokens, -1 where there is none: entry -> what follows, where anything does. Begins the masks of
        what comes next. `guard` calls what concerns one row alone, and gives None where that threw what it may not.
        """
        found: dict[int, Taken] = {}
        going_on: list[_Row] = []
        for n, (row, token_id) in enumerate(zip(rows.tolist(), token_ids, strict=True)):
            known = self._rows.get(row)
            if known is None or token_id < 0:
                continue
            taken = guard(row, "grammar", self._take_or_fail, known, token_id)
            if taken is not None:
                found[n] = taken
            if taken is None or not (taken.is_finished or taken.error):
                going_on.append(known)
        self._start_on(going_on)
        return found

    def _take_or_fail(self, row: _Row, token_id: int) -> Taken | None:
        try:
            return self._take(row, token_id)
        except GrammarError as error:
            row.error = self._failed[row.place] = error.info()
            self._mask_of_R[row.place] = -1
            return Taken(error=row.error)

    def _take(self, row: _Row, token_id: int) -> Taken | None:
        row.take(token_id)
        if row.grammar.is_finished():
            return _FINISHED
        if not row.jumps or row.next_forced() is None:
            return None
        room = min(MAX_JUMP, row.request.max_tokens - row.num_taken)
        forced = row.queue[: max(0, room)]
        for each in forced:
            row.take(each)
        return Taken(forced=forced, is_finished=row.grammar.is_finished())

    def _start_on(self, work: list[_Row]) -> None:
        """Masks of these rows: here where that is cheap, else in the thread."""
        if not work:
            return
        for row in work:
            row.is_ended = False
        if not self._pending and self._mask_s * len(work) < _CHEAP_S:
            self._lacking.update(work)
            try:
                self._compute(work, in_turn=True)
            except Exception:  # edge of a step: tokens are kept; it throws again where the step can be run in parts
                return
            self._note(work)
            return
        self._lacking.difference_update(work)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "octavo-masks")
        self._pending.append((work, self._thread.submit(self._compute, work, in_turn=False)))

    def settle(self) -> None:
        """Wait for the thread. What it threw is computed again with the step that needs it."""
        pending, self._pending = self._pending, []
        for work, job in pending:
            if job.exception() is None:
                self._note(work)
            else:
                self._lacking.update(row for row in work if self._rows.get(row.place) is row)

    def _compute_lacking(self, rows: IdArray) -> None:
        """Masks that threw when they were begun: once more, and if they throw again it is the step that does."""
        work = self._lacking_of(rows)
        if work:
            self._compute(work, in_turn=True)
            self._note(work)

    def _note(self, done: list[_Row]) -> None:
        """What came of masks, of rows that are still there."""
        self._lacking.difference_update(done)
        for row in done:
            place = row.place
            if self._rows.get(place) is not row:
                continue
            self._mask_of_R[place] = -1 if row.is_ended or row.error else place
            if row.error is not None:
                self._failed[place] = row.error
            elif row.is_ended:
                self._ended.add(place)

    def _compute(self, work: list[_Row], *, in_turn: bool) -> None:
        """Fill in the masks of rows, errors and ends."""
        asked: list[_Row] = []
        for row in work:
            try:
                if row.error is not None:
                    continue
                forced = row.next_forced()
                if forced is not None:
                    self._words_RW[row.place] = 0
                    self._words_RW[row.place, forced // 32] = 1 << (forced % 32)
                elif row.grammar.is_finished():
                    row.is_ended = True
                else:
                    asked.append(row)
            except GrammarError as error:
                row.error = error.info()
        if not asked:
            return
        begun = time.perf_counter()
        backend = asked[0].grammar.backend
        backend.masks([(row.grammar, row.place) for row in asked], self._words_RW, in_turn=in_turn)
        took = (time.perf_counter() - begun) / len(asked)
        self._mask_s += _SMOOTHING * (took - self._mask_s)
        for row in asked:
            try:
                row.grammar.check()
            except GrammarError as error:
                row.error = error.info()
        self._look_for_ends(asked)

    def _look_for_ends(self, asked: list[_Row]) -> None:
        """Where nothing but an end is allowed, the output is complete; elsewhere a caller may want ends ignored."""
        words_RW = self._words_RW
        places_M = np.array([row.place for row in asked])
        ends_ME = words_RW[places_M[:, None], self._end_words_E] & self._end_bits_E
        at = np.flatnonzero(ends_ME.any(1))
        if not len(at):
            return
        goes_on = (words_RW[places_M[at]] & self._others_W).any(1)
        for m, has_others in zip(at.tolist(), goes_on.tolist(), strict=True):
            asked[m].is_ended = not has_others
            if has_others and not asked[m].request.eos_token_ids:
                words_RW[asked[m].place] &= self._others_W
