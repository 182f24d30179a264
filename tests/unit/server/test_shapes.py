"""What /v1/responses and /v1/messages answer has the types of the API document: no field more, none less.

The same of every event of a stream, and the official clients' own types take it.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from fakes import MODEL, InProcess
from octavo.server.anthropic.shapes import MessageEvent, MessageObject, StreamError, TokenCount
from octavo.server.responses.events import ResponseEvent
from octavo.server.responses.shapes import InputItems, ResponseDeleted, ResponseObject
from talks import CALL, TOOLS, USER, talking

SAYS = [
    "hello",
    f"<think>\nhm\n</think>\n\nI look.\n{CALL}",
    '<tool_call>{"name": "get_weather", "arg',
    f"<think>a</think>{CALL}{CALL}",
]
FUNCTIONS = [{"type": "function", **tool["function"]} for tool in TOOLS]
TOOLS_THERE = [
    {"name": tool["function"]["name"], "input_schema": tool["function"].get("parameters", {"type": "object"})}
    for tool in TOOLS
]  # fmt: skip


OPENAI: dict[str, Any] = {
    name: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
    for name in get_args(kind.model_fields["type"].annotation)
}
"""The client's own types of events, by name."""
ANTHROPIC = TypeAdapter[Any](RawMessageStreamEvent)


def same(answer: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    assert msgspec.to_builtins(msgspec.convert(answer, kind, strict=True)) == answer


@pytest.mark.parametrize("text", SAYS)
@pytest.mark.parametrize("limit", [None, 4])
def test_responses(text: str, limit: int | None) -> None:
    _, state = talking(text)
    server = InProcess(state)
    body = {"input": "hi", "tools": FUNCTIONS, "metadata": {"a": "b"}, "max_output_tokens": limit}
    answer = server.post("/v1/responses", body)
    assert answer.status_code == 200, answer.text
    same(answer.json(), ResponseObject)
    path = f"/v1/responses/{answer.json()['id']}"
    same(server.call("GET", path).json(), ResponseObject)
    same(server.call("GET", f"{path}/input_items").json(), InputItems)
    same(server.call("DELETE", path).json(), ResponseDeleted)


@pytest.mark.parametrize("text", SAYS)
@pytest.mark.parametrize("limit", [4, 400])
def test_messages(text: str, limit: int) -> None:
    _, state = talking(text)
    server = InProcess(state)
    body = {"model": MODEL, "messages": [USER], "tools": TOOLS_THERE}
    answer = server.post("/v1/messages", {**body, "max_tokens": limit})
    assert answer.status_code == 200, answer.text
    same(answer.json(), MessageObject)
    same(server.post("/v1/messages/count_tokens", body).json(), TokenCount)


def events_of(text: str, kind: Any) -> list[Any]:
    """Every event of a stream as its type; nothing of it is lost on the way."""
    found = []
    for one in text.removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        event = msgspec.json.decode(data.removeprefix("data: "), type=kind, strict=True)
        assert msgspec.json.encode(event).decode() == data.removeprefix("data: ")
        assert name == f"event: {event.__struct_config__.tag}"
        found.append(event)
    return found


def official(event: Any) -> None:
    kind = OPENAI[event.__struct_config__.tag]
    kind.model_validate_json(msgspec.json.encode(event), strict=True)


@pytest.mark.parametrize("text", SAYS)
@pytest.mark.parametrize("limit", [None, 4])
def test_events_of_responses(text: str, limit: int | None) -> None:
    _, state = talking(text)
    server = InProcess(state)
    body = {"input": "hi", "tools": FUNCTIONS, "max_output_tokens": limit, "stream": True}
    events = events_of(server.post("/v1/responses", body).text, ResponseEvent)
    assert [one.sequence_number for one in events] == list(range(len(events)))
    for event in events:
        official(event)
    kept = server.call("GET", f"/v1/responses/{events[0].response.id}").json()
    assert msgspec.to_builtins(events[-1].response) == kept


@pytest.mark.parametrize("text", SAYS)
@pytest.mark.parametrize("limit", [4, 400])
def test_events_of_messages(text: str, limit: int) -> None:
    _, state = talking(text)
    body = {"model": MODEL, "messages": [USER], "tools": TOOLS_THERE, "max_tokens": limit}
    answer = InProcess(state).post("/v1/messages", {**body, "stream": True})
    for event in events_of(answer.text, MessageEvent):
        if event.__struct_config__.tag != "ping":  # the client passes over those by name
            ANTHROPIC.validate_json(msgspec.json.encode(event), strict=True)


def test_events_of_a_failure() -> None:
    engine, state = talking("hello there")
    engine.fail_after = 6
    server = InProcess(state)
    body = {"input": "hi", "stream": True}
    *_, last = events_of(server.post("/v1/responses", body).text, ResponseEvent)
    assert last.response.status == "failed" and last.response.error is not None
    official(last)
    message = {"model": MODEL, "messages": [USER], "max_tokens": 9, "stream": True}
    *_, last = events_of(server.post("/v1/messages", message).text, MessageEvent)
    assert isinstance(last, StreamError) and last.error.type == "api_error"
