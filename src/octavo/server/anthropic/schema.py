"""The bodies of calls of /v1/messages, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.core.params import MAX_TOKENS
from octavo.server.limits import MAX_CONTENT_PARTS, MAX_MESSAGES, MAX_TOOLS
from octavo.server.schema import Name

Parts = Annotated[list[dict[str, Any]], Meta(max_length=MAX_CONTENT_PARTS)]
Messages = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]


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
    schema: dict[str, Any]


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
    system: str | Parts | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesBody(CountTokensBody, kw_only=True, frozen=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
    stream: bool | None = None
    metadata: Metadata | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
