"""Log-probabilities of the tokens of messages: those of reasoning, calls and their markers are not among them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from octavo.core.result import TokenLogprobs
from octavo.engine.frontend import Delta
from octavo.server.openai.logprobs import ChatTokenLogprob, chat_logprobs
from octavo.text.tokenizer import Tokenizer


class TextLogprobs:
    """Deals out an output's tokens to the pieces of its text, in order. Owner: the writer of the response.

    A token that reaches into a piece is the piece's, and each is dealt out once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: deque[tuple[int, TokenLogprobs]] = deque()
        """Where each begins in the text, and its row."""
        self._spans: deque[tuple[int, int]] = deque()

    def add(self, delta: Delta, spans: Iterable[tuple[int, int]]) -> None:
        """The tokens of a delta, and where in the text the content stands that it made known."""
        self._tokens.extend(zip(delta.offsets, delta.logprobs or (), strict=True))
        self._spans.extend(spans)

    def of(self, text: str) -> list[ChatTokenLogprob]:
        """Of the next piece of content."""
        rows: list[TokenLogprobs] = []
        left = len(text)
        while left:
            start, end = self._spans.popleft()
            if end - start > left:
                self._spans.appendleft((start + left, end))
                end = start + left
            left -= end - start
            rows += self._within(start, end)
        return chat_logprobs(self._tokenizer, rows).content

    def _within(self, start: int, end: int) -> list[TokenLogprobs]:
        tokens, rows = self._tokens, []
        while tokens and tokens[0][0] < end:
            offset, row = tokens.popleft()
            # The text of a token ends where the next one begins; that of the last one reaches as far as is told.
            if offset >= start or not tokens or tokens[0][0] > start:
                rows.append(row)
        return rows
