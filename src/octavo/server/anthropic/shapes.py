"""What /v1/messages answers, whole or as the events of a stream; the API document describes it by these types."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.errors import AnthropicErrorDetail


class TextBlock(msgspec.Struct, kw_only=True, tag="text"):
    """What the model says."""

    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag="thinking"):
    """What the model thinks before."""

    thinking: str
    signature: str = ""
    """Nothing is signed here: the reasoning is the model's own text."""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag="tool_use"):
    """A call of a tool."""

    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(msgspec.Struct, kw_only=True):
    """Tokens of the call."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


Content = TextBlock | ThinkingBlock | ToolUseBlock
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "abort"]
"""abort: ended by DELETE /v1/requests/{id}, or by the end of the server."""


class MessageObject(msgspec.Struct, kw_only=True):
    """A message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    tool_parse_error: str | UnsetType = UNSET


class TokenCount(msgspec.Struct, kw_only=True):
    """The length of a prompt."""

    input_tokens: int


class MessageStart(msgspec.Struct, kw_only=True, tag="message_start"):
    """The first event: the message, still empty."""

    message: MessageObject


class Ping(msgspec.Struct, kw_only=True, tag="ping"):
    """Nothing."""


class BlockStart(msgspec.Struct, kw_only=True, tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: Content


class AddedText(msgspec.Struct, kw_only=True, tag="text_delta"):
    """More of a text."""

    text: str


class AddedThinking(msgspec.Struct, kw_only=True, tag="thinking_delta"):
    """More of a reasoning."""

    thinking: str


class AddedSignature(msgspec.Struct, kw_only=True, tag="signature_delta"):
    """The end of a reasoning, which nobody signs."""

    signature: str = ""


class AddedInput(msgspec.Struct, kw_only=True, tag="input_json_delta"):
    """More of a call's arguments."""

    partial_json: str


Added = AddedText | AddedThinking | AddedSignature | AddedInput


class BlockDelta(msgspec.Struct, kw_only=True, tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: Added


class BlockStop(msgspec.Struct, kw_only=True, tag="content_block_stop"):
    """A block is over."""

    index: int


class EndSaid(msgspec.Struct, kw_only=True):
    """Why a message ends."""

    stop_reason: StopReason | None
    stop_sequence: str | None
    tool_parse_error: str | UnsetType = UNSET


class MessageDelta(msgspec.Struct, kw_only=True, tag="message_delta"):
    """How the message ended, and what it took."""

    delta: EndSaid
    usage: MessageUsage


class MessageStop(msgspec.Struct, kw_only=True, tag="message_stop"):
    """The last event."""


class StreamError(msgspec.Struct, kw_only=True, tag="error"):
    """The last event of a message that failed."""

    error: AnthropicErrorDetail


MessageEvent = (
    MessageStart
    | Ping
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | StreamError
)
