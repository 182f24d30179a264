"""POST and GET /v1/batches: jobs of many calls, run beside everyone else's (`server/batches.py`)."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import Response

from octavo.core.errors import RequestError, did_you_mean
from octavo.server.call import Call, json_response
from octavo.server.jobs.shapes import Batch, BatchList
from octavo.server.jobs.store import new_id
from octavo.server.openai.pages import page, path_id, query, store_of
from octavo.server.parse import Parser
from octavo.server.schema import BatchBody

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""What a batch may call, where the server has it."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_S = 30 * 86400
_parser = Parser(BatchBody)


async def create_batch(call: Call) -> Response:
    """Keep a job; it begins when its turn comes."""
    body = await call.body(_parser)
    store, tenant = store_of(call), call.caller.tenant
    known = [path for path in ENDPOINTS if path in call.state.endpoints]
    if body.endpoint not in known:
        raise RequestError(
            f"endpoint is {body.endpoint[:64]!r}; expected one of {', '.join(known)}."
            + did_you_mean(body.endpoint, known),
            param="endpoint",
        )
    window = body.completion_window
    seconds = int(window[:-1]) * _SECONDS[window[-1]]
    if seconds > _MOST_S:
        raise RequestError(
            f"completion_window is {window}; expected at most 30d.", param="completion_window"
        )
    file = store.file(tenant, body.input_file_id)
    now = int(time.time())
    batch = Batch(
        id=new_id("batch_"),
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=window,
        created_at=now,
        expires_at=now + seconds,
        metadata=body.metadata,
    )
    await asyncio.to_thread(store.add_batch, tenant, batch)
    call.state.wake_batches()
    return json_response(batch)


async def list_batches(call: Call) -> Response:
    """A key's jobs, newest first."""
    asked = query(call, ("limit", "after"))
    found, has_more = page(store_of(call).batches(call.caller.tenant), asked)
    return json_response(
        BatchList(
            data=found,
            first_id=found[0].id if found else None,
            last_id=found[-1].id if found else None,
            has_more=has_more,
        )
    )


async def get_batch(call: Call) -> Response:
    """A job as it is now."""
    return json_response(store_of(call).batch(call.caller.tenant, path_id(call, "batch_id")))


async def cancel_batch(call: Call) -> Response:
    """End a job early; what is answered stays."""
    store, now = store_of(call), int(time.time())
    batch = await asyncio.to_thread(
        store.cancel, call.caller.tenant, path_id(call, "batch_id"), now
    )
    call.state.wake_batches()
    return json_response(batch)
