"""The front end's way to a compiled grammar: a cache, and processes behind it. asyncio, no torch.

What was compiled once, or refused once, is answered from a cache that is bounded in bytes. Requests that want the same
wait for one compilation. Nothing is started before somebody asks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from octavo.core.errors import EngineError
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import GrammarError, Vocabulary
from octavo.decoding.grammar.lru import BytesLRU
from octavo.decoding.grammar.registry import DEFAULT
from octavo.decoding.grammar.worker import CompileLimits, Outcome, WorkerProcess

_CACHE_BYTES = 32 << 20
_ENTRY_BYTES = 512
"""What an entry takes beside its texts."""
MAX_WAITING = 256
"""Compilations waiting at once; more are refused."""


class GrammarCompiler:
    """Compiles constraints off the event loop, `max_at_once` at a time. Owner: the front end."""

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        limits: CompileLimits | None = None,
        max_at_once: int = 2,
        backend: str = DEFAULT,
    ) -> None:
        """`vocabulary` is asked once, off the event loop, when the first constraint comes."""
        self._make_vocabulary = vocabulary
        self._limits = limits or CompileLimits()
        self._backend = backend
        self._max_at_once = max_at_once
        self._cache: BytesLRU[bytes, Outcome] = BytesLRU(_CACHE_BYTES)
        self._under_way: dict[bytes, asyncio.Future[Outcome]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[WorkerProcess] = []
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._is_closed = False

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What grammars are compiled for; None before the first."""
        return self._vocabulary

    async def learn(self) -> Vocabulary:
        """The vocabulary, read off the event loop unless it was before."""
        return await asyncio.get_running_loop().run_in_executor(self._pool(), self._learn)

    async def compile(self, wanted: StructuredOutputs) -> str:
        """The constraint in the words of the engine's backend.

        Raises:
            GrammarError: it cannot be used, or compiling it passes a limit.
            EngineError: the process that compiles does not start.
        """
        key = msgspec.msgpack.encode(wanted)
        known = self._cache.get(key)
        if known is None:
            under_way = self._under_way.get(key)
            if under_way is None:
                under_way = self._begin(key)
            known = await asyncio.shield(under_way)
        return known.unwrap()

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, key: bytes) -> asyncio.Future[Outcome]:
        if len(self._under_way) >= MAX_WAITING:
            raise GrammarError(
                f"{MAX_WAITING} constraints wait to be compiled.",
                code="grammar_limit",
                param="structured_outputs",
                fix="Try again later.",
            )
        job = asyncio.get_running_loop().run_in_executor(self._pool(), self._run, key)
        self._under_way[key] = job
        job.add_done_callback(lambda done: self._finish(key, done))
        return job

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._max_at_once, "octavo-grammar")
        return self._threads

    def _learn(self) -> Vocabulary:
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = self._make_vocabulary()
            return self._vocabulary

    def _finish(self, key: bytes, done: asyncio.Future[Outcome]) -> None:
        del self._under_way[key]
        if done.cancelled() or done.exception() is not None:
            return
        outcome = done.result()
        message = "" if outcome.error is None else outcome.error.message
        self._cache.put(key, outcome, _ENTRY_BYTES + len(key) + len(outcome.source) + len(message))

    def _run(self, key: bytes) -> Outcome:
        """In one of the threads."""
        process = self._process()
        outcome = process.compile(key)
        with self._lock:
            keep = process.is_alive and not self._is_closed
            if keep:
                self._idle.append(process)
        if not keep:
            process.close()
        return outcome

    def _process(self) -> WorkerProcess:
        """One that has nothing to do, or a new one."""
        vocabulary = self._learn()
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                break
            if process.is_alive:
                return process
            process.close()
        try:
            return WorkerProcess(vocabulary, self._limits, self._backend)
        except OSError as error:
            raise EngineError(f"{error}.", code="grammar_unavailable") from error
