"""The bodies of calls of /v1/messages, field by field."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from octavo.core.params import MAX_STOPS, MAX_TOKENS
from octavo.server.limits import MAX_CONTENT_PARTS
from octavo.server.schema import (
    Messages,
    Milliseconds,
    Name,
    Object,
    PromptText,
    StopText,
    Temperature,
    TemplateKwargs,
    ToolList,
    TopK,
    TopP,
)

Parts = Annotated[list[Object], Meta(max_length=MAX_CONTENT_PARTS)]


class Metadata(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Accepted for those who send it; it changes nothing by definition."""

    user_id: Name | None = None


class Thinking(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whether the model reasons before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None


class OutputFormat(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A schema that the answer follows."""

    type: Literal["json_schema"]
    schema: Object


class OutputConfig(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How the answer is written."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ToolChoice(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Whether tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class CountTokensBody(msgspec.Struct, kw_only=True, frozen=True):
    """POST /v1/messages/count_tokens: what of a call makes its prompt."""

    model: Name
    messages: Messages
    system: PromptText | Parts | None = None
    tools: ToolList | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: TemplateKwargs | None = None


class MessagesBody(CountTokensBody, kw_only=True, frozen=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    deadline_ms: Milliseconds | None = None
    """Milliseconds from the call's arrival after which its answer is worth nothing: it is refused where it would come
    later, and ended where it turns out to."""
    ttft_slo_ms: Milliseconds | None = None
    """Milliseconds in which the first token is wanted: the call is refused where that would not be kept."""
    stream: bool | None = None
    metadata: Metadata | None = None
    stop_sequences: Annotated[list[StopText], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
