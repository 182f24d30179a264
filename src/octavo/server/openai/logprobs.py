"""Log-probabilities in the shapes that the endpoints answer with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import msgspec

from octavo.core.result import TokenLogprobs
from octavo.text.tokenizer import Tokenizer

Name = Callable[[int], str]
"""How a token is written in logprobs."""

_LOWEST = -9999.0
"""JSON has no minus infinity; this stands for it, as in the OpenAI API."""


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Of /v1/completions: parallel lists, one entry per token."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    """None for the first token of an echoed prompt, which nothing predicts."""
    text_offset: list[int] = []
    """Where the token begins in the choice's text, in characters."""


class TopLogprob(msgspec.Struct, kw_only=True):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TopLogprob, kw_only=True):
    """One token of a chat answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """Of /v1/chat/completions."""

    content: list[ChatTokenLogprob] = []


class PromptLogprob(msgspec.Struct, kw_only=True):
    """One candidate at a prompt position."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""Per prompt position, by token id; the first has none."""


def names_of(tokenizer: Tokenizer, as_ids: bool | None) -> Name | None:
    """How a call wants its tokens written; None: as the endpoint usually does."""
    return (lambda token_id: f"token_id:{token_id}") if as_ids else None


def completion_logprobs(
    tokenizer: Tokenizer,
    rows: Iterable[TokenLogprobs],
    offsets: Iterable[int],
    name: Name | None = None,
) -> CompletionLogprobs:
    """Shape for completions. `top_logprobs` holds the token at hand beside the likeliest ones."""
    shaped = CompletionLogprobs()
    name = name or functools.partial(_name, tokenizer)
    for row, offset in zip(rows, offsets, strict=True):
        names = [name(token_id) for token_id in row.token_ids]
        shaped.tokens.append(names[0])
        shaped.token_logprobs.append(_finite(row.logprobs[0]))
        # Two tokens may have one text: the likelier one, which comes first, stays.
        tops: dict[str, float] = {}
        for top, logprob in zip(names[1:], row.logprobs[1:], strict=True):
            tops.setdefault(top, _finite(logprob))
        tops.setdefault(names[0], _finite(row.logprobs[0]))
        shaped.top_logprobs.append(tops)
        shaped.text_offset.append(offset)
    return shaped


def echoed_logprobs(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    rows: Sequence[TokenLogprobs],
    offsets: Sequence[int],
    name: Name | None = None,
) -> CompletionLogprobs:
    """The prompt's part of an echoed completion; `rows` begin with the second token."""
    shaped = completion_logprobs(tokenizer, rows, offsets[1:], name)
    shaped.tokens.insert(0, (name or functools.partial(_name, tokenizer))(prompt[0]))
    shaped.token_logprobs.insert(0, None)
    shaped.top_logprobs.insert(0, None)
    shaped.text_offset.insert(0, 0)
    return shaped


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The token's text; for a part of a character `bytes:\xe2\x80`, as the OpenAI API spells it."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(
    tokenizer: Tokenizer, rows: Iterable[TokenLogprobs], name: Name | None = None
) -> ChatLogprobs:
    """Shape for chat completions."""
    name = name or tokenizer.token_text
    content: list[ChatTokenLogprob] = []
    for row in rows:
        own, *tops = [
            TopLogprob(
                token=name(token_id),
                logprob=_finite(logprob),
                bytes=list(tokenizer.token_bytes(token_id)),
            )
            for token_id, logprob in zip(row.token_ids, row.logprobs, strict=True)
        ]
        content.append(
            ChatTokenLogprob(
                token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=tops
            )
        )
    return ChatLogprobs(content=content)


def prompt_logprobs(
    tokenizer: Tokenizer, rows: Iterable[TokenLogprobs], most: int | None = None
) -> PromptLogprobs:
    """Shape for prompt positions 0, 1, ...; the rows begin with position 1. At most `most` candidates beside the token."""
    shaped: PromptLogprobs = [None]
    for given in rows:
        row = given if most is None else trimmed(given, most)
        ranks = (row.rank, *range(1, len(row.token_ids)))
        position: dict[str, PromptLogprob] = {}
        for token_id, logprob, rank in zip(row.token_ids, row.logprobs, ranks, strict=True):
            position.setdefault(
                str(token_id),
                PromptLogprob(
                    logprob=_finite(logprob),
                    rank=rank,
                    decoded_token=tokenizer.token_text(token_id),
                ),
            )
        shaped.append(position)
    return shaped


def trimmed(row: TokenLogprobs, most: int) -> TokenLogprobs:
    """The row with `most` of its likeliest tokens."""
    return TokenLogprobs(row.token_ids[: 1 + most], row.logprobs[: 1 + most], row.rank)


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
