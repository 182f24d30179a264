"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import ASGIApp

from octavo.core.errors import ContextLengthError, RequestError
from octavo.engine.frontend import Delta
from octavo.server.call import Call
from octavo.server.openai.answer import Usage, respond
from octavo.server.openai.fold import first_set, fold, join_ids
from octavo.server.openai.logprobs import (
    ChatLogprobs,
    PromptLogprobs,
    chat_logprobs,
    names_of,
    prompt_logprobs,
)
from octavo.server.openai.prompts import echoed_text
from octavo.server.openai.start import answer_id
from octavo.server.openai.talk import Talk, begin
from octavo.server.parse import Parser
from octavo.server.schema import ChatBody
from octavo.text.tokenizer import Tokenizer

_ROLE = "assistant"
_parser = Parser(ChatBody)


class FunctionPiece(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function call, or a piece of one."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CallPiece(msgspec.Struct, kw_only=True):
    """A tool call, or a piece of one. The first piece has all but the arguments."""

    index: int | UnsetType = UNSET
    """In a stream: which call of the choice."""
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionPiece


class Message(msgspec.Struct, kw_only=True):
    """A message, or a piece of one; the role comes first."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    """The same under its other name."""
    tool_calls: list[CallPiece] | UnsetType = UNSET
    tool_parse_error: str | UnsetType = UNSET
    """Why text that looked like a tool call is content, or its arguments are not JSON."""


_NOTHING = Message()


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
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    logprobs = _num_logprobs(body)
    request_id = f"chatcmpl-{call.id}"
    try:
        talk = await begin(call, body, answer_id=request_id, logprobs=logprobs, asked=asked)
    except ContextLengthError as error:
        if error.param == "max_tokens" and body.max_completion_tokens is not None:
            error.param = "max_completion_tokens"  # the name under which the caller asked
        raise
    form = _Form(answer_id(call, body, "chatcmpl"), talk, call.state.frontend.tokenizer, body)
    return respond(call, body, [talk.generation], form)


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

    def __init__(self, answer_id: str, talk: Talk, tokenizer: Tokenizer, body: ChatBody) -> None:
        self._id = answer_id
        self._created = int(time.time())
        self._model = talk.model
        self._tokenizer = tokenizer
        self._wants_ids = bool(body.return_token_ids)
        self._name = names_of(tokenizer, body.return_tokens_as_token_ids)
        self._echo = echoed_text(body) if body.echo else ""
        self._wants_reasoning = body.include_reasoning is not False
        self._generation = talk.generation
        self._reader = talk.reader
        self._begun: set[int] = set()
        self._num_calls: dict[int, int] = {}

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Of all choices so far; None where the model is not known to reason."""
        return self._reader.num_reasoning_tokens if self._reader.sees_reasoning else None

    def pieces(self, prompt_index: int, delta: Delta) -> list[Piece]:
        """The role when the choice begins, then what the delta says, if anything."""
        pieces: list[Piece] = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            pieces.append(self._opening(delta))
        message = self._message(delta)
        says = message != _NOTHING or delta.finish_reason or delta.logprobs is not None
        if not says and not (self._wants_ids and delta.token_ids):
            return pieces
        reason = delta.finish_reason
        choice = ChunkChoice(
            index=delta.index,
            delta=message,
            finish_reason="tool_calls"
            if reason == "stop" and self._num_calls.get(delta.index)
            else reason,
            stop_reason=delta.stop_reason,
        )
        if delta.logprobs is not None:
            choice.logprobs = chat_logprobs(self._tokenizer, delta.logprobs, self._name)
        if self._wants_ids:
            choice.token_ids = list(delta.token_ids)
        pieces.append(Piece(choice=choice))
        return pieces

    def _message(self, delta: Delta) -> Message:
        """What a delta says, as one piece of a message."""
        texts: dict[str, str] = {}
        calls: list[CallPiece] = []
        for kind, text in self._reader.read(delta):
            if kind == "call":
                count = self._num_calls[delta.index] = self._num_calls.get(delta.index, 0) + 1
                function = FunctionPiece(name=text, arguments="")
                made = self._reader.new_id()
                calls.append(
                    CallPiece(index=count - 1, id=made, type="function", function=function)
                )
            elif kind == "arguments":
                index = self._num_calls[delta.index] - 1
                calls.append(CallPiece(index=index, function=FunctionPiece(arguments=text)))
            elif kind != "end":
                texts[kind] = texts.get(kind, "") + text
        reasoning = texts.get("reasoning", UNSET) if self._wants_reasoning else UNSET
        return Message(
            content=texts.get("content", UNSET),
            reasoning_content=reasoning,
            reasoning=reasoning,
            tool_calls=calls or UNSET,
            tool_parse_error=texts.get("flaw", UNSET),
        )

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
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    joined = [token for part in logprobs for token in part.content]
    return Choice(
        index=last.index,
        message=_fold_message([piece.delta for piece in pieces]),
        logprobs=ChatLogprobs(content=joined) if logprobs else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=join_ids([piece.token_ids for piece in pieces]),
    )


def _fold_message(pieces: Sequence[Message]) -> Message:
    reasoning = _join([piece.reasoning_content for piece in pieces])
    calls: dict[int, CallPiece] = {}
    for piece in pieces:
        for part in piece.tool_calls or ():
            assert part.index is not UNSET, "the pieces of a stream say of which call they are"
            if part.index not in calls:
                function = FunctionPiece(name=part.function.name, arguments="")
                calls[part.index] = CallPiece(id=part.id, type=part.type, function=function)
            whole = calls[part.index].function
            whole.arguments = f"{whole.arguments}{part.function.arguments}"
    content = _join([piece.content or "" for piece in pieces])
    return Message(
        role=first_set([piece.role for piece in pieces]),
        content=content or None if calls or reasoning is not UNSET else content,
        reasoning_content=reasoning,
        reasoning=reasoning,
        tool_calls=list(calls.values()) or UNSET,
        tool_parse_error=first_set([piece.tool_parse_error for piece in pieces]),
    )


def _join(parts: Sequence[str | UnsetType]) -> str | UnsetType:
    """All texts in a row; unset when none of them is set."""
    texts = [part for part in parts if part is not UNSET]
    return "".join(texts) if texts else UNSET
