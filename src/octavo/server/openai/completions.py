"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.engine.frontend import Delta, Generation
from octavo.server.call import Call
from octavo.server.openai.answer import Usage, check_body, respond
from octavo.server.openai.fold import first_set, fold, join_ids
from octavo.server.openai.logprobs import (
    CompletionLogprobs,
    PromptLogprobs,
    completion_logprobs,
    prompt_logprobs,
)
from octavo.server.openai.output_format import check_output_format
from octavo.server.openai.prompts import completion_prompts
from octavo.server.openai.sampling import caller_of, sampling_params
from octavo.server.parse import Parser
from octavo.server.schema import CompletionBody
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
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = sampling_params(
        body, state.default_sampling, logprobs=body.logprobs, max_tokens=max_tokens
    )
    caller = caller_of(call.caller, body, state)
    check_body(body, 1)
    state.check_accepting()
    await check_output_format(state.frontend, body, params)
    adds = body.add_special_tokens is not False
    prompts = await completion_prompts(state.frontend, body.prompt, add_special_tokens=adds)
    check_body(body, len(prompts))
    answer_id = f"cmpl-{call.id}"
    generations = [
        state.frontend.start(
            ids,
            params,
            caller=caller,
            request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{index}",
        )
        for index, ids in enumerate(prompts)
    ]
    form = _Form(answer_id, model, state.frontend.tokenizer, body, generations)
    return respond(call, body, generations, form)


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
        self._n = body.n or 1
        self._wants_ids = bool(body.return_token_ids)
        self._generations = generations
        self._begun: set[int] = set()

    num_reasoning_tokens = None

    def pieces(self, prompt_index: int, delta: Delta) -> list[Choice]:
        """The piece of a delta that says something, else nothing."""
        index = prompt_index * self._n + delta.index
        is_first = index not in self._begun
        says = delta.text or delta.finish_reason or delta.prompt_logprobs is not None
        if not says and delta.logprobs is None and not (self._wants_ids and delta.token_ids):
            return []
        self._begun.add(index)
        piece = Choice(
            index=index,
            text=delta.text,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if delta.logprobs is not None:
            piece.logprobs = completion_logprobs(self._tokenizer, delta.logprobs, delta.offsets)
        if delta.prompt_logprobs is not None:
            piece.prompt_logprobs = prompt_logprobs(self._tokenizer, delta.prompt_logprobs)
        if self._wants_ids:
            piece.token_ids = list(delta.token_ids)
            if is_first:
                prompt = self._generations[prompt_index].requests[0].token_ids
                piece.prompt_token_ids = list(prompt)
        return [piece]

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


def _join_logprobs(parts: Sequence[CompletionLogprobs], num_chars: int) -> CompletionLogprobs:
    # Tokens of a stop string that is cut off begin at the end of the text; a stream could not know that in time.
    return CompletionLogprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[value for part in parts for value in part.token_logprobs],
        top_logprobs=[tops for part in parts for tops in part.top_logprobs],
        text_offset=[min(at, num_chars) for part in parts for at in part.text_offset],
    )
