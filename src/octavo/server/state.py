"""What the handlers share: one `AppState` per server, and what it asks of an engine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from octavo.core.config import ServerConfig
from octavo.core.errors import EngineDeadError, NotFoundError, OperatorError, did_you_mean
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.client import EngineStatus
from octavo.engine.frontend import Frontend
from octavo.engine.ipc import Ready, Steps
from octavo.engine.streams import Stage
from octavo.meter.metrics import Metrics
from octavo.meter.trace import Tracer
from octavo.scheduler.policies.registry import POLICIES
from octavo.server.admission.desk import Admission, Bounds
from octavo.server.auth import Guest, KeyRing
from octavo.server.canary import Canary
from octavo.server.costs.desk import CostDesk
from octavo.server.feed import Feed
from octavo.server.jobs.store import Store
from octavo.server.replayed import Replays
from octavo.server.response_store import ResponseStore
from octavo.server.running import Calls
from octavo.text.chat import ChatTemplate
from octavo.text.parsers.output import Formats


class Inner(NamedTuple):
    """The answer of a call that no client made."""

    status: int
    request_id: str
    body: bytes
    retry_after_s: float
    """Of a 429 or 503; else 0."""


class Batches(Protocol):
    """What the server needs of the batch runner."""

    def wake(self) -> None:
        """There are new jobs, or cancelled ones."""
        ...

    def start(self) -> None:
        """Run jobs from now on."""
        ...

    async def stop(self) -> None:
        """Leave the jobs where they are."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives the server, where it has a --state-dir."""

    store: Store | None = None
    """Files and batch jobs."""
    responses: ResponseStore = field(default_factory=ResponseStore)


class EngineHandle(Protocol):
    """What the server needs of an engine client, which may still be starting."""

    @property
    def ready(self) -> Ready:
        """What was started. Raises until the engine can take requests: EngineDeadError, or why it could not start."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        ...

    def status(self) -> EngineStatus:
        """How the engine is; never waits."""
        ...

    def stage(self, request_id: str) -> Stage:
        """Where a request stands, in a word."""
        ...

    def restart(self, reason: str) -> bool:
        """End an engine that hangs; another one goes on with what is open. False where there is none to restart."""
        ...

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """Submit, then yield events up to one Finished or Failed. Closing it early cancels."""
        ...

    def cancel(self, request_id: str) -> None:
        """End a request: its events end with a Finished that says abort. Unknown ids are ignored."""
        ...

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tell the engine, once, what grammars are built for."""
        ...

    def follow_steps(self) -> AsyncIterator[Steps]:
        """The engine's steps from now on; close it when done."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes that nobody is using."""
        ...


def octavo_version() -> str:
    """The installed version; `0+source` when run from a source tree."""
    try:
        return importlib.metadata.version("octavo")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


@dataclass(slots=True, kw_only=True)
class AppState:
    """Everything that outlives a call. Owner: the server's event loop."""

    config: ServerConfig
    engine: EngineHandle
    frontend: Frontend
    chat_template: ChatTemplate | None
    """None when the model has no chat template."""
    served_names: tuple[str, ...]
    """Names under which the model answers; at least one, the first is used in answers."""
    metrics: Metrics
    scheduling_policy: str
    bounds: Bounds = Bounds()
    """Of what may wait."""
    admission: Admission = field(init=False)
    costs: CostDesk = field(init=False)
    """Where the engine's time goes, and who pays."""
    console: Feed = field(init=False)
    keys: KeyRing = field(default_factory=KeyRing)
    formats: Formats = Formats()
    """How the model writes its reasoning and its tool calls."""
    calls: Calls = field(default_factory=Calls)
    """What is under way, by id."""
    background: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    """Responses that are made with no caller waiting, by tenant and id."""
    step_log: Path | None = None
    """Where the engine writes its steps; None: nowhere."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever reads there: one at a time, so that the answers of others are not kept waiting."""
    replays: Replays = field(default_factory=Replays)
    kept: Kept = field(default_factory=Kept)
    open_kept: Callable[[], Kept] | None = None
    """Opens it when the server begins to listen; where another server has it until then."""
    endpoints: dict[str, Callable[[bytes, Guest], Awaitable[Inner]]] = field(default_factory=dict)
    """POST routes by path, for calls from within; filled by the application."""
    batches: Batches | None = None
    """What runs the jobs of `store`, while the application does."""
    on_start: Callable[[], Awaitable[None]] | None = None
    """Run beside the server once it listens (starts the engine); its error stops the server."""
    on_stop: Callable[[], Awaitable[None]] | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time of the model listing."""
    is_draining: bool = False
    """Set at SIGTERM: running calls finish, new ones are refused."""
    is_leaving: bool = False
    """A successor accepts the connections: what comes on those that are open is answered, and they close with it."""
    num_in_flight: int = 0
    """Generating calls under way."""
    failure: Exception | None = None
    """Why `on_start` failed."""
    tracer: Tracer | None = None
    """Sends spans of calls; None: nobody asked for traces."""
    canary: Canary | None = None
    """Asks the engine what it knows the answer to; None: nobody does."""

    @property
    def store(self) -> Store | None:
        """Files and batch jobs; None without --state-dir."""
        return self.kept.store

    @property
    def responses(self) -> ResponseStore:
        """Answers that later calls may go on from."""
        return self.kept.responses

    def __post_init__(self) -> None:
        policy = POLICIES.load(self.scheduling_policy)()
        self.admission = Admission(self.engine, self.metrics, self.bounds, policy)
        price = self.config.device_price
        self.costs = CostDesk(self.served_names[0], self.metrics, price)
        self.console = Feed(self.engine, self.metrics, self.calls, octavo_version())

    @property
    def default_sampling(self) -> Mapping[str, float | int]:
        """Sampling defaults of the model's author, unless the operator wants neutral ones."""
        if self.config.generation_config != "auto":
            return {}
        return self.frontend.tokenizer.default_sampling

    def check_model(self, name: str | None) -> str:
        """The served name that a call means; None means the first.

        Raises:
            NotFoundError: no such model here.
        """
        if name is None:
            return self.served_names[0]
        if name in self.served_names:
            return name
        known = ", ".join(self.served_names)
        raise NotFoundError(
            f"no model {name!r} here; served: {known}.{did_you_mean(name, self.served_names)}",
            param="model",
            code="model_not_found",
        )

    def check_accepting(self) -> Ready:
        """What was started, if a new generating call can be taken now.

        Raises:
            EngineDeadError: loading, dead or draining.
        """
        if self.is_draining:
            raise EngineDeadError("the server is shutting down.", code="shutting_down")
        try:
            return self.engine.ready
        except OperatorError as error:
            raise EngineDeadError(f"the engine could not start: {error.message}") from error

    def wake_batches(self) -> None:
        """There are new jobs, or cancelled ones."""
        if self.batches is not None:
            self.batches.wake()

    def begin_call(self) -> None:
        """A generating call is under way."""
        self.num_in_flight += 1

    def end_call(self) -> None:
        """A generating call has ended."""
        self.num_in_flight -= 1
