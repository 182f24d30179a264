"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.core.errors import ContextLengthError, RequestError
from octavo.engine.frontend import Delta, Generation, output_limit
from octavo.server.call import Call
from octavo.server.openai.answer import Usage, check_body, respond
from octavo.server.openai.fold import first_set, fold, join_ids
from octavo.server.openai.logprobs import (
    ChatLogprobs,
    PromptLogprobs,
    chat_logprobs,
    names_of,
    prompt_logprobs,
)
from octavo.server.openai.prompts import chat_prompt, echoed_text
from octavo.server.openai.sampling import caller_of, sampling_params
from octavo.server.openai.start import answer_id, begin, check_beams, truncated
from octavo.server.parse import Parser
from octavo.server.schema import ChatBody
from octavo.text.tokenizer import Tokenizer

_ROLE = "assistant"
_parser = Parser(ChatBody)


class Message(msgspec.Struct, kw_only=True):
    """A message, or a piece of one; the role comes first."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    """A piece of a choice."""

    index: int
    delta: Message
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class Choice(msgspec.Struct, kw_only=True):
    """A whole choice."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType


class Piece(msgspec.Struct, kw_only=True):
    """What one chunk carries beside its head. The prompt's part is on a choice's first piece."""

    choice: ChunkChoice
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Chunk(msgspec.Struct, kw_only=True):
    """One chunk of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The whole answer."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


async def chat_completions(call: Call) -> ASGIApp:
    """Answer a conversation n times."""
    body = await call.body(_parser)
    state = call.state
    model = state.check_model(body.model)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    # Before anything costly: what can be refused by looking at the body alone.
    logprobs = _num_logprobs(body)
    defaults = state.default_sampling
    params = sampling_params(body, defaults, logprobs=logprobs, max_tokens=asked)
    caller = caller_of(call.caller, body, state)
    check_body(body, 1)
    check_beams(body)
    ready = state.check_accepting()
    rendered = await chat_prompt(state.frontend, state.chat_template, body, call.refuse)
    ids, num_cut = truncated(rendered, body, asked, ready.max_model_len)
    if asked is None and "max_new_tokens" in defaults:
        room = output_limit(len(ids), None, ready.max_model_len)
        most = min(int(defaults["max_new_tokens"]), room)
        params = sampling_params(body, defaults, logprobs=logprobs, max_tokens=most)
    try:
        generation = begin(
            state, ids, num_cut, body, params, caller=caller, request_id=f"chatcmpl-{call.id}"
        )
    except ContextLengthError as error:
        if error.param == "max_tokens" and body.max_completion_tokens is not None:
            error.param = "max_completion_tokens"  # the name under which the caller asked
        raise
    form = _Form(
        answer_id(call, body, "chatcmpl"), model, state.frontend.tokenizer, body, generation
    )
    return respond(call, body, [generation], form)


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise RequestError(
            f"top_logprobs is {body.top_logprobs} and logprobs is not set.",
            param="top_logprobs",
            fix="Set logprobs to true.",
        )
    return None


class _Form:
    """Writes one answer."""

    def __init__(
        self,
        answer_id: str,
        model: str,
        tokenizer: Tokenizer,
        body: ChatBody,
        generation: Generation,
    ) -> None:
        self._id = answer_id
        self._created = int(time.time())
        self._model = model
        self._tokenizer = tokenizer
        self._wants_ids = bool(body.return_token_ids)
        self._name = names_of(tokenizer, body.return_tokens_as_token_ids)
        self._echo = echoed_text(body) if body.echo else ""
        self._generation = generation
        self._begun: set[int] = set()

    def pieces(self, prompt_index: int, delta: Delta) -> list[Piece]:
        """The role when the choice begins, then what the delta says, if anything."""
        pieces: list[Piece] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            pieces.append(self._opening(delta))
        says = delta.text or delta.finish_reason or delta.logprobs is not None
        if not says and not (self._wants_ids and delta.token_ids):
            return pieces
        content = delta.text if delta.text else UNSET
        choice = ChunkChoice(
            index=delta.index,
            delta=Message(content=content),
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if delta.logprobs is not None:
            choice.logprobs = chat_logprobs(self._tokenizer, delta.logprobs, self._name)
        if self._wants_ids:
            choice.token_ids = list(delta.token_ids)
        pieces.append(Piece(choice=choice))
        return pieces

    def _opening(self, delta: Delta) -> Piece:
        role = Message(role=_ROLE, content=self._echo)
        piece = Piece(choice=ChunkChoice(index=delta.index, delta=role))
        if self._wants_ids:
            piece.prompt_token_ids = list(self._generation.requests[0].token_ids)
        if delta.prompt_logprobs is not None:
            piece.prompt_logprobs = prompt_logprobs(self._tokenizer, delta.prompt_logprobs)
        return piece

    def chunk(self, piece: Piece | None, usage: Usage | None | UnsetType) -> bytes:
        """One chunk of a stream."""
        chunk = Chunk(
            id=self._id, created=self._created, model=self._model, choices=[], usage=usage
        )
        if piece is not None:
            chunk.choices = [piece.choice]
            chunk.prompt_token_ids = piece.prompt_token_ids
            chunk.prompt_logprobs = piece.prompt_logprobs
        return msgspec.json.encode(chunk)

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> bytes:
        """The fold of all pieces."""
        answer = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=fold([piece.choice for piece in pieces], _fold_choice),
            usage=usage,
            prompt_token_ids=first_set([piece.prompt_token_ids for piece in pieces]),
            prompt_logprobs=first_set([piece.prompt_logprobs for piece in pieces]),
        )
        return msgspec.json.encode(answer)


def _fold_choice(pieces: Sequence[ChunkChoice]) -> Choice:
    last = pieces[-1]
    texts = [piece.delta.content for piece in pieces if piece.delta.content is not UNSET]
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    joined = [token for part in logprobs for token in part.content]
    return Choice(
        index=last.index,
        message=Message(
            role=first_set([piece.delta.role for piece in pieces]), content="".join(texts)
        ),
        logprobs=ChatLogprobs(content=joined) if logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=join_ids([piece.token_ids for piece in pieces]),
    )
