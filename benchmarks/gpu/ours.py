"""The engine in this process, on random weights of a known shape: requests in, tokens and the times they came at out."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Failed, Finished, TokenOut
from octavo.engine.boot import boot
from octavo.engine.ipc import Events, FromEngine, Ready, Submit, ToEngine, Went
from octavo.engine.worker import calm_collector


class Run(NamedTuple):
    """What came of a workload."""

    seconds: float
    num_output: int
    first_s: dict[str, float]
    """Request -> seconds to its first token."""
    last_s: dict[str, float]


class _Link:
    """The other end of the engine's socket, without one."""

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []
        self.ready: Ready | None = None
        self.events: list[tuple[float, Any]] = []

    def receive(self, *, wait: bool) -> list[ToEngine]:
        messages, self.inbox = self.inbox, []
        return messages

    def wake(self) -> None:
        """Nobody sleeps."""

    def send(self, message: FromEngine) -> None:
        if isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, Events | Went):
            now = time.perf_counter()
            self.events += [(now, event) for event in message.events]


class Ours:
    """An engine that is up."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.link = _Link()
        now = time.monotonic()
        options = {"load_format": "dummy", "enable_prefix_caching": False} | options
        config = EngineConfig(model=str(folder), **options)
        self.engine = boot(config, self.link, asked_at=now, process_at=now)
        self.boot_s = time.monotonic() - now

    def about(self) -> dict[str, Any]:
        """Memory, decisions and start-up, as an operator would see them."""
        ready = self.link.ready
        assert ready is not None, "boot says so"
        graphs: Any = self.engine.runner.graphs  # type: ignore[attr-defined]
        return {
            "boot_s": self.boot_s,
            "memory": dict(ready.memory),
            "decisions": [list(decision) for decision in ready.decisions],
            "start_up": [[phase.name, phase.seconds, phase.detail] for phase in ready.phases],
            "graph_refusal": graphs.refusal,
            "graph_bytes": getattr(graphs, "num_bytes", 0),
        }

    def run(self, prompts: Iterable[tuple[int, int]]) -> Run:
        """Serve (prompt length, output length) of each, all there at once; greedy, without an end before the length."""
        vocab = self.link.ready.vocab_size if self.link.ready else 1
        self.link.events.clear()
        for i, (num_prompt, num_output) in enumerate(prompts):
            ids = tuple((i * 7919 + j * 104729 + 1) % vocab for j in range(num_prompt))
            params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=num_output)
            request = Request(
                id=f"r{i}", token_ids=ids, params=params, max_tokens=num_output, seed=i, arrived=0.0
            )
            self.link.inbox.append(Submit(request))
        begun = time.perf_counter()
        with calm_collector():
            while self.link.inbox or self.engine.scheduler.has_work:
                self.engine.step()
        ended = time.perf_counter()
        while self.engine.rest():  # what came up and is not captured yet
            pass
        first: dict[str, float] = {}
        last: dict[str, float] = {}
        count = 0
        for at, event in self.link.events:
            if isinstance(event, TokenOut):
                first.setdefault(event.id, at - begun)
                last[event.id] = at - begun
                count += len(event.token_ids)
            assert not isinstance(event, Failed), event
        ends = [event for _, event in self.link.events if isinstance(event, Finished)]
        assert len(ends) == len(first), "every request ends"
        return Run(ended - begun, count, first, last)

    def close(self) -> None:
        """Give the device's memory back."""
        self.engine = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def decode_rate(run: Run) -> float:
    """Tokens per second after the first, of a run of one request."""
    (first,), (last,) = run.first_s.values(), run.last_s.values()
    return (run.num_output - 1) / (last - first)
