"""What /v1/responses answers, and what the API document says of it; the events of a stream are in `events.py`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.logprobs import ChatTokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, kw_only=True, tag="output_text"):
    """A part of a message."""

    text: str
    annotations: list[Any]
    logprobs: list[ChatTokenLogprob]
    """Of its tokens, where asked for."""


class MessageItem(msgspec.Struct, kw_only=True, tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningText(msgspec.Struct, kw_only=True, tag="reasoning_text"):
    """A part of a reasoning."""

    text: str


class ReasoningItem(msgspec.Struct, kw_only=True, tag="reasoning"):
    """What the model thinks before."""

    id: str
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]


class FunctionCallItem(msgspec.Struct, kw_only=True, tag="function_call"):
    """A call of a tool."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


Item = MessageItem | ReasoningItem | FunctionCallItem


class CachedTokens(msgspec.Struct, kw_only=True):
    """Where input tokens came from."""

    cached_tokens: int
    cache_write_tokens: int = 0
    """Tokens charged for being kept; keeping them is free here."""


class ReasoningTokens(msgspec.Struct, kw_only=True):
    """What output tokens were."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, kw_only=True):
    """Tokens of the response."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(msgspec.Struct, kw_only=True):
    """Why it failed."""

    code: str
    message: str


class IncompleteDetails(msgspec.Struct, kw_only=True):
    """Why it ends early."""

    reason: str


class ReasoningSaid(msgspec.Struct, kw_only=True):
    """How much was to be thought."""

    effort: str | None
    summary: str | None


class ResponseText(msgspec.Struct, kw_only=True):
    """The shape of the text."""

    format: dict[str, Any]


ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: bool
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningSaid
    service_tier: str
    store: bool
    temperature: float
    text: ResponseText
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float
    top_logprobs: int
    truncation: Literal["auto", "disabled"]
    truncated_items: int | UnsetType = UNSET
    """Items of the conversation that were left out, where any were."""
    usage: ResponseUsage | None
    user: str | None
    tool_parse_error: str | UnsetType = UNSET


class ResponseDeleted(msgspec.Struct, kw_only=True):
    """A response is forgotten."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class InputItems(msgspec.Struct, kw_only=True):
    """A page of what a response answered."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | UnsetType = UNSET
    last_id: str | UnsetType = UNSET
