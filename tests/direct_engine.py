"""A server over the real engine in this process: endpoints, front end, scheduler and model, without a second process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from local_engine import LocalEngine
from octavo.core.config import ServerConfig
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event, Failed, Finished
from octavo.core.sequence import SequenceState
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.client import EngineStatus, aborted
from octavo.engine.frontend import Frontend
from octavo.engine.ipc import Events, Ready, Went
from octavo.engine.streams import Stage
from octavo.meter.metrics import Metrics
from octavo.server.state import AppState
from octavo.text.chat import ChatTemplate
from octavo.text.tokenizer import Tokenizer


class DirectEngine:
    """What the server needs of an engine client; steps while someone waits for an answer."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.local = LocalEngine(folder, **{"load_format": "auto", **options})
        self.aborted: set[str] = set()
        self.num_steps = self.num_step_tokens = 0
        self._on_stats: Callable[[EngineStats], None] = lambda stats: None

    @property
    def ready(self) -> Ready:
        return self.local.ready

    @property
    def stats(self) -> EngineStats:
        return self.local.engine.scheduler.stats()

    def watch(self, on_stats: Callable[[EngineStats], None]) -> None:
        self._on_stats = on_stats

    def tell(self) -> None:
        """Say what the engine said of itself last."""
        stats = [each.stats for each in self.local.link.sent if isinstance(each, Events | Went)]
        for each in stats:
            if each.num_steps > self.num_steps and each.last_step_tokens:
                self.num_steps = each.num_steps
                self.num_step_tokens += each.last_step_tokens
            self._on_stats(each)

    def status(self) -> EngineStatus:
        return EngineStatus(state="ready", fraction=1.0)

    def cancel(self, request_id: str) -> None:
        self.aborted.add(request_id)

    def stage(self, request_id: str) -> Stage:
        sequence = self.local.engine.scheduler.by_id.get(request_id)
        if sequence is None:
            return "elsewhere"
        return "running" if sequence.state is SequenceState.RUNNING else "waiting"

    def stop(self, request_id: str) -> None:
        self.local.stop(request_id)

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.local.engine.grammars.learn(vocabulary)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.local.submit(request)
        is_over = False
        try:
            await asyncio.sleep(0)  # so that what comes with it goes into the same step
            while not is_over:
                if request.id in self.aborted:
                    yield aborted(request)
                    return
                events = self._events(request.id)
                if not events:
                    self.local.step()
                    self.tell()
                    await asyncio.sleep(0)
                for event in events:
                    is_over = isinstance(event, Finished | Failed)
                    yield event
        finally:
            self.aborted.discard(request.id)
            self.local.tokens.pop(request.id, None)
            if not is_over:
                self.local.cancel(request.id)

    def _events(self, request_id: str) -> list[Event]:
        local = self.local
        events: list[Event] = [*local.outs.pop(request_id, [])]
        events += [one.pop(request_id) for one in (local.pooled, local.ends) if request_id in one]  # type: ignore[attr-defined]  # two dicts of events
        return events


def state_of(
    folder: Path,
    tokenizer: Path | Tokenizer | None = None,
    template: ChatTemplate | None = None,
    **options: Any,
) -> AppState:
    """A server's state over such an engine."""
    engine = DirectEngine(folder, **options)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer or folder)
    return AppState(
        config=ServerConfig(port=0, disable_access_log=True, canary_interval=0.0),
        engine=engine,
        frontend=Frontend(engine, tokenizer),
        chat_template=template,
        served_names=("model",),
        metrics=Metrics("model"),
        scheduling_policy="fcfs",
    )
