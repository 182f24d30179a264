"""The events of a stream of /v1/responses: what `writer.py` makes and the API document describes."""

from __future__ import annotations

import msgspec

from octavo.server.openai.logprobs import ChatTokenLogprob
from octavo.server.responses.shapes import Item, OutputText, ReasoningText, ResponseObject


class _Numbered(msgspec.Struct, kw_only=True, tag_field="type"):
    """All events are counted, from 0."""

    sequence_number: int


class _Whole(_Numbered, kw_only=True):
    """Tells of the response as far as it has come."""

    response: ResponseObject


class Created(_Whole, kw_only=True, tag="response.created"):
    """The first event."""


class InProgress(_Whole, kw_only=True, tag="response.in_progress"):
    """The second."""


class Completed(_Whole, kw_only=True, tag="response.completed"):
    """The last one of a response that came to its own end."""


class Incomplete(_Whole, kw_only=True, tag="response.incomplete"):
    """The last one of a response that was cut off, by a limit or by its caller."""


class Broken(_Whole, kw_only=True, tag="response.failed"):
    """The last one of a response that failed; `error` says why."""


class _InOutput(_Numbered, kw_only=True):
    """Tells of one item of the output."""

    output_index: int


class ItemAdded(_InOutput, kw_only=True, tag="response.output_item.added"):
    """An item begins."""

    item: Item


class ItemDone(_InOutput, kw_only=True, tag="response.output_item.done"):
    """An item is over; here it is whole."""

    item: Item


class _OfItem(_InOutput, kw_only=True):
    """Tells of a part of an item."""

    item_id: str


class _OfPart(_OfItem, kw_only=True):
    """Tells of a part of a message or of a reasoning; there is one part."""

    content_index: int = 0


class PartAdded(_OfPart, kw_only=True, tag="response.content_part.added"):
    """A part begins."""

    part: OutputText | ReasoningText


class PartDone(_OfPart, kw_only=True, tag="response.content_part.done"):
    """A part is over; here it is whole."""

    part: OutputText | ReasoningText


class TextDelta(_OfPart, kw_only=True, tag="response.output_text.delta"):
    """More of a message."""

    delta: str
    logprobs: list[ChatTokenLogprob] = []


class TextDone(_OfPart, kw_only=True, tag="response.output_text.done"):
    """A message's text is over."""

    text: str
    logprobs: list[ChatTokenLogprob] = []


class ReasoningDelta(_OfPart, kw_only=True, tag="response.reasoning_text.delta"):
    """More of a reasoning."""

    delta: str


class ReasoningDone(_OfPart, kw_only=True, tag="response.reasoning_text.done"):
    """A reasoning's text is over."""

    text: str


class ArgumentsDelta(_OfItem, kw_only=True, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class ArgumentsDone(_OfItem, kw_only=True, tag="response.function_call_arguments.done"):
    """A call's arguments are over."""

    name: str
    arguments: str


ResponseEvent = (
    Created
    | InProgress
    | Completed
    | Incomplete
    | Broken
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
