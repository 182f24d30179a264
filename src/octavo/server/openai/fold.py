"""Pieces of choices to whole choices: what the endpoints' folds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from msgspec import UNSET, UnsetType

from octavo.server.openai.logprobs import CompletionLogprobs


class Indexed(Protocol):
    """A piece of a choice."""

    @property
    def index(self) -> int:
        """Of the choice to which it belongs."""
        ...


PieceT = TypeVar("PieceT", bound=Indexed)
WholeT = TypeVar("WholeT")
V = TypeVar("V")


def fold(
    pieces: Sequence[PieceT], fold_choice: Callable[[Sequence[PieceT]], WholeT]
) -> list[WholeT]:
    """Whole choices in order of their index, each folded from its pieces in order."""
    by_index: dict[int, list[PieceT]] = {}
    for piece in pieces:
        by_index.setdefault(piece.index, []).append(piece)
    return [fold_choice(by_index[index]) for index in sorted(by_index)]


def join_ids(parts: Sequence[list[int] | UnsetType]) -> list[int] | UnsetType:
    """All ids in a row; unset when none of the parts is set."""
    lists = [part for part in parts if part is not UNSET]
    return [token_id for ids in lists for token_id in ids] if lists else UNSET


def first_set(values: Sequence[V | UnsetType]) -> V | UnsetType:
    """The first value that is set."""
    return next((value for value in values if value is not UNSET), UNSET)


class Scored(Protocol):
    """A whole choice with its tokens' logprobs."""

    index: int
    logprobs: CompletionLogprobs | None


ScoredT = TypeVar("ScoredT", bound=Scored)


def best(choices: Sequence[ScoredT], of: int, n: int) -> list[ScoredT]:
    """Of every `of` choices in a row the `n` with the highest mean logprob per token, best first, numbered anew."""
    kept: list[ScoredT] = []
    for start in range(0, len(choices), of):
        ranked = sorted(choices[start : start + of], key=_mean_logprob, reverse=True)
        kept += ranked[:n]
    for index, choice in enumerate(kept):
        choice.index = index
    return kept


def _mean_logprob(choice: Scored) -> float:
    rows = (choice.logprobs or CompletionLogprobs()).token_logprobs
    values = [value for value in rows if value is not None]
    return sum(values) / max(1, len(values))
