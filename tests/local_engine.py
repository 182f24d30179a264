"""The real engine without its process: boot it here, feed it requests, collect what it says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from octavo.core.charge import Charges
from octavo.core.config import EngineConfig
from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.result import Failed, Finished, Pooled, TokenOut
from octavo.engine.boot import boot
from octavo.engine.engine import Engine
from octavo.engine.ipc import (
    Cancel,
    Charged,
    Events,
    FromEngine,
    Ready,
    Started,
    Steps,
    Submit,
    ToEngine,
    Went,
)
from octavo.scheduler import invariants
from overcommit import overcommit

TINY = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "hidden_act": "silu",
}


def write_tiny(folder: Path, **changes: Any) -> Path:
    """A model folder with a config.json only, for `load_format="dummy"`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY | changes))
    return folder


class MemoryLink:
    """A link whose other end is the test."""

    def __init__(self) -> None:
        self.inbox: list[ToEngine] = []
        self.sent: list[FromEngine] = []
        self.sleeps: Callable[[], bool] = lambda: False
        """Whether it may sleep: something is to wake it."""
        self._bell = threading.Event()

    def receive(self, *, wait: bool) -> list[ToEngine]:
        if wait and not self.inbox:
            assert self.sleeps(), "the engine went to sleep with nothing to do"
            assert self._bell.wait(60)
        self._bell.clear()
        messages, self.inbox = self.inbox, []
        return messages

    def wake(self) -> None:
        self._bell.set()

    def send(self, message: FromEngine) -> None:
        self.sent.append(message)


class LocalEngine:
    """Steps the engine by hand and checks the scheduler's invariants after every step."""

    def __init__(self, folder: Path, *, overcommits: bool = False, **options: Any) -> None:
        options = {
            "load_format": "dummy",
            "kv_cache_memory_bytes": 1 << 20,
            "max_num_seqs": 8,
            "threads": 1,  # a second thread only adds waiting at this size
        } | options
        self.link = MemoryLink()
        now = time.monotonic()
        config = EngineConfig(model=str(folder), **options)
        self.engine: Engine = boot(config, self.link, asked_at=now, process_at=now)
        self.link.sleeps = lambda: self.engine.grammars.is_busy
        if overcommits:
            overcommit(self.engine.scheduler)
        self.ready = next(message for message in self.link.sent if isinstance(message, Ready))
        self.started: list[str] = []
        self.charges: list[Charges] = []
        self.tokens: dict[str, list[int]] = {}
        self.outs: dict[str, list[TokenOut]] = {}
        self.pooled: dict[str, Pooled] = {}
        self.ends: dict[str, Finished | Failed] = {}
        self.steps: list[Steps] = []

    def submit(self, *requests: Request) -> None:
        self.link.inbox += [Submit(request) for request in requests]

    def cancel(self, request_id: str) -> None:
        self.link.inbox.append(Cancel((request_id,)))

    def stop(self, request_id: str) -> None:
        self.link.inbox.append(Cancel((request_id,), "stop"))

    def step(self) -> None:
        self.link.sent.clear()
        self.engine.step()
        wrong = invariants.check(self.engine.scheduler)
        assert not wrong, wrong
        for message in self.link.sent:
            if isinstance(message, Started):
                self.started += message.ids
                continue
            if isinstance(message, Steps):
                self.steps.append(message)
                continue
            if isinstance(message, Charged):
                self.charges.append(message.charges)
                continue
            assert isinstance(message, Events | Went)
            for event in message.events:
                assert event.id not in self.ends, "an event after the end"
                if isinstance(event, TokenOut):
                    self.tokens.setdefault(event.id, []).extend(event.token_ids)
                    self.outs.setdefault(event.id, []).append(event)
                elif isinstance(event, Pooled):
                    assert event.id not in self.pooled, "answered twice"
                    self.pooled[event.id] = event
                else:
                    self.ends[event.id] = event

    def run(self, requests: Iterable[Request] = ()) -> dict[str, list[int]]:
        """Submit everything at once and step until all is done; output tokens by id."""
        self.submit(*requests)
        while self.link.inbox or self.engine.scheduler.has_work:
            self.step()
        return self.tokens


def request(name: str, token_ids: Sequence[int], **options: Any) -> Request:
    """A request with neutral defaults; `options` are SamplingParams fields, or `arrived`, `cache_scope`, `index`."""
    fields = {
        key: options.pop(key)
        for key in ("arrived", "cache_scope", "index", "priority", "eos_token_ids")
        if key in options
    }
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 16} | options))
    return Request(
        id=name,
        token_ids=tuple(token_ids),
        params=params,
        max_tokens=params.max_tokens or 16,
        seed=params.seed or 0,
        **({"arrived": 0.0} | fields),
    )
