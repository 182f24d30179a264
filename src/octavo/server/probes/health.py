"""Distinct signals about the server, each with a machine-readable code; none queues behind user traffic.

`/livez`: restart me if this fails. `/readyz`: would take a call now. `/startupz`: how far the start is. `/health` and
`/ping`: ready or not, for those who know no more. `/healthz?deep=1`: what all of that is read from, with the last
answer of the canary. Beside them `/version`, `/load` and `/metrics`. What the codes mean stands in `docs/health.md`.
"""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from octavo.core.errors import RequestError
from octavo.engine.ipc import Ready
from octavo.engine.page import Reading
from octavo.meter.metrics import CONTENT_TYPE
from octavo.server.call import Call, json_response
from octavo.server.canary import Canary
from octavo.server.probes.trouble import Code, Trouble, deadly_trouble, trouble_of
from octavo.server.state import AppState, octavo_version


class Health(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The body of every health answer."""

    status: str
    """ok or unavailable."""
    code: Code = ""
    """Why not, for machines."""
    reason: str = ""
    """Why not, for people."""


class CanaryReport(msgspec.Struct, kw_only=True):
    """The last answer to a request whose answer is known."""

    age_s: float | None
    """Since it came; None before the first. Grows while the engine has no place for it."""
    tokens_matched: int
    tokens_expected: int
    drift: float | None
    """Largest difference to the known answer: of log-probabilities in nats, or of features as a part of the largest."""
    latency_s: float
    failures: int
    """Answers that were no good, since the start."""


class EnginePulse(msgspec.Struct, kw_only=True):
    """What the engine's process shows of itself."""

    beat_age_s: float
    """Since its last sign of life."""
    step_age_s: float
    """Since its loop last got on with work; 0 when there is none."""
    step_allowed_s: float
    """What that may come to."""
    steps: int


class DeepHealth(Health, kw_only=True, omit_defaults=True):
    """Health, and what it is read from."""

    engine: EnginePulse | None = None
    canary: CanaryReport | None = None
    ledger: str = ""
    """Why the ledger on disk does not have all."""


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
    return _answer(trouble_of(call.state))


async def livez(call: Call) -> Response:
    """503 only when a restart would help: the engine is dead, or something hangs for good. Loading is alive."""
    return _answer(deadly_trouble(call.state))


async def readyz(call: Call) -> Response:
    """200 when a call sent now would be taken."""
    if call.state.is_draining:
        return _answer(Trouble("shutting_down", "shutting down"))
    return _answer(trouble_of(call.state))


async def healthz(call: Call) -> Response:
    """As `/health`; with `deep=1`, also what that is read from.

    Raises:
        RequestError: another query.
    """
    query = call.scope["query_string"]
    if query not in (b"", b"deep=0", b"deep=1"):
        raise RequestError(
            f"the query is {query[:40].decode('latin-1')!r}; expected deep=1, deep=0 or none.",
            param="deep",
        )
    state = call.state
    trouble = trouble_of(state)
    if query != b"deep=1":
        return _answer(trouble)
    pulse = state.engine.status().pulse
    body = DeepHealth(
        status="unavailable" if trouble else "ok",
        code=trouble.code if trouble else "",
        reason=trouble.reason if trouble else "",
        engine=None if pulse is None else _engine_pulse(pulse),
        canary=None if state.canary is None else _canary_report(state.canary),
        ledger=state.costs.trouble,
    )
    return json_response(body, 503 if trouble else 200)


async def startupz(call: Call) -> Response:
    """200 once started; until then 503 with phase and percent."""
    status = call.state.engine.status()
    is_started = status.state in ("ready", "restarting", "draining")
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
    state.metrics.observe_stages(state.engine.stage)
    status = state.engine.status()
    state.metrics.observe_restarts(status.restarts)
    _observe_canary(state)
    if status.state == "ready":
        ready = state.engine.ready
        state.metrics.observe_config(
            block_size=ready.block_size,
            num_blocks=ready.num_blocks,
            num_tokens=ready.kv_tokens,
            cache_dtype=_cache_dtype(ready),
        )
        state.metrics.observe_build(
            version=octavo_version(), device=ready.device, dtype=ready.dtype
        )
        state.metrics.observe_startup((phase.name, phase.seconds) for phase in ready.phases)
    return Response(state.metrics.render(), headers={"content-type": CONTENT_TYPE})


def _cache_dtype(ready: Ready) -> str:
    """Of keys and values, where that was decided apart from the activations'."""
    chosen = {name: value for name, value, _ in ready.decisions}
    return chosen.get("kv_cache_dtype", ready.dtype)


def _answer(trouble: Trouble | None) -> Response:
    if trouble is not None:
        body = Health(status="unavailable", code=trouble.code, reason=trouble.reason)
        return json_response(body, 503)
    return json_response(Health(status="ok"))


def _engine_pulse(pulse: Reading) -> EnginePulse:
    return EnginePulse(
        beat_age_s=round(pulse.beat_age_s, 3),
        step_age_s=round(pulse.step_age_s, 3),
        step_allowed_s=round(pulse.allowed_s, 3),
        steps=pulse.num_steps,
    )


def _canary_report(canary: Canary) -> CanaryReport:
    match, age = canary.match, canary.age_s
    drift = match.drift if match is not None and math.isfinite(match.drift) else None
    return CanaryReport(
        age_s=None if age is None else round(age, 3),
        tokens_matched=0 if match is None else match.num_equal,
        tokens_expected=canary.num_expected,
        drift=drift,
        latency_s=round(canary.latency_s, 6),
        failures=canary.num_failures,
    )


def _observe_canary(state: AppState) -> None:
    """Its age is not a number as long as there is no answer: 0 would say that one has just come."""
    metrics, canary = state.metrics, state.canary
    age = None if canary is None else canary.age_s
    metrics.set("octavo:canary_age_seconds", math.nan if age is None else age)
    if canary is not None and canary.match is not None:
        metrics.raise_to("octavo:canary_failures", canary.num_failures)
        metrics.set("octavo:canary_tokens_matched", canary.match.num_equal)
        metrics.set("octavo:canary_latency_seconds", canary.latency_s)
