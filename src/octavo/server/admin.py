"""What changes the engine for everyone: for keys of role admin, and for whoever can open the admin socket."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from octavo.server.call import Call, json_response


class Done(msgspec.Struct, kw_only=True):
    """It has been done."""

    status: str = "ok"


async def reset_prefix_cache(call: Call) -> Response:
    """Forget every cached prefix that no running request uses. Raises EngineDeadError when there is no engine."""
    call.state.check_accepting()
    call.state.engine.reset_prefix_cache()
    return json_response(Done())
