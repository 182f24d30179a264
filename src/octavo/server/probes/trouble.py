"""Why a call would not be served now, as a code that machines read and a sentence for people. Never waits.

The limits: what is readiness and costs a few seconds without new calls is told within two seconds; what is a restart
and costs all that runs, is told after fifteen.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

from octavo.core.errors import OctavoError
from octavo.server.state import AppState

Code = Literal[
    "",
    "loading",
    "shutting_down",
    "engine_restarting",
    "engine_dead",
    "engine_not_responding",
    "engine_hung",
    "tokenizer_not_responding",
    "canary_mismatch",
]

BEAT_LIMIT_S = 1.0
"""Five signs of life left out: a process that runs at all on a busy machine gives some of them."""
LIVE_S = 15.0
"""An engine that has been stuck for so long beyond its limit does not come back, and was not started anew by then."""


class Trouble(NamedTuple):
    """Something is wrong."""

    code: Code
    reason: str


def trouble_of(state: AppState) -> Trouble | None:
    """Why calls are not served; None when they are. A server that drains still serves those it has."""
    return (
        engine_trouble(state)
        or _text_trouble(state)
        or (_canary_trouble(state) if state.canary is not None else None)
    )


def deadly_trouble(state: AppState) -> Trouble | None:
    """What only a restart of the server helps against. An engine that loads, or is started anew, is alive."""
    engine = engine_trouble(state, patience_s=LIVE_S)
    if engine is not None and engine.code in ("loading", "engine_restarting"):
        engine = None
    return engine or _text_trouble(state, patience_s=LIVE_S)


def engine_trouble(state: AppState, patience_s: float = 0.0) -> Trouble | None:
    """What is wrong with the engine, and has been for `patience_s` longer than it needs to be seen."""
    status = state.engine.status()
    if status.state == "loading":
        return Trouble("loading", f"loading: {status.phase} {100 * status.fraction:.0f} %")
    if status.state == "restarting":
        reason = f"engine restarting: {status.phase} {100 * status.fraction:.0f} %, after: {status.reason}"
        return Trouble("engine_restarting", reason)
    try:
        _ = state.engine.ready
    except OctavoError as error:
        return Trouble("engine_dead", f"engine {status.state}: {status.reason or error.message}")
    pulse = status.pulse
    if pulse is None:
        return None
    if pulse.beat_age_s > BEAT_LIMIT_S + patience_s:
        return Trouble(
            "engine_not_responding",
            f"no sign of life from the engine's process for {pulse.beat_age_s:.1f} s",
        )
    if pulse.step_age_s > pulse.allowed_s + patience_s:
        return Trouble(
            "engine_hung",
            f"the engine has not got on for {pulse.step_age_s:.1f} s; this step may take {pulse.allowed_s:.1f} s",
        )
    return None


def _text_trouble(state: AppState, patience_s: float = 0.0) -> Trouble | None:
    seconds = state.frontend.workers.stuck_s(time.monotonic())
    if seconds <= patience_s:
        return None
    return Trouble(
        "tokenizer_not_responding", f"no text has come out of the tokenizer for {seconds:.1f} s"
    )


def _canary_trouble(state: AppState) -> Trouble | None:
    assert state.canary is not None, "asked only where there is one"
    trouble = state.canary.trouble
    return (
        Trouble("canary_mismatch", f"the canary's answer is no good: {trouble}")
        if trouble
        else None
    )
