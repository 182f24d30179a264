"""What /v1/responses and /v1/messages answer has the types of the API document: no field more, none less."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fakes import MODEL, InProcess
from octavo.server.anthropic.shapes import MessageObject, TokenCount
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
