"""From generations to an answer, streamed or whole. A whole answer is the fold of the pieces that a stream sends.

One path for both, so they cannot differ. A `Form` says how an endpoint writes pieces; nothing here knows JSON shapes
beyond `usage`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.core.errors import RequestError
from octavo.engine.frontend import Delta, Generation
from octavo.server.call import Call
from octavo.server.limits import MAX_CHOICES
from octavo.server.metered import metered
from octavo.server.schema import GenerateBody, StreamOptions
from octavo.server.stream import EventStream, event, unless_gone

P = TypeVar("P")


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """What output tokens were."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a call, counted from ids that were really processed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    truncated_tokens: int | UnsetType = UNSET
    """Prompt tokens left out, where the call asked for that."""


class Form(Protocol[P]):
    """How an endpoint writes its answer, in pieces of type P."""

    def pieces(self, prompt_index: int, delta: Delta) -> Sequence[P]:
        """What a delta adds to the answer; maybe nothing."""
        ...

    def chunk(self, piece: P | None, usage: Usage | None | UnsetType) -> bytes:
        """One chunk of a stream; without a piece it carries the usage alone."""
        ...

    def whole(self, pieces: Sequence[P], usage: Usage) -> bytes:
        """The fold of all pieces."""
        ...

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Of the output so far; None where nobody looks for reasoning."""
        ...


def usage_of(generations: Sequence[Generation], num_reasoning: int | None = None) -> Usage:
    """The usage of a call so far, over all its prompts."""
    prompt = sum(generation.usage.prompt_tokens for generation in generations)
    output = sum(generation.usage.completion_tokens for generation in generations)
    cached = sum(generation.usage.cached_tokens for generation in generations)
    cut = [generation.usage.truncated_tokens for generation in generations]
    given = [count for count in cut if count is not None]
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=prompt + output,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=UNSET
        if num_reasoning is None
        else CompletionTokensDetails(reasoning_tokens=num_reasoning),
        truncated_tokens=sum(given) if given else UNSET,
    )


def check_body(body: GenerateBody, num_prompts: int) -> None:
    """Refuse combinations of fields that make no sense, and too much fan-out.

    Raises:
        RequestError: naming the field.
    """
    if body.stream_options is not None and not body.stream:
        raise RequestError(
            "stream_options is set and stream is not.",
            param="stream_options",
            fix="Set stream to true.",
        )
    best_of = getattr(body, "best_of", None)
    num_choices = num_prompts * max(body.n or 1, best_of or 1)
    if num_choices > MAX_CHOICES:
        raise RequestError(
            f"{num_prompts} prompts times n={body.n} make {num_choices} choices; expected at most"
            f" {MAX_CHOICES}.",
            param="n",
        )


def respond(
    call: Call, body: GenerateBody, generations: Sequence[Generation], form: Form[P]
) -> ASGIApp:
    """The ASGI response of a generating call."""
    call.tab.reasoning = lambda: form.num_reasoning_tokens or 0
    if not body.stream:
        return _Whole(call, generations, form)
    options = body.stream_options or StreamOptions()

    def last_words() -> bytes:
        return (
            event(form.chunk(None, usage_of(generations, form.num_reasoning_tokens)))
            if options.include_usage
            else b""
        )

    return EventStream(_frames(call, generations, form, options), last_words)


async def _frames(
    call: Call, generations: Sequence[Generation], form: Form[P], options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    usage: Usage | None | UnsetType = None if options.include_usage else UNSET
    async with aclosing(metered(call, generations)) as deltas:
        async for prompt_index, delta in deltas:
            pieces = form.pieces(prompt_index, delta)
            if not pieces:
                continue
            if options.continuous_usage_stats:
                usage = usage_of(generations, form.num_reasoning_tokens)
            yield b"".join([event(form.chunk(piece, usage)) for piece in pieces])


class _Whole(Generic[P]):
    """ASGI response: everything at the end, unless the caller leaves before."""

    def __init__(self, call: Call, generations: Sequence[Generation], form: Form[P]) -> None:
        self._call = call
        self._generations = generations
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = await unless_gone(receive, self._collect())
        usage = usage_of(self._generations, self._form.num_reasoning_tokens)
        payload = self._form.whole(pieces, usage)
        await Response(payload, media_type="application/json")(scope, receive, send)

    async def _collect(self) -> list[P]:
        pieces: list[P] = []
        async with aclosing(metered(self._call, self._generations)) as deltas:
            async for prompt_index, delta in deltas:
                pieces.extend(self._form.pieces(prompt_index, delta))
        return pieces
