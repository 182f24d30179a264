"""Ends calls at every state they pass through, and looks at what is left of them.

A state is where every task of a call stands, from the task's own frame down to what it waits for, and how far the engine
is with its requests. The driver turns the
event loop by hand and ends the call (its client leaves, its task is cancelled, or it is ended by its id) when the k-th
state is reached, for every k until the call ends by itself. So the list of states comes from running the code.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from direct_engine import DirectEngine
from octavo.engine.frontend import Caller
from octavo.server.app import create_app
from octavo.server.auth import Guest
from octavo.server.keys.allowance import Allowance
from octavo.server.state import AppState

SOURCE = str(Path(__file__).parents[1] / "src" / "octavo")
Line = tuple[str, int]
WAYS = ("leave", "cancel", "end")
"""The client leaves; the task is cancelled, as at the server's end; DELETE /v1/requests/{id}."""
MAX_TURNS = 1_000_000
ROUND = "@round@"
"""In a body: the number of the call."""


class Case(NamedTuple):
    """One call."""

    path: str
    body: dict[str, Any]
    method: str = "POST"
    """WITHIN: no client makes it, but a batch job."""


class Cut(NamedTuple):
    """What happened."""

    reached: bool
    """False: the call ended before it came to that state."""
    status: int
    body: bytes
    lines: frozenset[Line]
    """Where its tasks stood, inside this package."""


def frames(waits: Any) -> Iterator[types.FrameType]:
    """Of everything that waits for something else, outermost first."""
    while waits is not None:
        if isinstance(waits, types.CoroutineType):
            if waits.cr_frame is not None:
                yield waits.cr_frame
            waits = waits.cr_await
        elif isinstance(waits, types.AsyncGeneratorType):
            if waits.ag_frame is not None:
                yield waits.ag_frame
            waits = waits.ag_await
        else:  # steps of async generators, wrappers of coroutines: no attribute leads on, the collector knows
            kinds = (types.CoroutineType, types.AsyncGeneratorType)
            is_own = isinstance(waits, asyncio.Future)
            inner = [] if is_own else [x for x in gc.get_referents(waits) if isinstance(x, kinds)]
            waits = inner[0] if inner else None


def standing(tasks: Any) -> frozenset[Line]:
    """Lines of this package at which tasks stand."""
    return frozenset(
        (frame.f_code.co_filename.removeprefix(SOURCE + "/"), frame.f_lineno)
        for task in tasks
        for frame in frames(task.get_coro())
        if frame.f_code.co_filename.startswith(SOURCE)
    )


