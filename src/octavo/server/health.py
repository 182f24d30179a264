"""Four distinct signals about the server, each with a machine-readable reason; none queues behind user traffic.

`/livez`: restart me if this fails. `/readyz`: would take a call now. `/startupz`: how far the start is. `/health` and
`/ping`: ready or not, for those who know no more. Beside them `/version`, `/load` and `/metrics`.
"""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from octavo.core.errors import OctavoError
from octavo.meter.metrics import CONTENT_TYPE
from octavo.server.call import Call, json_response
from octavo.server.state import AppState, octavo_version


class Health(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of every health answer."""

    status: str
    """ok or unavailable."""
    reason: str = ""


class Startup(msgspec.Struct, kw_only=True):
    """How far the start is."""

    state: str
    phase: str
    percent: float
    reason: str


class Version(msgspec.Struct):
    """What answers."""

    version: str


class Load(msgspec.Struct, kw_only=True):
    """Work at hand. `server_load` counts generating calls under way."""

    server_load: int
    num_running: int
    num_waiting: int
    queued_tokens: int
    """Prompt tokens of accepted calls that have not begun."""
    predicted_ttft_ms: float | None
    """Of a short prompt sent now; null until predictions are trusted."""


async def health(call: Call) -> Response:
    """200 when calls are served (also while draining), else 503."""
    return _answer(_engine_trouble(call.state))


async def livez(call: Call) -> Response:
    """503 only when a restart would help: the engine is dead, or has work and hangs. Loading is alive."""
    status = call.state.engine.status()
    dead = f"engine dead: {status.reason}" if status.state == "dead" else ""
    return _answer(dead or _stall_reason(call.state))


async def readyz(call: Call) -> Response:
    """200 when a call sent now would be taken."""
    draining = "shutting down" if call.state.is_draining else ""
    return _answer(draining or _engine_trouble(call.state))


async def startupz(call: Call) -> Response:
    """200 once started; until then 503 with phase and percent."""
    status = call.state.engine.status()
    is_started = status.state in ("ready", "draining")
    body = Startup(
        state=status.state,
        phase=status.phase,
        percent=100.0 if is_started else round(100 * status.fraction, 1),
        reason=status.reason,
    )
    return json_response(body, 200 if is_started else 503)


async def version(call: Call) -> Response:
    """The version of this package."""
    return json_response(Version(octavo_version()))


async def load(call: Call) -> Response:
    """How busy the server is, for routers."""
    stats = call.state.engine.stats
    admission = call.state.admission
    first_s = admission.first_token_s(call.caller)
    body = Load(
        server_load=call.state.num_in_flight,
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        queued_tokens=admission.accounts.tokens,
        predicted_ttft_ms=None if first_s is None else round(1000 * first_s, 1),
    )
    return json_response(body)


async def metrics(call: Call) -> Response:
    """Prometheus text."""
    state = call.state
    state.metrics.observe_stats(state.engine.stats)
    if state.engine.status().state == "ready":
        ready = state.engine.ready
        state.metrics.observe_config(
            block_size=ready.block_size, num_blocks=ready.num_blocks, cache_dtype=ready.dtype
        )
        state.metrics.observe_build(
            version=octavo_version(), device=ready.device, dtype=ready.dtype
        )
        state.metrics.observe_startup((phase.name, phase.seconds) for phase in ready.phases)
    return Response(state.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _engine_trouble(state: AppState) -> str:
    """Why the engine cannot serve, or the empty string."""
    try:
        _ = state.engine.ready
    except OctavoError as error:
        status = state.engine.status()
        if status.state == "loading":
            return f"loading: {status.phase} {100 * status.fraction:.0f} %"
        return f"engine {status.state}: {status.reason or error.message}"
    return _stall_reason(state)


def _stall_reason(state: AppState) -> str:
    seconds = state.stalled_for()
    return "" if seconds is None else f"engine hangs: no progress for {seconds:.0f} s"


def _answer(trouble: str) -> Response:
    if trouble:
        return json_response(Health(status="unavailable", reason=trouble), 503)
    return json_response(Health(status="ok"))
