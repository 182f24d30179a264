"""POST /v1/completions."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.structs import replace
from starlette.types import ASGIApp

from octavo.core.errors import RequestError
from octavo.core.params import SamplingParams
from octavo.engine.frontend import Delta, Generation
from octavo.server.call import Call
from octavo.server.openai.answer import Usage, check_body, respond
from octavo.server.openai.echo import Echo, PromptOnly
from octavo.server.openai.fold import best, first_set, fold, join_ids
from octavo.server.openai.logprobs import (
    CompletionLogprobs,
    PromptLogprobs,
    completion_logprobs,
    names_of,
    prompt_logprobs,
)
from octavo.server.openai.output_format import check_output_format
from octavo.server.openai.prompts import completion_prompts, encode
from octavo.server.openai.sampling import caller_of, sampling_params
from octavo.server.openai.start import answer_id, begin, check_beams, truncated
from octavo.server.parse import Parser
from octavo.server.schema import CompletionBody
from octavo.text.fim import fill_in
from octavo.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
_parser = Parser(CompletionBody)


class Choice(msgspec.Struct, kw_only=True):
    """One choice, or a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """On the first piece of a choice."""
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """On the first piece of a choice."""


class Completion(msgspec.Struct, kw_only=True):
    """The answer, or a chunk of it."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None | UnsetType = UNSET


async def completions(call: Call) -> ASGIApp:
    """Continue each prompt n times."""
    body = await call.body(_parser)
    model = call.state.check_model(body.model)
    state = call.state
    # Before anything costly: what can be refused by looking at the body alone.
    _check_combinations(body)
    params = _params(body, state.default_sampling)
    caller = caller_of(call, body)
    check_body(body, 1)
    check_beams(body)
    ready = state.check_accepting()
    call.stay.glance(caller)
    await check_output_format(state.frontend, body, params)
    adds = body.add_special_tokens is not False
    prompts = await completion_prompts(
        state.frontend,
        body.prompt,
        add_special_tokens=adds,
        is_truncated=body.truncate_prompt_tokens is not None,
    )
    check_body(body, len(prompts))
    if body.suffix:
        suffix = await encode(state.frontend, body.suffix, add_special_tokens=False)
        prompts = [fill_in(state.frontend.tokenizer, ids, suffix) for ids in prompts]
    generations: list[Generation] = []
    for index, prompt in enumerate(prompts):
        ids, num_cut = truncated(prompt, body, params.max_tokens, ready.max_model_len)
        name = f"cmpl-{call.id}" if len(prompts) == 1 else f"cmpl-{call.id}-{index}"
        generation = begin(state, ids, num_cut, body, params, caller=caller, request_id=name)
        generations.append(PromptOnly(generation) if body.max_tokens == 0 else generation)
    requests = [request for generation in generations for request in generation.requests]
    call.stay.enter(caller, requests, is_searched=bool(body.use_beam_search))
    form = _Form(answer_id(call, body, "cmpl"), model, state.frontend.tokenizer, body, generations)
    return respond(call, body, generations, form)


def _params(body: CompletionBody, defaults: Mapping[str, float | int]) -> SamplingParams:
    """The parameters, with what `echo` and `best_of` need beside what was asked."""
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    logprobs = body.logprobs
    if body.best_of is not None and body.best_of > (body.n or 1):
        logprobs = logprobs or 0
    params = sampling_params(body, defaults, logprobs=logprobs, max_tokens=max_tokens)
    if body.echo and body.logprobs is not None:
        most = max(body.logprobs, body.prompt_logprobs or 0)
        params = replace(params, prompt_logprobs=most)
    return params if body.best_of is None else replace(params, n=body.best_of)


def _check_combinations(body: CompletionBody) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RequestError: naming the field.
    """

    def refuse(name: str, reason: str) -> NoReturn:
        raise RequestError(f"{name} {reason}.", param=name)

    if body.max_tokens == 0 and not body.echo:
        refuse("max_tokens", "is 0, which leaves nothing to answer; expected at least 1, or echo")
    if body.suffix:
        for name in ("echo", "truncate_prompt_tokens"):
            if getattr(body, name):
                refuse(name, "does not go with suffix")
    if body.echo and body.use_beam_search and body.logprobs is not None:
        refuse("logprobs", "of an echoed prompt do not go with use_beam_search")
    if body.best_of is not None and body.best_of != (body.n or 1):
        if body.best_of < (body.n or 1):
            refuse("best_of", f"is {body.best_of}; expected at least n={body.n}")
        for name in ("stream", "echo", "use_beam_search"):
            if getattr(body, name):
                refuse("best_of", f"does not go with {name}")


