"""Writes a message of the Anthropic shape: its blocks as they come, and the events that tell of them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

import msgspec

from octavo.core.errors import OctavoError
from octavo.engine.frontend import Delta
from octavo.server.blocks import Block, Blocks, Change
from octavo.server.errors import anthropic_error_json
from octavo.server.openai.answer import usage_of
from octavo.server.openai.talk import Talk
from octavo.server.stream import event

Json = dict[str, Any]
_DELTAS = {
    "content": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "end_turn"}


class Writer:
    """One message in the making. Owner: the call."""

    def __init__(self, message_id: str, talk: Talk) -> None:
        self._id = message_id
        self._talk = talk
        self._blocks = Blocks()
        self._ids: list[str] = []
        self._reason: str | None = None
        self._stop: str | None = None

    def begin(self) -> list[bytes]:
        """The first events."""
        return [_event("message_start", message=self.message()), _event("ping")]

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
        said: Json = {"stop_reason": self._reason, "stop_sequence": self._stop}
        if self._blocks.flaw:
            said["tool_parse_error"] = self._blocks.flaw
        return [
            *events,
            _event("message_delta", delta=said, usage=self._usage()),
            _event("message_stop"),
        ]

    def message(self) -> Json:
        """The message as far as it has come."""
        whole: Json = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._talk.model,
            "content": [self._content(block) for block in self._blocks.all],
            "stop_reason": self._reason,
            "stop_sequence": self._stop,
            "usage": self._usage(),
        }
        if self._blocks.flaw:
            whole["tool_parse_error"] = self._blocks.flaw
        return whole

    def _tell(self, changes: Iterable[Change]) -> list[bytes]:
        events: list[bytes] = []
        for what, block, text in changes:
            if what == "begin":
                made = self._talk.reader.new_id() if block.kind == "call" else ""
                self._ids.append(made.replace("call_", "toolu_") or secrets.token_hex(4))
                start = (
                    {**self._content(block), "input": {}}
                    if block.kind == "call"
                    else self._content(block)
                )
                events.append(_event("content_block_start", index=block.index, content_block=start))
            elif what == "delta":
                kind, field = _DELTAS[block.kind]
                events.append(_delta(block.index, {"type": kind, field: text}))
            else:
                if block.kind == "reasoning":
                    signature = {"type": "signature_delta", "signature": ""}
                    events.append(_delta(block.index, signature))
                events.append(_event("content_block_stop", index=block.index))
        return events

    def _content(self, block: Block) -> Json:
        if block.kind == "content":
            return {"type": "text", "text": block.text}
        if block.kind == "reasoning":
            # Nothing is signed here: the reasoning is the model's own text.
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        call_id = self._ids[block.index]
        return {"type": "tool_use", "id": call_id, "name": block.name, "input": _input(block)}

    def _usage(self) -> Json:
        usage = usage_of([self._talk.generation])
        cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
        }


def _input(block: Block) -> Json:
    """The arguments of a call; as text under one name where they are no JSON object."""
    try:
        value = json.loads(block.text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"unparsed_arguments": block.text}


def _delta(index: int, delta: Json) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return event(msgspec.json.encode({"type": kind, **fields}), kind)


def error_event(error: OctavoError) -> bytes:
    """An error in the middle of a stream."""
    return event(anthropic_error_json(error), "error")
