"""GET /v1/usage: what a tenant used and what it cost; an operator sees everyone, and where all device time went."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import Response

from octavo.core.errors import EngineError, RequestError
from octavo.server.call import Call, json_response
from octavo.server.costs.report import DEFAULT_SINCE_S, Usage, dimensions, moment, usage
from octavo.server.openai.pages import query


async def get_usage(call: Call) -> Response:
    """The ledger, as far as the caller may see it.

    Raises:
        RequestError: a bad query, or there is no ledger here.
        EngineError: it cannot be read.
    """
    asked = query(call, ("since", "until", "by"))
    now = time.time()
    since = moment(asked["since"], now) if "since" in asked else now - DEFAULT_SINCE_S
    until = moment(asked["until"], now) if "until" in asked else None
    dims = dimensions(asked.get("by", "tenant"))
    store = call.state.costs.store
    if store is None:
        raise RequestError(
            "this server keeps no ledger.",
            code="unsupported_endpoint",
            fix="Start it with --state-dir FOLDER or --ledger-url URL.",
        )
    # lazy: loaded by now, since there is a store
    from octavo.server.costs.store import LOST

    tenant = None if call.guest.may("operator") else call.caller.tenant

    def read() -> Usage:
        return usage(store, dims, since, until, tenant=tenant)

    try:
        report = await asyncio.to_thread(read)
    except LOST as error:
        raise EngineError("the ledger cannot be read.", code="storage_failed") from error
    return json_response(report)
