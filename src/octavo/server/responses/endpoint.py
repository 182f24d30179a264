"""POST /v1/responses, and what is done with responses that are kept: retrieve, delete, cancel, list their input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.core.errors import ContextLengthError, OctavoError, OverloadError, RequestError
from octavo.core.log import get_logger
from octavo.server.call import Call, json_response
from octavo.server.keys.allowance import LimitError
from octavo.server.metered import metered
from octavo.server.openai.talk import Talk, begin
from octavo.server.parse import Parser
from octavo.server.response_store import Stored
from octavo.server.responses.history import UNDER_WAY, conversation
from octavo.server.responses.input import chat_body, items_of, shape_of
from octavo.server.responses.logprobs import TextLogprobs
from octavo.server.responses.schema import LOGPROBS, ResponsesBody
from octavo.server.responses.shapes import ResponseDeleted
from octavo.server.responses.writer import Writer
from octavo.server.stream import EventStream, unless_gone

logger = get_logger(__name__)
_parser = Parser(ResponsesBody)
MAX_BACKGROUND = 256
"""Responses in the background at a time, over all callers."""


async def create(call: Call) -> ASGIApp:
    """Answer, from a text or from items, maybe going on from a response that was kept."""
    body = await call.body(_parser)
    _check(body, call)
    items = items_of(body.input)
    response_id = f"resp_{call.id}"
    logprobs = _num_logprobs(call, body)
    try:
        messages, num_cut = await conversation(call, body, items)
        talk = await begin(
            call,
            chat_body(body, messages),
            answer_id=response_id,
            asked=body.max_output_tokens,
            logprobs=logprobs,
            shape=shape_of(body),
        )
    except RequestError as error:
        raise _renamed(error) from error
    rows = None if logprobs is None else TextLogprobs(call.state.frontend.tokenizer)
    writer = Writer(response_id, body, talk, rows, num_cut)
    is_kept = False

    def keep() -> None:
        nonlocal is_kept
        if body.store is not False:
            row = Stored(
                response_id,
                body.previous_response_id,
                msgspec.json.encode(items),
                msgspec.json.encode(writer.response),
                is_open=writer.response.status in UNDER_WAY,
            )
            call.state.responses.put(call.caller.tenant, row, is_again=is_kept)
            is_kept = True

    if body.background:
        keep()
        queued = json_response(writer.response)
        await _start(call, talk, writer, keep)
        return queued
    if body.stream:
        return EventStream(
            _frames(call, talk, writer, keep), on_error=_failing(writer, keep), done=b""
        )
    return _Whole(call, talk, writer, keep)


def _check(body: ResponsesBody, call: Call) -> None:
    if body.background and body.stream:
        raise RequestError(
            "background and stream are both set.",
            param="background",
            fix="Poll GET /v1/responses/{id} for a response in the background.",
        )
    if body.background and body.store is False:
        raise RequestError(
            "background is set and store is false: nobody could get the response.", param="store"
        )
    if body.background and len(call.state.background) >= MAX_BACKGROUND:
        call.state.metrics.count("vllm:admission_rejections", 1, "background")
        raise OverloadError(f"{MAX_BACKGROUND} responses are in the background already.")


def _num_logprobs(call: Call, body: ResponsesBody) -> int | None:
    """How many of the likeliest tokens to tell beside each; None where no log-probabilities are asked for."""
    for name in body.include or ():
        if name != LOGPROBS:
            call.refuse(
                RequestError(
                    f"include names {name[:80]!r}; expected {LOGPROBS!r} alone.",
                    param="include",
                    code="unsupported_field",
                    fix="Leave it out. Reasoning is in the answer as it is, and is taken back as input.",
                )
            )
    if body.top_logprobs:
        return body.top_logprobs
    return 0 if LOGPROBS in (body.include or ()) else None


def _renamed(error: RequestError) -> RequestError:
    """The error with the field under the name by which the caller gave it."""
    if isinstance(error, ContextLengthError) and error.param == "max_tokens":
        error.param = "max_output_tokens"
    elif error.param in ("messages", "prompt"):
        error.param = "input"
    elif error.param == "reasoning_effort":
        error.param = "reasoning.effort"
    return error


async def _deltas(call: Call, talk: Talk, writer: Writer) -> AsyncIterator[list[bytes]]:
    """The events of the whole response, delta by delta."""
    is_begun = False
    call.tab.reasoning = lambda: talk.reader.num_reasoning_tokens
    async with aclosing(metered(call, [talk.generation])) as deltas:
        async for _, delta in deltas:
            events = [] if is_begun else writer.begin()
            is_begun = True
            yield [*events, *writer.take(delta)]


async def _frames(
    call: Call, talk: Talk, writer: Writer, keep: Callable[[], None]
) -> AsyncGenerator[bytes, None]:
    async for events in _deltas(call, talk, writer):
        if writer.response.status != "in_progress":
            keep()
        if events:
            yield b"".join(events)


def _failing(writer: Writer, keep: Callable[[], None]) -> Callable[[OctavoError], bytes]:
    def fail(error: OctavoError) -> bytes:
        payload = writer.fail(error)
        _try(keep)
        return payload

    return fail


def _try(keep: Callable[[], None]) -> None:
    """Keep a response whose caller cannot be told any more that it is not kept."""
    try:
        keep()
    except OctavoError as error:
        logger.error("a response is not kept: %s", error.info().one_line())


class _Whole:
    """ASGI response: everything at the end, unless the caller leaves before."""

    def __init__(self, call: Call, talk: Talk, writer: Writer, keep: Callable[[], None]) -> None:
        self._parts = (call, talk, writer)
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await unless_gone(receive, self._collect())
        self._keep()
        await json_response(self._parts[2].response)(scope, receive, send)

    async def _collect(self) -> None:
        async for _ in _deltas(*self._parts):
            pass


async def _start(call: Call, talk: Talk, writer: Writer, keep: Callable[[], None]) -> None:
    """Go on without a caller who waits.

    Raises:
        LimitError: the key may not have it made now.
    """
    key = _key(call, writer.response.id)
    refusal: LimitError | None = None

    async def work() -> None:
        nonlocal refusal
        is_begun = False
        try:
            async for _ in _deltas(call, talk, writer):
                if not is_begun:
                    is_begun = True
                    keep()  # it is no longer queued
        except asyncio.CancelledError:
            writer.cancel()
        except LimitError as error:
            refusal = error
            writer.fail(error)
        except OctavoError as error:
            logger.warning("request %s: %s", call.id, error.info().one_line())
            writer.fail(error)
        finally:
            call.state.background.pop(key, None)
            _try(keep)

    call.state.background[key] = asyncio.create_task(work())
    await asyncio.sleep(0)  # it is under way before anybody can cancel it
    if refusal is not None:
        call.state.responses.delete(call.caller.tenant, writer.response.id)
        raise refusal


def _key(call: Call, response_id: str) -> str:
    return f"{call.caller.tenant}/{response_id}"


def _id_of(call: Call) -> str:
    return str(call.scope["path_params"]["response_id"])


async def retrieve(call: Call) -> Response:
    """A response that was kept."""
    _refuse_query(call, ())
    return _raw(call.state.responses.get(call.caller.tenant, _id_of(call)).response)


async def delete(call: Call) -> Response:
    """Forget one; what is under way in the background ends."""
    response_id = _id_of(call)
    await _stop(call, response_id)
    call.state.responses.delete(call.caller.tenant, response_id)
    return json_response(ResponseDeleted(id=response_id))


async def cancel(call: Call) -> Response:
    """End a response in the background."""
    response_id = _id_of(call)
    row = call.state.responses.get(call.caller.tenant, response_id)
    if not msgspec.json.decode(row.response)["background"]:
        raise RequestError(
            "only a response in the background can be cancelled; close the connection of another.",
            param="response_id",
        )
    await _stop(call, response_id)
    row = call.state.responses.get(call.caller.tenant, response_id)
    if (
        row.is_open
    ):  # a server that this one took over from makes it: what it still says is not kept
        ended = msgspec.json.decode(row.response) | {"status": "cancelled"}
        row = row._replace(response=msgspec.json.encode(ended), is_open=False)
        call.state.responses.put(call.caller.tenant, row)
    return _raw(row.response)


async def _stop(call: Call, response_id: str) -> None:
    task = call.state.background.get(_key(call, response_id))
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def input_items(call: Call) -> Response:
    """The input of a response that was kept, the latest first unless `order` is asc."""
    query = _refuse_query(call, ("limit", "order", "after"))
    row = call.state.responses.get(call.caller.tenant, _id_of(call))
    order = query.get("order", "desc")
    limit = query.get("limit", "20")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {order[:40]!r}; expected asc or desc.", param="order")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise RequestError(f"limit is {limit[:40]!r}; expected 1 to 100.", param="limit")
    items = [
        {"id": f"item_{index}", "type": "message", **item}
        for index, item in enumerate(msgspec.json.decode(row.input))
    ]
    items = items if order == "asc" else items[::-1]
    after = query.get("after")
    if after is not None:
        at = next((i for i, item in enumerate(items) if item["id"] == after), None)
        if at is None:
            raise RequestError(f"after is {after[:80]!r}, which is no item.", param="after")
        items = items[at + 1 :]
    page = items[: int(limit)]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
    return json_response(
        {"object": "list", "data": page, "has_more": len(items) > len(page), **ends}
    )


def _refuse_query(call: Call, known: tuple[str, ...]) -> QueryParams:
    """The query of a call. Raises RequestError for what is not known."""
    query = QueryParams(call.scope["query_string"])
    for name in query:
        if name not in known:
            raise RequestError(
                f"the query field {name[:40]!r} is not supported.",
                param=name[:40],
                code="unsupported_field",
                fix="Leave it out.",
            )
    return query


def _raw(payload: bytes) -> Response:
    return Response(payload, media_type="application/json")