class Bench:
    """A server without sockets. One event loop for all that happens to it."""

    def __init__(self, state: AppState, golden: Case, *, is_beside: bool = True) -> None:
        """`golden` must answer the same bytes whatever is ended beside it, or, where not `is_beside`, after it."""
        self.state = state
        self.case = golden
        self.is_beside = is_beside
        self.num_calls = 0
        self.wanted = b""
        self.golden_id = ""
        self.golden_names: frozenset[str] = frozenset()
        self.app = create_app(state)
        assert isinstance(state.engine, DirectEngine)
        self.local = state.engine.local
        self.num_free = self.scheduler.cache.num_free

    @property
    def scheduler(self) -> Any:
        return self.local.engine.scheduler

    async def call(self, case: Case, left: asyncio.Event) -> tuple[int, bytes]:
        """Make a call; its client leaves when `left` is set."""
        self.num_calls += 1
        body = json.dumps(case.body).replace(ROUND, str(self.num_calls)).encode()
        if case.method == "WITHIN":
            guest = Guest(Caller(), "operator", Allowance())
            inner = await self.state.endpoints[case.path](body, guest)
            return inner.status, inner.body
        parts = [
            {"type": "http.request", "body": body[:9], "more_body": True},
            {"type": "http.request", "body": body[9:], "more_body": False},
        ]
        status, out = 0, bytearray()

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            if parts and not left.is_set():
                return parts.pop(0)
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status
            await asyncio.sleep(0)
            status = message.get("status", status)
            out.extend(message.get("body", b""))

        scope = {
            "type": "http",
            "method": case.method,
            "path": case.path,
            "raw_path": case.path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await self.app(scope, receive, send)
        return status, bytes(out)

    async def round(self, case: Case, at: int, way: str) -> Cut:
        """`cut`, with the golden call beside or after it."""
        golden = await self.golden() if self.is_beside else None
        cut = await self.cut(case, at, way)
        if golden is None:
            golden = asyncio.ensure_future(self.call(self.case, asyncio.Event()))
        said = await self.finish(golden)
        self.wanted = self.wanted or said
        assert said == self.wanted, "the golden call answered something else"
        return cut

    async def cut(self, case: Case, at: int, way: str) -> Cut:
        """Make a call and end it in its state number `at`, counted from 0; -1: let it come to its own end."""
        before = asyncio.all_tasks()
        left = asyncio.Event()
        task = asyncio.ensure_future(self.call(case, left))
        seen, lines = -1, frozenset[Line]()
        last: object = None
        for _ in range(MAX_TURNS):
            await asyncio.sleep(0)
            if task.done():
                break
            now = standing(asyncio.all_tasks() - before)
            whole = now, self._progress()
            if whole != last:
                seen, last = seen + 1, whole
            if seen == at:
                lines = now
                self._end(way, left, task)
                break
        await self._over(task)
        await self._settle(before)
        status, out = (0, b"") if task.cancelled() else task.result()
        return Cut(bool(lines), status, out, lines)

    def _end(self, way: str, left: asyncio.Event, task: asyncio.Task[Any]) -> None:
        if way == "leave":
            left.set()
        elif way == "cancel":
            task.cancel()
        else:
            for running in self.own:
                running.end()

    @property
    def own(self) -> list[Any]:
        """Calls under way, but for the golden one."""
        found = self.state.calls
        return [one for one in found if one.id != self.golden_id]

    def _progress(self) -> list[tuple[Any, ...]]:
        """How far the engine is with the requests of the call."""
        known = self.scheduler.by_id.items()
        own = [one for name, one in known if name not in self.golden_names]
        return [(one.state, one.num_computed, one.num_tokens) for one in own]

    async def _over(self, task: asyncio.Task[Any]) -> None:
        for _ in range(MAX_TURNS):
            if task.done():
                return
            await asyncio.sleep(0)
        raise AssertionError("the call goes on for ever")

    async def _settle(self, before: set[asyncio.Task[Any]]) -> None:
        """Nothing of the call is left: no task, no count, and in the engine no block after two steps."""
        for _ in range(MAX_TURNS):  # what goes on in the background on purpose
            rest = asyncio.all_tasks() - before
            if not rest:
                break
            for task in rest:
                if self.state.background and task in self.state.background.values():
                    task.cancel()
            await asyncio.sleep(0)
        assert not rest, rest
        assert not self.own, "a call is still looked after"
        own_steps = 0
        while own_steps < 2 and (self.local.link.inbox or self._strangers()):
            self.local.step()
            own_steps += 1
        assert not self._strangers(), "it still runs after two steps"
        for ended in (self.local.ends, self.local.outs, self.local.pooled):
            for name in [name for name in ended if name not in self.golden_names]:
                ended.pop(name)  # type: ignore[attr-defined]  # three dicts

    def _strangers(self) -> list[str]:
        return [name for name in self.scheduler.by_id if name not in self.golden_names]

    async def golden(self) -> asyncio.Task[tuple[int, bytes]]:
        """Begin a call that nobody ends; returns when the engine runs it."""
        known = {one.id for one in self.state.calls}
        task = asyncio.ensure_future(self.call(self.case, asyncio.Event()))
        for _ in range(MAX_TURNS):
            if self.scheduler.running:
                break
            await asyncio.sleep(0)
        (self.golden_id,) = {one.id for one in self.state.calls} - known
        self.golden_names = frozenset(self.scheduler.by_id)
        return task

    async def finish(self, golden: asyncio.Task[tuple[int, bytes]]) -> bytes:
        """Its bytes, without what is new in every call; and everything is back where it was."""
        await self._over(golden)
        self.golden_id, self.golden_names = "", frozenset()
        state, metrics = self.state, self.state.metrics
        assert len(state.calls) == 0 and state.num_in_flight == 0
        assert metrics.value("octavo:requests_in_flight") == 0
        while self.local.link.inbox:
            self.local.step()
        assert not self.scheduler.has_work
        assert self.scheduler.cache.num_free == self.num_free, "blocks are missing"
        status, body = golden.result()
        assert status == 200
        return unnamed(body)


def unnamed(body: bytes) -> bytes:
    """Without ids and times."""
    return re.sub(rb'"created":\d+|[0-9a-f]{32}', b"", body)


def awaits(*patterns: str) -> dict[Line, str]:
    """Every `await` and `async for` of these files, with its code."""
    found: dict[Line, str] = {}
    for path in sorted(one for pattern in patterns for one in Path(SOURCE).glob(pattern)):
        name = str(path.relative_to(SOURCE))
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Await):
                found[name, node.lineno] = ast.get_source_segment(source, node) or ""
            elif (
                isinstance(node, ast.AsyncFor)
                or isinstance(node, ast.comprehension)
                and node.is_async
            ):
                found[name, node.iter.lineno] = f"async for {ast.unparse(node.iter)}"
    return found
