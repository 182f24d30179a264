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
from octavo.server.openai.logprobs import ChatTokenLogprob
from octavo.server.openai.talk import Talk
from octavo.server.responses import events as ev
from octavo.server.responses.logprobs import TextLogprobs
from octavo.server.responses.schema import ResponsesBody
from octavo.server.responses.shapes import (
    CachedTokens,
    FunctionCallItem,
    IncompleteDetails,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningSaid,
    ReasoningText,
    ReasoningTokens,
    ResponseError,
    ResponseObject,
    ResponseStatus,
    ResponseText,
    ResponseUsage,
)
from octavo.server.stream import event

_PREFIX = {"content": "msg", "reasoning": "rs", "call": "fc"}
_STATUS: dict[str, ResponseStatus] = {
    "stop": "completed",
    "length": "incomplete",
    "abort": "cancelled",
}
_LAST: dict[ResponseStatus, type[ev.Completed] | type[ev.Incomplete] | type[ev.Broken]] = {
    "completed": ev.Completed,
    "incomplete": ev.Incomplete,
    "cancelled": ev.Incomplete,
    "failed": ev.Broken,
}
"""By status. The API has no event of a response that was cancelled: its stream ends as one that was cut off."""


class Writer:
    """One response in the making. Owner: the call, or the task in the background that makes it."""

    def __init__(
        self,
        response_id: str,
        body: ResponsesBody,
        talk: Talk,
        logprobs: TextLogprobs | None,
        num_cut: int,
    ) -> None:
        """`logprobs`: where they are asked for; `num_cut`: items of the conversation that were left out."""
        self._talk = talk
        self._blocks = Blocks()
        self._logprobs = logprobs
        self._rows: dict[int, list[ChatTokenLogprob]] = {}
        """Of each message, by its place."""
        self._ids: list[tuple[str, str]] = []
        self._shows_reasoning = body.include_reasoning is not False
        self._number = 0
        self.response = _head(response_id, body, talk)
        """The response as far as it has come; whole after `finish` or `fail`."""
        if num_cut:
            self.response.truncated_items = num_cut

    def begin(self) -> list[bytes]:
        """The first events."""
        self.response.status = "in_progress"
        return [
            _written(ev.Created(response=self.response, sequence_number=self._next())),
            _written(ev.InProgress(response=self.response, sequence_number=self._next())),
        ]

    def take(self, delta: Delta) -> list[bytes]:
        """The events of a delta; with the last delta those of the end."""
        pieces = self._talk.reader.read(delta)
        if self._logprobs is not None:
            self._logprobs.add(delta, self._talk.reader.content_spans(delta))
        if not self._shows_reasoning:
            pieces = [piece for piece in pieces if piece.kind != "reasoning"]
        events = self._tell(self._blocks.take(pieces))
        if delta.finish_reason is not None:
            events += self._tell(self._blocks.end())
            events.append(self._finish(_STATUS[delta.finish_reason]))
        return events

    def fail(self, error: OctavoError) -> bytes:
        """The event of an error, which ends the response."""
        self.response.error = ResponseError(code="server_error", message=error.message)
        return self._finish("failed")

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._finish("cancelled")

    def _finish(self, status: ResponseStatus) -> bytes:
        response = self.response
        response.status = status
        is_whole = status == "completed"
        response.output = [
            self._item(block, _end_of(block) if is_whole else "incomplete")
            for block in self._blocks.all
        ]
        response.usage = _usage(self._talk)
        if status == "incomplete":
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        if self._blocks.flaw:
            response.tool_parse_error = self._blocks.flaw
        return _written(_LAST[status](response=response, sequence_number=self._next()))

    def _next(self) -> int:
        number = self._number
        self._number += 1
        return number

    def _tell(self, changes: Iterable[Change]) -> list[bytes]:
        events: list[ev.ResponseEvent] = []
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
        return [_written(one) for one in events]

    def _begin(self, block: Block) -> list[ev.ResponseEvent]:
        item = self._item(block, "in_progress")
        if not isinstance(item, FunctionCallItem):
            item.content = []
        at = block.index
        added = ev.ItemAdded(output_index=at, item=item, sequence_number=self._next())
        if block.kind == "call":
            return [added]
        part = self._part(block, "")
        return [
            added,
            ev.PartAdded(item_id=item.id, output_index=at, part=part, sequence_number=self._next()),
        ]

    def _delta(self, block: Block, text: str) -> ev.ResponseEvent:
        item_id, at, number = self._ids[block.index][0], block.index, self._next()
        if block.kind == "content":
            rows = [] if self._logprobs is None else self._logprobs.of(text)
            self._rows.setdefault(at, []).extend(rows)
            return ev.TextDelta(
                item_id=item_id, output_index=at, delta=text, logprobs=rows, sequence_number=number
            )
        kind = ev.ArgumentsDelta if block.kind == "call" else ev.ReasoningDelta
        return kind(item_id=item_id, output_index=at, delta=text, sequence_number=number)

    def _end(self, block: Block) -> list[ev.ResponseEvent]:
        item_id, at = self._ids[block.index][0], block.index
        events: list[ev.ResponseEvent]
        if block.kind == "call":
            events = [
                ev.ArgumentsDone(
                    item_id=item_id,
                    output_index=at,
                    name=block.name,
                    arguments=block.text,
                    sequence_number=self._next(),
                )
            ]
        else:
            part = self._part(block, block.text)
            where: dict[str, Any] = {"item_id": item_id, "output_index": at, "text": block.text}
            if isinstance(part, OutputText):
                done: ev.ResponseEvent = ev.TextDone(
                    **where, logprobs=part.logprobs, sequence_number=self._next()
                )
            else:
                done = ev.ReasoningDone(**where, sequence_number=self._next())
            events = [
                done,
                ev.PartDone(
                    item_id=item_id, output_index=at, part=part, sequence_number=self._next()
                ),
            ]
        item = self._item(block, _end_of(block))
        return [*events, ev.ItemDone(output_index=at, item=item, sequence_number=self._next())]

    def _item(self, block: Block, status: ItemStatus) -> Item:
        item_id, call_id = self._ids[block.index]
        if block.kind == "call":
            return FunctionCallItem(
                id=item_id,
                status=status,
                call_id=call_id,
                name=block.name,
                arguments=block.text,
            )
        if block.kind == "reasoning":
            thought = ReasoningText(text=block.text)
            return ReasoningItem(id=item_id, status=status, summary=[], content=[thought])
        return MessageItem(
            id=item_id, status=status, content=[self._output_text(block, block.text)]
        )

    def _part(self, block: Block, text: str) -> OutputText | ReasoningText:
        if block.kind == "reasoning":
            return ReasoningText(text=text)
        return self._output_text(block, text)

    def _output_text(self, block: Block, text: str) -> OutputText:
        rows = list(self._rows.get(block.index, ()))
        return OutputText(text=text, annotations=[], logprobs=rows)


