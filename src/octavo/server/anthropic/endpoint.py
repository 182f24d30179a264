"""POST /v1/messages and /v1/messages/count_tokens: the API of Anthropic's clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.core.errors import RequestError
from octavo.server.anthropic.input import chat_body, shape_of
from octavo.server.anthropic.schema import CountTokensBody, MessagesBody
from octavo.server.anthropic.shapes import TokenCount
from octavo.server.anthropic.writer import Writer, error_event
from octavo.server.call import Call, json_response
from octavo.server.metered import metered
from octavo.server.openai.talk import Talk, begin, prompt_ids
from octavo.server.parse import Parser
from octavo.server.stream import EventStream, unless_gone

_messages = Parser(MessagesBody)
_count = Parser(CountTokensBody)
_NAMES = {
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
    "reasoning_effort": "output_config.effort",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}


async def create(call: Call) -> ASGIApp:
    """Answer a conversation."""
    body = await call.body(_messages)
    message_id = f"msg_{call.id}"
    try:
        talk = await begin(
            call,
            chat_body(body, call.state),
            answer_id=message_id,
            asked=body.max_tokens,
            shape=shape_of(body),
        )
    except RequestError as error:
        raise _renamed(error) from error
    writer = Writer(message_id, talk)
    if body.stream:
        return EventStream(_frames(call, talk, writer), on_error=error_event, done=b"")
    return _Whole(call, talk, writer)


async def count_tokens(call: Call) -> Response:
    """How many tokens the prompt of a call has."""
    body = await call.body(_count)
    call.state.check_model(body.model)
    try:
        ids = await prompt_ids(call, chat_body(body, call.state))
    except RequestError as error:
        raise _renamed(error) from error
    return json_response(TokenCount(input_tokens=len(ids)))


def _renamed(error: RequestError) -> RequestError:
    """The error with the field under the name by which the caller gave it."""
    error.param = _NAMES.get(error.param or "", error.param)
    return error


async def _frames(call: Call, talk: Talk, writer: Writer) -> AsyncGenerator[bytes, None]:
    is_begun = False
    call.tab.reasoning = lambda: talk.reader.num_reasoning_tokens
    async with aclosing(metered(call, [talk.generation])) as deltas:
        async for _, delta in deltas:
            events = [] if is_begun else writer.begin()
            is_begun = True
            events += writer.take(delta)
            if events:
                yield b"".join(events)


class _Whole:
    """ASGI response: everything at the end, unless the caller leaves before."""

    def __init__(self, call: Call, talk: Talk, writer: Writer) -> None:
        self._parts = (call, talk, writer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await unless_gone(receive, self._collect())
        await json_response(self._parts[2].message())(scope, receive, send)

    async def _collect(self) -> None:
        async with aclosing(_frames(*self._parts)) as frames:
            async for _ in frames:
                pass
