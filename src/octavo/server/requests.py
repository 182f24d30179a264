"""GET and DELETE /v1/requests/{request_id}: look at a call under way, and end it wherever it stands."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from octavo.server.call import Call, json_response
from octavo.server.running import Running


class RequestObject(msgspec.Struct, kw_only=True):
    """A call under way."""

    id: str
    object: Literal["request"] = "request"
    created: int
    """Unix time."""
    route: str
    state: Literal["preparing", "waiting", "generating", "aborted"]
    """waiting: for its first token."""
    num_choices: int
    """Prompts times n; 0 while it is being prepared."""
    prompt_tokens: int
    completion_tokens: int
    """So far, over all choices."""
    params: dict[str, Any] | UnsetType = UNSET
    """How it samples, once that is settled."""


async def get_request(call: Call) -> Response:
    """How far a call is."""
    return json_response(_view(_found(call)))


async def delete_request(call: Call) -> Response:
    """End a call. Its choices end with finish_reason "abort"; what has said nothing yet is answered with a 499."""
    running = _found(call)
    running.end()
    return json_response(_view(running))


def _found(call: Call) -> Running:
    return call.state.calls.find(call.caller.tenant, call.scope["path_params"]["request_id"])


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
