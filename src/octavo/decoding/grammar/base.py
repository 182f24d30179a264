"""What structured output is to the engine: a grammar per request, and a backend that makes them. No torch here, because
the front end and the compiling process stand on this, too.

Shape letters: R rows, W words of 32 tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs

WordArray = npt.NDArray[np.uint32]


class GrammarError(RequestError):
    """The constraint cannot be used, or ran into a limit."""

    default_code = "invalid_grammar"


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend has to know of a model's tokens."""

    tokenizer_json: str
    """The tokenizer with all added tokens, as `tokenizers` writes it."""
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    """The model's: masks are that long, and tokens that only pad it are never allowed."""


class Grammar(Protocol):
    """The state of one request's structured output. Owner: `rows.GrammarRows`.

    Every method but `rollback` raises `GrammarError` when a limit is passed; the grammar is of no use after that.
    """

    @property
    def backend(self) -> GrammarBackend:
        """Who made it."""

    def mask(self, words_W: WordArray) -> None:
        """Write which tokens may come next: bit t % 32 of word t // 32. Other threads may run meanwhile.

        End-of-sequence tokens are among them where the output may end. Not to be called when finished.
        """

    def advance(self, token_id: int) -> None:
        """Take a token that the mask allows."""

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens."""

    def forced(self) -> tuple[int, ...]:
        """Tokens of the only text that can come next, as the tokenizer itself would write it; maybe none."""

    def is_finished(self) -> bool:
        """Whether nothing can follow but the end."""

    def check(self) -> None:
        """Raise what `GrammarBackend.masks` could not."""


class GrammarBackend(Protocol):
    """Makes grammars for one vocabulary. May be used by several threads, one at a time."""

    def compile(self, wanted: StructuredOutputs) -> str:
        """The constraint in the backend's own words, proven to build and to allow something.

        Runs where it can be killed: time and memory are bounded by whoever calls.

        Raises:
            GrammarError: it is malformed, asks for what cannot be enforced, or is too large; `param` names the field.
        """

    def prepare(self) -> None:
        """Make once what building needs, so that the first grammar does not wait for it."""

    def build(self, source: str) -> Grammar:
        """A grammar at its start, from what `compile` gave.

        Raises:
            GrammarError: it does not build after all.
        """

    def masks(
        self, work: Sequence[tuple[Grammar, int]], words_RW: WordArray, *, in_turn: bool
    ) -> None:
        """As `Grammar.mask` for several, each into its row of `words_RW`; afterwards `Grammar.check` is to be asked.

        Other threads may run meanwhile. They are computed at once where cores are spare, unless `in_turn`, which is
        quicker where each takes microseconds.
        """
