"""The grammars of the running rows, and which tokens a step may choose. No torch: masks leave here as token ids.

Masks depend on tokens that are known when a step begins, so a thread computes them while the model runs. Where a grammar
leaves one text only, its tokens are those that the tokenizer would write: the mask allows the first of them alone, and
`take` hands out the rest at once, so that jumping over them and choosing them one by one come to the same.

Shape letters: M masks of one step, W words of 32 tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from octavo.core.errors import ErrorInfo
from octavo.core.request import Request
from octavo.decoding.grammar.base import Grammar, GrammarError, WordArray

IdArray = npt.NDArray[np.int64]

NO_IDS: IdArray = np.empty(0, np.int64)
_FEW_SHIFT = 5
"""Ids are few below a 32nd of the vocabulary: of 151,936, editing by ids took 530 us with 40 % of them, by words 53."""

MAX_JUMP = 64
"""Forced tokens taken in one step."""


class MaskedEntry(NamedTuple):
    """What one entry of a step may choose: by the ids that are few, else by a word for every token."""

    n: int
    ids: IdArray = NO_IDS
    is_allowed: bool = True
    """Whether `ids` are what is allowed, or what is not."""
    keep_V: npt.NDArray[np.int32] | None = None
    """All bits set for tokens that are allowed, none for others."""


class StepMasks(NamedTuple):
    """What a step's entries may choose, of those that have a grammar."""

    entries: tuple[MaskedEntry, ...] = ()
    ended: frozenset[int] = frozenset()
    """Entries whose output is complete: nothing is chosen for them."""
    failed: tuple[tuple[int, ErrorInfo], ...] = ()


class Taken(NamedTuple):
    """What follows from a row's new token."""

    forced: tuple[int, ...] = ()
    """Tokens that come after it without being chosen."""
    is_finished: bool = False
    error: ErrorInfo | None = None


_GOES_ON = Taken()
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
        self.error: ErrorInfo | None = None

    def restart(self, output_ids: Sequence[int]) -> None:
        """Go back to the start, then take the output so far, as it was taken then."""
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


class GrammarRows:
    """Owner: the runner of one rank. `learn` and `forget` are the engine's to call."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_ids: IdArray = np.empty(0, np.int64)
        self._known: dict[str, _Row] = {}
        self._rows: dict[int, _Row] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[StepMasks] | None = None

    @property
    def is_in_use(self) -> bool:
        """Whether any running row has a grammar."""
        return bool(self._rows)

    def set_ends(self, eos_token_ids: Sequence[int]) -> None:
        """Take note of the model's end tokens, before the first grammar comes."""
        known = [token_id for token_id in eos_token_ids if token_id < self.vocab_size]
        self.eos_ids = np.array(known, np.int64)

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
        known = self._rows[row] = self._known[request.id]
        try:
            known.restart(output_ids)
        except GrammarError as error:
            known.error = error.info()

    def remove(self, row: int) -> None:
        """The row is free."""
        self._rows.pop(row, None)

    def begin(self, rows: IdArray) -> None:
        """Start on the masks of the entries that will be chosen in this step."""
        self.settle()
        if not self._rows:
            return
        work = [(n, self._rows[row]) for n, row in enumerate(rows.tolist()) if row in self._rows]
        if not work:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "octavo-masks")
        self._pending = self._thread.submit(self._masks, work)

    def masks(self) -> StepMasks | None:
        """What was begun, once it is done; None when no entry has a grammar."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def take(self, row: int, token_id: int) -> Taken | None:
        """A row's new token; None when it has no grammar."""
        known = self._rows.get(row)
        if known is None:
            return None
        try:
            return self._take(known, token_id)
        except GrammarError as error:
            known.error = error.info()
            return Taken(error=known.error)

    def _take(self, row: _Row, token_id: int) -> Taken:
        row.take(token_id)
        if row.grammar.is_finished():
            return _FINISHED
        if not row.jumps or row.next_forced() is None:
            return _GOES_ON
        room = min(MAX_JUMP, row.request.max_tokens - row.num_taken)
        forced = row.queue[: max(0, room)]
        for each in forced:
            row.take(each)
        return Taken(forced=forced, is_finished=row.grammar.is_finished())

    def settle(self) -> None:
        """Be done with the masks of a step that is given up: they are of no use, and must not be computed beside others."""
        if self._pending is not None:
            self._pending.exception()
            self._pending = None

    def _masks(self, work: list[tuple[int, _Row]]) -> StepMasks:
        found, ended, failed = [], [], []
        masked: list[tuple[int, _Row]] = []
        words_MW = np.zeros((len(work), -(-self.vocab_size // 32)), np.uint32)
        for n, row in work:
            try:
                if row.error is not None:
                    failed.append((n, row.error))
                elif row.next_forced() is not None:
                    found.append(MaskedEntry(n, np.array(row.queue[:1], np.int64)))
                elif row.grammar.is_finished():
                    ended.append(n)
                else:
                    row.grammar.mask(words_MW[len(masked)])
                    masked.append((n, row))
            except GrammarError as error:
                row.error = error.info()
                failed.append((n, row.error))
        for (n, _), entry in zip(
            masked, self._entries(masked, words_MW[: len(masked)]), strict=True
        ):
            if entry is None:
                ended.append(n)
            else:
                found.append(entry)
        return StepMasks(tuple(found), frozenset(ended), tuple(failed))

    def _entries(
        self, masked: list[tuple[int, _Row]], words_MW: WordArray
    ) -> Iterator[MaskedEntry | None]:
        """Of each mask; None where nothing but the end is allowed."""
        bits_MV = np.unpackbits(words_MW.view(np.uint8), axis=1, bitorder="little")
        bits_MV = bits_MV[:, : self.vocab_size].view(np.bool_)
        few = self.vocab_size >> _FEW_SHIFT
        num_allowed_M = np.count_nonzero(bits_MV, axis=1).tolist()
        num_ends_M = np.count_nonzero(bits_MV[:, self.eos_ids], axis=1).tolist()
        for (n, row), bits_V, num_allowed, num_ends in zip(
            masked, bits_MV, num_allowed_M, num_ends_M, strict=True
        ):
            if num_allowed == num_ends:
                yield None
                continue
            if num_ends and not row.request.eos_token_ids:
                bits_V[self.eos_ids] = False  # ends are ignored while there is anything else
            if num_allowed <= few:
                yield MaskedEntry(n, np.flatnonzero(bits_V))
            elif num_allowed >= self.vocab_size - few:
                yield MaskedEntry(n, np.flatnonzero(~bits_V), is_allowed=False)
            else:
                yield MaskedEntry(n, keep_V=np.negative(bits_V.astype(np.int32)))
