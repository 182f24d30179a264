"""Log-probabilities in the shapes that the endpoints answer with."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from octavo.core.result import TokenLogprobs
from octavo.text.tokenizer import Tokenizer

_LOWEST = -9999.0
"""JSON has no minus infinity; this stands for it, as in the OpenAI API."""


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Of /v1/completions: parallel lists, one entry per token."""

    tokens: list[str] = []
    token_logprobs: list[float] = []
    top_logprobs: list[dict[str, float]] = []
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


def completion_logprobs(
    tokenizer: Tokenizer, rows: Iterable[TokenLogprobs], offsets: Iterable[int]
) -> CompletionLogprobs:
    """Shape for completions. `top_logprobs` holds the token at hand beside the likeliest ones."""
    shaped = CompletionLogprobs()
    for row, offset in zip(rows, offsets, strict=True):
        names = [_name(tokenizer, token_id) for token_id in row.token_ids]
        shaped.tokens.append(names[0])
        shaped.token_logprobs.append(_finite(row.logprobs[0]))
        # Two tokens may have one text: the likelier one, which comes first, stays.
        tops: dict[str, float] = {}
        for name, logprob in zip(names[1:], row.logprobs[1:], strict=True):
            tops.setdefault(name, _finite(logprob))
        tops.setdefault(names[0], _finite(row.logprobs[0]))
        shaped.top_logprobs.append(tops)
        shaped.text_offset.append(offset)
    return shaped


def _name(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The token's text; for a part of a character `bytes:\xe2\x80`, as the OpenAI API spells it."""
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(tokenizer: Tokenizer, rows: Iterable[TokenLogprobs]) -> ChatLogprobs:
    """Shape for chat completions."""
    content: list[ChatTokenLogprob] = []
    for row in rows:
        own, *tops = [
            TopLogprob(
                token=tokenizer.token_text(token_id),
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


def prompt_logprobs(tokenizer: Tokenizer, rows: Iterable[TokenLogprobs]) -> PromptLogprobs:
    """Shape for prompt positions 0, 1, ...; the rows begin with position 1."""
    shaped: PromptLogprobs = [None]
    for row in rows:
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


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
