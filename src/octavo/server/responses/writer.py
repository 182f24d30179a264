"""Writes a response: its items as they come, and the events that tell of them. The whole is what the events lead to."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from octavo.core.errors import OctavoError
from octavo.engine.frontend import Delta
from octavo.server.blocks import Block, Blocks, Change
from octavo.server.openai.answer import usage_of
from octavo.server.openai.talk import Talk
from octavo.server.responses.schema import ResponsesBody
from octavo.server.stream import event

Json = dict[str, Any]
_PREFIX = {"content": "msg", "reasoning": "rs", "call": "fc"}
_PART = {"content": "output_text", "reasoning": "reasoning_text"}


class Writer:
    """One response in the making. Owner: the call, or the task in the background that makes it."""

    def __init__(self, response_id: str, body: ResponsesBody, talk: Talk) -> None:
        self._talk = talk
        self._blocks = Blocks()
        self._ids: list[tuple[str, str]] = []
        self._shows_reasoning = body.include_reasoning is not False
        self._number = 0
        self.response = _head(response_id, body, talk)
        """The response as far as it has come; whole after `finish` or `fail`."""

    def begin(self) -> list[bytes]:
        """The first events."""
        self.response["status"] = "in_progress"
        return [
            self._event("response.created", response=self.response),
            self._event("response.in_progress", response=self.response),
        ]

    def take(self, delta: Delta) -> list[bytes]:
        """The events of a delta; with the last delta those of the end."""
        pieces = self._talk.reader.read(delta)
        if not self._shows_reasoning:
            pieces = [piece for piece in pieces if piece.kind != "reasoning"]
        events = self._tell(self._blocks.take(pieces))
        if delta.finish_reason is not None:
            is_cut = delta.finish_reason == "length"
            events += self._tell(self._blocks.end())
            events.append(self._finish("incomplete" if is_cut else "completed"))
        return events

    def fail(self, error: OctavoError) -> bytes:
        """The event of an error, which ends the response."""
        self.response["error"] = {"code": "server_error", "message": error.message}
        return self._finish("failed")

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._finish("cancelled")

    def _finish(self, status: str) -> bytes:
        response = self.response
        response["status"] = status
        is_whole = status == "completed"
        response["output"] = [self._item(block, is_whole) for block in self._blocks.all]
        response["usage"] = _usage(self._talk)
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if self._blocks.flaw:
            response["tool_parse_error"] = self._blocks.flaw
        return self._event(f"response.{status}", response=response)

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event(msgspec.json.encode(payload), kind)

    def _tell(self, changes: Iterable[Change]) -> list[bytes]:
        events: list[bytes] = []
        for what, block, text in changes:
            if what == "begin":
                prefix = _PREFIX[block.kind]
                call_id = self._talk.reader.new_id() if block.kind == "call" else ""
                self._ids.append((f"{prefix}_{secrets.token_hex(16)}", call_id))
                events += self._begin(block)
            elif what == "delta":
                events.append(self._delta(block, text))
            else:
                events += self._end(block)
        return events

    def _begin(self, block: Block) -> list[bytes]:
        item = self._item(block, False, status="in_progress")
        if "content" in item:
            item["content"] = []
        added = [
            self._event("response.output_item.added", output_index=block.index, item=item),
        ]
        if block.kind != "call":
            part = _part(block, "")
            added.append(
                self._event("response.content_part.added", part=part, **self._place(block))
            )
        return added

    def _delta(self, block: Block, text: str) -> bytes:
        if block.kind == "call":
            kind = "response.function_call_arguments.delta"
            item_id = self._ids[block.index][0]
            return self._event(kind, item_id=item_id, output_index=block.index, delta=text)
        extra: Json = {"logprobs": []} if block.kind == "content" else {}
        kind = f"response.{_PART[block.kind]}.delta"
        return self._event(kind, delta=text, **self._place(block), **extra)

    def _end(self, block: Block) -> list[bytes]:
        item_id = self._ids[block.index][0]
        if block.kind == "call":
            said = {"item_id": item_id, "name": block.name, "arguments": block.text}
            kind = "response.function_call_arguments.done"
            ended = [self._event(kind, output_index=block.index, **said)]
        else:
            extra: Json = {"logprobs": []} if block.kind == "content" else {}
            place = self._place(block)
            kind = f"response.{_PART[block.kind]}.done"
            part = _part(block, block.text)
            ended = [
                self._event(kind, text=block.text, **place, **extra),
                self._event("response.content_part.done", part=part, **place),
            ]
        item = self._item(block, True)
        done = self._event("response.output_item.done", output_index=block.index, item=item)
        return [*ended, done]

    def _place(self, block: Block) -> Json:
        return {
            "item_id": self._ids[block.index][0],
            "output_index": block.index,
            "content_index": 0,
        }

    def _item(self, block: Block, is_whole: bool, status: str = "") -> Json:
        item_id, call_id = self._ids[block.index]
        status = status or ("completed" if is_whole and not block.flaw else "incomplete")
        if block.kind == "call":
            return {
                "id": item_id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": block.name,
                "arguments": block.text,
            }
        content = [_part(block, block.text)]
        if block.kind == "reasoning":
            return {
                "id": item_id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": content,
            }
        return {
            "id": item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }


def _part(block: Block, text: str) -> Json:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(talk: Talk) -> Json:
    usage = usage_of([talk.generation])
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": talk.reader.num_reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _head(response_id: str, body: ResponsesBody, talk: Talk) -> Json:
    """All of a response that is known from the start."""
    params = talk.generation.requests[0].params
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": talk.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": params.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": params.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }
