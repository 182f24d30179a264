"""The conversation that a response answers: what was kept of it, what is new, and how much of it fits.

With `truncation` auto the oldest items are left out until the prompt fits beside the output: whole turns, from a user's
message to the next, then in the last turn calls with their results. Instructions, system messages, the last user message
and what follows the last results stay. A call never loses its result, and no turn its question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from octavo.core.errors import ContextLengthError, RequestError
from octavo.engine.frontend import output_limit
from octavo.server.call import Call
from octavo.server.openai.talk import prompt_ids
from octavo.server.responses.input import chat_body, messages_of
from octavo.server.responses.schema import ResponsesBody

UNDER_WAY = ("queued", "in_progress")
_KEPT_ROLES = ("system", "developer")

Items = list[dict[str, Any]]


class Conversation(NamedTuple):
    """What is asked, as chat messages."""

    messages: list[dict[str, Any]]
    num_cut: int = 0
    """Items that were left out."""


async def conversation(call: Call, body: ResponsesBody, items: Items) -> Conversation:
    """The instructions of this call and the conversation so far, without the instructions of earlier ones.

    Raises:
        RequestError: an item, or an earlier response, that cannot be gone on from.
    """
    earlier = _earlier(call, body)
    whole = Conversation(_messages(body, earlier, items))
    if body.truncation != "auto":
        return whole
    call.stay.glance(call.caller)  # before what may take a while
    if await _fits(call, body, whole):
        return whole
    units = units_of([*earlier, *items])
    low, high = min(1, len(units)), len(units)
    while (
        low < high
    ):  # as few as leave a prompt that fits; where none does, all, and the call is refused as ever
        middle = (low + high) // 2
        if await _fits(call, body, _without(body, earlier, items, units[:middle])):
            high = middle
        else:
            low = middle + 1
    return _without(body, earlier, items, units[:low])


def units_of(items: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """What may be left out, oldest first, each unit as a whole."""
    turns: list[list[int]] = [[]]
    for index, item in enumerate(items):
        role = _role(item)
        if role == "user":
            turns.append([index])
        elif role not in _KEPT_ROLES:
            turns[-1].append(index)
    *older, last = turns
    groups: list[list[int]] = [[]]
    for index in last:
        if _role(items[index]) == "user":
            continue
        if groups[-1] and _is_result(items[groups[-1][-1]]) and not _is_result(items[index]):
            groups.append([])
        groups[-1].append(index)
    return [unit for unit in (*older, *groups[:-1]) if unit]


def _role(item: Mapping[str, Any]) -> object:
    return item.get("role") if item.get("type", "message") == "message" else None


def _is_result(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "function_call_output"


def _without(
    body: ResponsesBody, earlier: Items, items: Items, units: Sequence[Sequence[int]]
) -> Conversation:
    cut = {index for unit in units for index in unit}
    before = [item for index, item in enumerate(earlier) if index not in cut]
    after = [item for index, item in enumerate(items, len(earlier)) if index not in cut]
    return Conversation(_messages(body, before, after), len(cut))


async def _fits(call: Call, body: ResponsesBody, asked: Conversation) -> bool:
    """Whether a prompt leaves room for the output."""
    try:
        ids = await prompt_ids(call, chat_body(body, asked.messages))
        ready = call.state.check_accepting()
        output_limit(len(ids), body.max_output_tokens, ready.max_model_len)
    except ContextLengthError:
        return False
    return True


def _earlier(call: Call, body: ResponsesBody) -> Items:
    """Items of the responses that this one goes on from."""
    items: Items = []
    if body.previous_response_id is None:
        return items
    for row in call.state.responses.chain(call.caller.tenant, body.previous_response_id):
        answer = msgspec.json.decode(row.response)
        if answer["status"] in UNDER_WAY:
            raise RequestError(
                f"response {row.id!r} is not finished yet.", param="previous_response_id"
            )
        items += [*msgspec.json.decode(row.input), *answer["output"]]
    return items


def _messages(body: ResponsesBody, earlier: Items, items: Items) -> list[dict[str, Any]]:
    first: list[dict[str, Any]] = []
    if body.instructions is not None:
        first.append({"role": "system", "content": body.instructions})
    return [*first, *messages_of(earlier, "previous_response_id"), *messages_of(items)]
