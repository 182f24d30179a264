"""A server over the real engine in this process: endpoints, front end, scheduler and model, without a second process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from local_engine import LocalEngine
from octavo.core.config import ServerConfig
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event
from octavo.engine.client import EngineStatus
from octavo.engine.frontend import Frontend
from octavo.engine.ipc import Ready
from octavo.meter.metrics import Metrics
from octavo.server.state import AppState
from octavo.text.tokenizer import Tokenizer


class DirectEngine:
    """What the server needs of an engine client; steps while someone waits for an answer."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.local = LocalEngine(folder, **{"load_format": "auto", **options})

    @property
    def ready(self) -> Ready:
        return self.local.ready

    @property
    def stats(self) -> EngineStats:
        return self.local.engine.scheduler.stats()

    def status(self) -> EngineStatus:
        return EngineStatus(state="ready", fraction=1.0)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.local.submit(request)
        await asyncio.sleep(0)  # so that what comes with it goes into the same step
        while request.id not in self.local.ends:
            self.local.step()
            await asyncio.sleep(0)
        for event in self.local.outs.pop(request.id, []):
            yield event
        if request.id in self.local.pooled:
            yield self.local.pooled.pop(request.id)
        yield self.local.ends.pop(request.id)


def state_of(folder: Path, tokenizer: Path | None = None, **options: Any) -> AppState:
    """A server's state over such an engine."""
    engine = DirectEngine(folder, **options)
    return AppState(
        config=ServerConfig(port=0, disable_access_log=True, canary_interval=0.0),
        engine=engine,
        frontend=Frontend(engine, Tokenizer.load(tokenizer or folder)),
        chat_template=None,
        served_names=("model",),
        metrics=Metrics("model"),
        scheduling_policy="fcfs",
    )
