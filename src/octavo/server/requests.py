"""GET and DELETE /v1/requests/{request_id}: look at a call and where its time went, and end it wherever it stands.

A user sees and ends its tenant's calls. An operator sees everybody's, as in the console: times, counts and causes, and nothing
that the caller wrote. To see how another's call samples (stop strings are the caller's words), and to end it, takes an admin.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.core.errors import RequestError
from octavo.core.log import get_logger
from octavo.meter.evidence import evidence
from octavo.meter.stepfile import files
from octavo.meter.why import Part, Seen, Stamps, Why, explain
from octavo.server.call import Call, json_response
from octavo.server.openai.pages import query
from octavo.server.replayed import WhatIfView
from octavo.server.running import Past, Running

logger = get_logger(__name__)

_MOST_BYTES = 16 << 20
"""Of the step log that is read for one look; a call that took longer is told apart without steps."""


class CostView(msgspec.Struct, kw_only=True):
    """What another request cost this one."""

    id: str | None
    """Of the engine's request; null where it is another key's."""
    seconds: float


class TimingView(msgspec.Struct, kw_only=True):
    """Where the time went. The parts follow each other, in their order, and sum to `total_s`: a bar each."""

    total_s: float
    """From its headers to its last byte, or to now."""
    first_token_s: float | None
    parts: list[Part]
    """Their names are explained in docs/why.md."""
    costliest: list[CostView]
    """Up to three other requests, by what they cost it: their share of steps in which it ran, or for which it waited."""
    num_steps: int
    """Steps that this was read from; 0: `--step-log` is off or too much was to be read, so that the engine's part is told by
    what the request itself knows.
    """
    request_id: str
    """The engine's request, under which the step log has it; of several choices the one that took longest."""


class RequestObject(msgspec.Struct, kw_only=True):
    """A call under way, or one that has ended lately."""

    id: str
    object: Literal["request"] = "request"
    created: int
    """Unix time."""
    route: str
    state: Literal["preparing", "waiting", "generating", "aborted", "ended"]
    """waiting: for its first token."""
    num_choices: int
    """Prompts times n; 0 while it is being prepared."""
    prompt_tokens: int
    completion_tokens: int
    """So far, over all choices."""
    params: dict[str, Any] | UnsetType = UNSET
    """How it samples, once that is settled and while it runs; of another tenant's call, for admins alone."""
    timing: TimingView | UnsetType = UNSET
    what_if: WhatIfView | UnsetType = UNSET
    """With `what_if=true`."""


async def get_request(call: Call) -> Response:
    """How far a call is, or how it went; with `what_if=true`, also how it would have gone without who cost it most.

    Raises:
        RequestError: another query, or what `Replays.what_if` raises.
    """
    asked = query(call, ("what_if",)).get("what_if", "false")
    if asked not in ("true", "false"):
        raise RequestError(f"what_if is {asked[:40]!r}; expected true or false.", param="what_if")
    calls = call.state.calls
    whose = None if call.guest.may("operator") else call.caller.tenant
    found = calls.recall(whose, call.scope["path_params"]["request_id"])
    view = _view(found) if isinstance(found, Running) else _past(found)
    if _whose(call) not in (None, found.tenant):
        view.params = UNSET
    past = Past.of(found) if isinstance(found, Running) else found
    view.timing = await _timing(call, past)
    if asked == "true":
        view.what_if = await _what_if(call, past)
    return json_response(view)


async def delete_request(call: Call) -> Response:
    """End a call. Its choices end with finish_reason "abort"; what has said nothing yet is answered with a 499."""
    running = call.state.calls.find(_whose(call), call.scope["path_params"]["request_id"])
    running.end()
    return json_response(_view(running))


def _whose(call: Call) -> str | None:
    """Whose calls it may see whole and end: those of its tenant, or all, of an admin."""
    return None if call.guest.may("admin") else call.caller.tenant


def _view(running: Running) -> RequestObject:
    generations = running.generations
    output = sum(generation.usage.completion_tokens for generation in generations)
    state: Literal["preparing", "waiting", "generating", "aborted"] = "preparing"
    if running.requests:
        state = "generating" if output else "waiting"
    params: dict[str, Any] | UnsetType = UNSET
    if generations:
        params = msgspec.to_builtins(running.requests[0].params)
    return RequestObject(
        id=running.id,
        created=running.created,
        route=running.route,
        state="aborted" if running.is_ended else state,
        num_choices=len(running.requests),
        prompt_tokens=sum(generation.usage.prompt_tokens for generation in generations)
        or sum(request.num_prompt for request in running.requests),
        completion_tokens=output,
        params=params,
    )


def _past(past: Past) -> RequestObject:
    return RequestObject(
        id=past.id,
        created=past.created,
        route=past.route,
        state="aborted" if past.is_aborted else "ended",
        num_choices=past.num_choices,
        prompt_tokens=past.prompt_tokens,
        completion_tokens=past.completion_tokens,
    )


async def _what_if(call: Call, past: Past) -> WhatIfView:
    found = await call.state.replays.what_if(call.state.step_log, past.request_id)
    if found.without is not None and _shown(call, past, found.without) is None:
        found.told = found.told.replace(found.without, "another key's request")
        found.without = None
    return found


def _shown(call: Call, past: Past, name: str) -> str | None:
    """Another request's id, to those who may know it."""
    is_own = call.state.calls.tenant_of(name) == past.tenant or call.guest.may("operator")
    return name if is_own else None


async def _timing(call: Call, past: Past) -> TimingView:
    why = await _why(call, past.request_id, past.stamps)
    stamps = past.stamps
    first = stamps.first_token
    return TimingView(
        total_s=why.total_s,
        first_token_s=None if first is None else first - stamps.received,
        parts=list(why.parts),
        costliest=[
            CostView(id=_shown(call, past, cost.id), seconds=cost.seconds) for cost in why.costliest
        ],
        num_steps=why.num_steps,
        request_id=past.request_id,
    )


async def _why(call: Call, request_id: str, stamps: Stamps) -> Why:
    """With what the step log has of it, where there is one."""
    folder = call.state.step_log
    if folder is None or not request_id:
        return explain(request_id, stamps)
    async with call.state.reading:
        seen = await asyncio.to_thread(_seen, folder, request_id, stamps)
    return explain(request_id, stamps, seen)


def _seen(folder: Path, request_id: str, stamps: Stamps) -> tuple[Seen, ...]:
    offset = time.time() - time.monotonic()
    since, until = stamps.received + offset, stamps.ended + offset
    try:
        size = sum(path.stat().st_size for path in files(folder, since, until))
        if size > _MOST_BYTES:
            return ()
        for found in evidence(folder, request_id, since, until):
            if found.arrived.id == request_id:
                return found.seen
    except OSError as error:
        logger.warning("the step log cannot be read: %s", error)
    return ()
