"""Writes a message of the Anthropic shape: its blocks as they come, and the events that tell of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.core.errors import OctavoError
from octavo.engine.frontend import Delta
from octavo.server.anthropic import shapes
from octavo.server.anthropic.shapes import Content, MessageEvent, MessageObject, StopReason
from octavo.server.blocks import Block, Blocks, Change
from octavo.server.errors import anthropic_error_json
from octavo.server.openai.answer import usage_of
from octavo.server.openai.talk import Talk
from octavo.server.stream import event

_REASONS: dict[str, StopReason] = {"stop": "end_turn", "length": "max_tokens", "abort": "abort"}


class Writer:
    """One message in the making. Owner: the call."""

    def __init__(self, message_id: str, talk: Talk) -> None:
        self._id = message_id
        self._talk = talk
        self._blocks = Blocks()
        self._ids: list[str] = []
        self._reason: StopReason | None = None
        self._stop: str | None = None

    def begin(self) -> list[bytes]:
        """The first events."""
        return [_written(shapes.MessageStart(message=self.message())), _written(shapes.Ping())]

    def take(self, delta: Delta) -> list[bytes]:
        """The events of a delta; with the last delta those of the end."""
        events = self._tell(self._blocks.take(self._talk.reader.read(delta)))
        if delta.finish_reason is None:
            return events
        events += self._tell(self._blocks.end())
        self._reason = _REASONS[delta.finish_reason]
        if self._reason == "end_turn" and any(b.kind == "call" for b in self._blocks.all):
            self._reason = "tool_use"
        elif isinstance(delta.stop_reason, str):
            self._reason, self._stop = "stop_sequence", delta.stop_reason
        said = shapes.EndSaid(
            stop_reason=self._reason,
            stop_sequence=self._stop,
            tool_parse_error=self._blocks.flaw or UNSET,
        )
        return [
            *events,
            _written(shapes.MessageDelta(delta=said, usage=self._usage())),
            _written(shapes.MessageStop()),
        ]

    def message(self) -> MessageObject:
        """The message as far as it has come."""
        return MessageObject(
            id=self._id,
            model=self._talk.model,
            content=[self._content(block) for block in self._blocks.all],
            stop_reason=self._reason,
            stop_sequence=self._stop,
            usage=self._usage(),
            tool_parse_error=self._blocks.flaw or UNSET,
        )

    def _tell(self, changes: Iterable[Change]) -> list[bytes]:
        events: list[MessageEvent] = []
        for what, block, text in changes:
            if what == "begin":
                made = self._talk.reader.new_id() if block.kind == "call" else ""
                self._ids.append(made.replace("call_", "toolu_") or secrets.token_hex(4))
                start = self._content(block)
                if isinstance(start, shapes.ToolUseBlock):
                    start.input = {}
                events.append(shapes.BlockStart(index=block.index, content_block=start))
            elif what == "delta":
                events.append(shapes.BlockDelta(index=block.index, delta=_added(block, text)))
            else:
                if block.kind == "reasoning":
                    signed = shapes.AddedSignature()
                    events.append(shapes.BlockDelta(index=block.index, delta=signed))
                events.append(shapes.BlockStop(index=block.index))
        return [_written(one) for one in events]

    def _content(self, block: Block) -> Content:
        if block.kind == "content":
            return shapes.TextBlock(text=block.text)
        if block.kind == "reasoning":
            return shapes.ThinkingBlock(thinking=block.text)
        call_id = self._ids[block.index]
        return shapes.ToolUseBlock(id=call_id, name=block.name, input=_input(block))

    def _usage(self) -> shapes.MessageUsage:
        usage = usage_of([self._talk.generation])
        cached = usage.prompt_tokens_details.cached_tokens
        return shapes.MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
        )


def _added(block: Block, text: str) -> shapes.Added:
    if block.kind == "content":
        return shapes.AddedText(text=text)
    if block.kind == "reasoning":
        return shapes.AddedThinking(thinking=text)
    return shapes.AddedInput(partial_json=text)


def _input(block: Block) -> dict[str, Any]:
    """The arguments of a call; as text under one name where they are no JSON object."""
    try:
        value = json.loads(block.text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"unparsed_arguments": block.text}


def _written(what: MessageEvent) -> bytes:
    return event(msgspec.json.encode(what), str(what.__struct_config__.tag))


def error_event(error: OctavoError) -> bytes:
    """An error in the middle of a stream."""
    return event(anthropic_error_json(error), "error")