def _written(what: ev.ResponseEvent) -> bytes:
    return event(msgspec.json.encode(what), str(what.__struct_config__.tag))


def _end_of(block: Block) -> ItemStatus:
    return "incomplete" if block.flaw else "completed"


def _usage(talk: Talk) -> ResponseUsage:
    usage = usage_of([talk.generation])
    cached = usage.prompt_tokens_details.cached_tokens
    reasoning = talk.reader.num_reasoning_tokens
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=CachedTokens(cached_tokens=cached),
        output_tokens=usage.completion_tokens,
        output_tokens_details=ReasoningTokens(reasoning_tokens=reasoning),
        total_tokens=usage.total_tokens,
    )


def _head(response_id: str, body: ResponsesBody, talk: Talk) -> ResponseObject:
    """All of a response that is known from the start."""
    params = talk.generation.requests[0].params
    effort = body.reasoning.effort if body.reasoning else None
    return ResponseObject(
        id=response_id,
        created_at=int(time.time()),
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        error=None,
        incomplete_details=None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=talk.model,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning=ReasoningSaid(effort=effort, summary=None),
        service_tier="default",
        store=body.store is not False,
        temperature=params.temperature,
        text=ResponseText(format=(body.text.format if body.text else None) or {"type": "text"}),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_p=params.top_p,
        top_logprobs=body.top_logprobs or 0,
        truncation=body.truncation or "disabled",
        usage=None,
        user=body.user,
    )
