"""What a step may choose and what follows from it, by a grammar of fixed text: no library behind it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Grammar, GrammarError, WordArray
from octavo.decoding.grammar.rows import GrammarRows, StepMasks, Taken

EOS = 63


class Scripts:
    """A backend that notes who computes: the loop, in turn, or the thread."""

    def __init__(self) -> None:
        self.threads: list[str] = []

    def compile(self, wanted: StructuredOutputs) -> str:
        raise NotImplementedError

    def prepare(self) -> None:
        raise NotImplementedError

    def build(self, source: str) -> Grammar:
        raise NotImplementedError

    def masks(
        self, work: Sequence[tuple[Grammar, int]], words_RW: WordArray, *, in_turn: bool
    ) -> None:
        assert in_turn == (threading.current_thread() is threading.main_thread())
        self.threads.append(threading.current_thread().name)
        for grammar, row in work:
            assert isinstance(grammar, Script)
            grammar.failed = not grammar.sets[grammar.at]
            grammar.mask(words_RW[row])


class Script:
    """Allows the sets of a script one after the other; a set of one is forced."""

    def __init__(self, *sets: set[int]) -> None:
        self.sets, self.at, self.failed = sets, 0, False
        self.backend = Scripts()

    def check(self) -> None:
        if self.failed:
            raise GrammarError("the script is broken.", code="grammar_limit")

    def mask(self, words_W: WordArray) -> None:
        bits = np.zeros(64, np.uint8)
        bits[list(self.sets[self.at])] = 1
        words_W[:] = np.packbits(bits, bitorder="little").view(np.uint32)

    def advance(self, token_id: int) -> None:
        if token_id not in self.sets[self.at]:
            raise GrammarError("not in the script.", code="grammar_limit")
        self.at += 1

    def rollback(self, num_tokens: int) -> None:
        self.at -= num_tokens

    def forced(self) -> tuple[int, ...]:
        found = []
        for each in self.sets[self.at :]:
            if len(each) != 1 or EOS in each:
                break
            found += each
        return tuple(found)

    def is_finished(self) -> bool:
        return self.at == len(self.sets)


def rows_of(*scripts: Script, **options: object) -> GrammarRows:
    rows = GrammarRows(8, 64)
    rows.set_ends((EOS, 999))
    eos = () if options.get("ignore_eos") else (EOS,)
    for row, script in enumerate(scripts):
        params = SamplingParams(max_tokens=int(str(options.pop("max_tokens", 16))), **options)  # type: ignore[arg-type]
        request = Request(
            id=f"r{row}", token_ids=(1,), params=params, max_tokens=params.max_tokens or 16,
            seed=0, arrived=0.0, grammar="x", eos_token_ids=eos,
        )  # fmt: skip
        rows.learn(request, script)
        rows.start(row, request, ())
    return rows


def masks(rows: GrammarRows, *which: int) -> StepMasks:
    found = rows.masks(np.array(which, np.int64))
    assert found is not None
    return found


def take(rows: GrammarRows, row: int, token_id: int) -> Taken | None:
    return rows.take(np.array([row]), (token_id,)).get(0)


def allowed(found: StepMasks, n: int) -> set[int]:
    assert found.choices is not None and found.choices.of_N[n] >= 0
    words_W = found.choices.words_MW[found.choices.of_N[n]]
    return set(np.flatnonzero(np.unpackbits(words_W.view(np.uint8), bitorder="little")).tolist())


def test_rows_without_a_grammar_cost_nothing() -> None:
    rows = GrammarRows(8, 64)
    entries = np.array([0, 1])
    rows.begin(entries)
    assert rows.masks(entries) is None and not rows.take(entries, (5, 6)) and not rows.is_in_use
    rows = rows_of(Script({1, 2}))
    assert masks(rows, 0, 5).choices is not None
    assert masks(rows, 5) == StepMasks()


def test_few_many_and_neither() -> None:
    everything = set(range(64))
    rows = rows_of(Script({1, 2}, {3}), Script(everything - {EOS}), Script(set(range(30))))
    found = masks(rows, 2, 0, 1)
    assert allowed(found, 0) == set(range(30))
    assert allowed(found, 1) == {1, 2} and allowed(found, 2) == everything - {EOS}


def test_forced_text_comes_at_once_and_no_further_than_the_limit() -> None:
    rows = rows_of(Script({1, 2}, {3}, {4}, {5, 6}, {7}), max_tokens=16)
    masks(rows, 0)
    taken = take(rows, 0, 2)
    assert taken is not None and taken.forced == (3, 4) and not taken.is_finished
    assert allowed(masks(rows, 0), 0) == {5, 6}
    taken = take(rows, 0, 5)
    assert taken is not None and taken.forced == (7,) and taken.is_finished
    short = rows_of(Script({1, 2}, {3}, {4}, {5, 6}), max_tokens=2)
    taken = take(short, 0, 1)
    assert taken is not None and taken.forced == (3,)


def test_with_logprobs_forced_text_is_chosen_token_by_token() -> None:
    rows = rows_of(Script({1, 2}, {3}, {4}, {5, 6}), logprobs=0)
    for token_id, after in ((1, {3}), (3, {4}), (4, {5, 6})):
        assert take(rows, 0, token_id) is None
        assert allowed(masks(rows, 0), 0) == after


def test_a_row_begins_again_with_its_output() -> None:
    rows = rows_of(Script({1, 2}, {3}, {4, 5}, {6, 7}))
    take(rows, 0, 1)
    take(rows, 0, 4)
    request = rows._known["r0"].request
    rows.remove(0)
    rows.start(3, request, (1, 3, 5))
    assert allowed(masks(rows, 3), 0) == {6, 7}


def test_masks_are_begun_when_a_token_is_taken_and_computed_once() -> None:
    script = Script({1, 2}, {3, 4}, {5, 6})
    rows = rows_of(script)
    rows.begin(np.array([0]))
    assert allowed(masks(rows, 0), 0) == {1, 2}
    take(rows, 0, 1)
    for _ in range(2):
        assert allowed(masks(rows, 0), 0) == {3, 4}
    assert len(script.backend.threads) == 2


def test_what_is_cheap_is_computed_on_the_spot() -> None:
    script = Script(*[{1, 2}] * 100)
    rows = rows_of(script)
    masks(rows, 0)
    assert "octavo-masks" in script.backend.threads[-1]
    rows._mask_s = 1e-9
    take(rows, 0, 1)
    assert script.backend.threads[-1] == threading.main_thread().name
    rows._mask_s = 1.0
    take(rows, 0, 1)
    masks(rows, 0)
    assert "octavo-masks" in script.backend.threads[-1]


def test_a_computation_that_breaks_is_made_again() -> None:
    script = Script({1, 2}, {3, 4})
    rows = rows_of(script)
    for rows._mask_s in (1.0, 1e-9):
        sets, script.sets = script.sets, ({1, 2}, {1, 99})
        script.at = 1
        with pytest.raises(IndexError):
            masks(rows, 0)
        script.sets, script.at = sets, 0
    assert allowed(masks(rows, 0), 0) == {1, 2}


def test_the_end_is_for_the_engine_where_nothing_else_is_allowed() -> None:
    assert masks(rows_of(Script({EOS}, {1})), 0).ended == {0}
    assert allowed(masks(rows_of(Script({EOS, 4})), 0), 0) == {EOS, 4}
    assert allowed(masks(rows_of(Script({EOS, 4}), ignore_eos=True), 0), 0) == {4}
    assert masks(rows_of(Script()), 0).ended == {0}


def test_a_broken_grammar_is_its_own_entry_s_failure() -> None:
    rows = rows_of(Script(set()), Script({1, 2}))
    found = masks(rows, 0, 1)
    assert [(n, error.code) for n, error in found.failed] == [(0, "grammar_limit")]
    assert allowed(found, 1) == {1, 2}
    taken = take(rows, 1, 9)
    assert taken is not None and taken.error is not None and masks(rows, 1).failed
    rows.forget("r1")
    assert "r1" not in rows._known