class _Form:
    """Writes one answer. The choices of prompt p are p * n, p * n + 1, ..."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        tokenizer: Tokenizer,
        body: CompletionBody,
        generations: Sequence[Generation],
    ) -> None:
        self._head = Completion(id=answer_id, created=int(time.time()), model=model, choices=[])
        self._tokenizer = tokenizer
        self._body = body
        self._n = len(generations[0].requests)
        self._name = names_of(tokenizer, body.return_tokens_as_token_ids)
        self._generations = generations
        self._echoes = [
            Echo(tokenizer, body, index, generation.requests[0].token_ids)
            for index, generation in enumerate(generations)
            if body.echo
        ]
        self._begun: set[int] = set()

    num_reasoning_tokens = None

    def pieces(self, prompt_index: int, delta: Delta) -> list[Choice]:
        """The piece of a delta that says something, else nothing."""
        index = prompt_index * self._n + delta.index
        is_first = index not in self._begun
        wants_ids = self._body.return_token_ids
        says = delta.text or delta.finish_reason or delta.prompt_logprobs is not None
        if not says and delta.logprobs is None and not (wants_ids and delta.token_ids):
            return []
        self._begun.add(index)
        piece = Choice(
            index=index,
            text=delta.text,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if delta.logprobs is not None:
            piece.logprobs = completion_logprobs(
                self._tokenizer, delta.logprobs, delta.offsets, self._name
            )
        if delta.prompt_logprobs is not None and self._body.prompt_logprobs is not None:
            piece.prompt_logprobs = prompt_logprobs(
                self._tokenizer, delta.prompt_logprobs, self._body.prompt_logprobs
            )
        if self._echoes:
            echo = self._echoes[prompt_index]
            self._echo(piece, echo, delta, is_first)
        if wants_ids:
            piece.token_ids = list(delta.token_ids)
            if is_first:
                prompt = self._generations[prompt_index].requests[0].token_ids
                piece.prompt_token_ids = list(prompt)
        return [piece]

    def _echo(self, piece: Choice, echo: Echo, delta: Delta, is_first: bool) -> None:
        """Put the prompt before a choice's first piece, and move what follows by its length."""
        if piece.logprobs is not None:
            piece.logprobs.text_offset = [at + len(echo.text) for at in piece.logprobs.text_offset]
        if not is_first:
            return
        piece.text = echo.text + piece.text
        # One that was ended before its prompt was computed has no logprobs to tell.
        if self._body.logprobs is not None and delta.finish_reason != "abort":
            shown = echo.logprobs(delta.prompt_logprobs or (), self._body.logprobs, self._name)
            own = [] if piece.logprobs is None else [piece.logprobs]
            piece.logprobs = _join_logprobs([shown, *own])

    def chunk(self, piece: Choice | None, usage: Usage | None | UnsetType) -> bytes:
        """One chunk of a stream."""
        head = self._head
        choices = [] if piece is None else [piece]
        return msgspec.json.encode(
            Completion(
                id=head.id, created=head.created, model=head.model, choices=choices, usage=usage
            )
        )

    def whole(self, pieces: Sequence[Choice], usage: Usage) -> bytes:
        """The fold of all pieces."""
        self._head.choices = fold(pieces, _fold_choice)
        if self._n > (self._body.n or 1):
            self._head.choices = best(self._head.choices, self._n, self._body.n or 1)
            for choice in self._head.choices:
                choice.logprobs = choice.logprobs if self._body.logprobs is not None else None
        self._head.usage = usage
        return msgspec.json.encode(self._head)


def _fold_choice(pieces: Sequence[Choice]) -> Choice:
    first, last = pieces[0], pieces[-1]
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    text = "".join(piece.text for piece in pieces)
    return Choice(
        index=first.index,
        text=text,
        logprobs=_join_logprobs(logprobs, len(text)) if logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=join_ids([piece.token_ids for piece in pieces]),
        prompt_token_ids=first.prompt_token_ids,
        prompt_logprobs=first_set([piece.prompt_logprobs for piece in pieces]),
    )


def _join_logprobs(
    parts: Sequence[CompletionLogprobs], num_chars: int = sys.maxsize
) -> CompletionLogprobs:
    # Tokens of a stop string that is cut off begin at the end of the text; a stream could not know that in time.
    return CompletionLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[value for part in parts for value in part.token_logprobs],
        top_logprobs=[tops for part in parts for tops in part.top_logprobs],
        text_offset=[min(at, num_chars) for part in parts for at in part.text_offset],
    )
