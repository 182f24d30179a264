"""Compiles what callers demand, in a process of its own that is killed when it takes too long or too much.

A schema, regex or grammar is a program that a caller sends. One process compiles one after the other, because
starting it and reading the vocabulary takes longer than most compilations; it keeps nothing of one for the next. Run as
`python -m octavo.decoding.grammar.worker`, it reads frames from stdin and writes one answer each to stdout.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import struct
import subprocess
import sys
import time
import weakref
from typing import IO

import msgspec

from octavo.core.errors import ErrorInfo, OctavoError, from_info
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import GrammarBackend, GrammarError, Vocabulary
from octavo.decoding.grammar.registry import GRAMMARS

_LENGTH = struct.Struct("<I")
_IDLE_S = 600.0
"""A process without work for so long ends by itself."""
START_S = 60.0
"""Most time to start and to read a vocabulary; no caller has a part in it."""


class CompileLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one compilation may take."""

    timeout_s: float = 5.0
    memory_bytes: int = 512 << 20
    """Beyond what the process takes before the first."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer: a source, or why there is none."""

    source: str = ""
    error: ErrorInfo | None = None

    def unwrap(self) -> str:
        """The source.

        Raises:
            GrammarError: there is none.
        """
        if self.error is not None:
            raise from_info(self.error)
        return self.source


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame."""

    vocabulary: Vocabulary
    backend: str
    memory_bytes: int


class WorkerProcess:
    """The process from its parent's side. For one thread at a time.

    Raises:
        GrammarError: the vocabulary is of a kind that does not work.
        OSError: the process did not start.
    """

    def __init__(self, vocabulary: Vocabulary, limits: CompileLimits, backend: str) -> None:
        self._limits = limits
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "octavo.decoding.grammar.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Nothing of our environment, which may hold keys, is the compiler's to read.
            env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LANG": "C.UTF-8"},
        )
        self._end = weakref.finalize(self, _end, self._popen)
        start = Start(
            vocabulary=vocabulary, backend=backend, memory_bytes=limits.memory_bytes
        )  # fmt: skip
        try:
            answer = self._ask(msgspec.msgpack.encode(start), START_S)
            if answer is None:
                raise OSError("the process that compiles grammars did not start")
            msgspec.msgpack.decode(answer, type=Outcome).unwrap()
        except BaseException:
            self.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it can take work."""
        return self._popen.poll() is None

    def compile(self, job: bytes) -> Outcome:
        """Compile an encoded `StructuredOutputs`. After a limit was passed the process is gone."""
        answer = self._ask(job, self._limits.timeout_s)
        if answer is not None:
            return msgspec.msgpack.decode(answer, type=Outcome)
        took_too_long = self._popen.poll() is None
        self.close()
        why = (
            f"takes longer than {self._limits.timeout_s:g} s"
            if took_too_long
            else f"takes more than {self._limits.memory_bytes >> 20} MiB, or crashes the compiler"
        )
        error = GrammarError(
            f"compiling structured_outputs {why}.",
            code="grammar_limit",
            param="structured_outputs",
            fix="Send a simpler constraint.",
        )
        return Outcome(error=error.info())

    def close(self) -> None:
        """Kill it. Also done when nobody holds this object any more."""
        self._end()

    def _ask(self, body: bytes, timeout_s: float) -> bytes | None:
        """Send a frame and read one; None when the process ended, or did not answer in time."""
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None and stdout is not None, "both are pipes"
        deadline = time.monotonic() + timeout_s
        try:
            stdin.write(_LENGTH.pack(len(body)) + body)
            stdin.flush()
        except BrokenPipeError:
            return None
        data = b""
        while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
            readable, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(stdout.fileno(), 1 << 16) if readable else b""
            if not piece:
                return None
            data += piece
        return data[_LENGTH.size :]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        # What is still buffered has no reader any more.
        with contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()
    process.wait()


def main() -> None:
    """Answer frames until stdin ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = _read(source)
    if first is None:
        return
    start = msgspec.msgpack.decode(first, type=Start)
    try:
        backend = GRAMMARS.load(start.backend)(start.vocabulary)
    except OctavoError as error:
        _write(sink, Outcome(error=error.info()))
        return
    _limit_memory(start.memory_bytes)
    _write(sink, Outcome())
    while select.select([source], [], [], _IDLE_S)[0]:
        job = _read(source)
        if job is None:
            return
        _write(sink, _outcome(backend, job))


def _outcome(backend: GrammarBackend, job: bytes) -> Outcome:
    try:
        wanted = msgspec.msgpack.decode(job, type=StructuredOutputs)
        return Outcome(source=backend.compile(wanted))
    except OctavoError as error:
        return Outcome(error=error.info())
    except (RecursionError, MemoryError) as error:
        refusal = GrammarError(
            f"compiling structured_outputs: {type(error).__name__}.",
            code="grammar_limit",
            param="structured_outputs",
        )
        return Outcome(error=refusal.info())


def _limit_memory(more: int) -> None:
    """Address space as it is now, and so much more. Also no files: whatever is compiled has none to write."""
    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _read(source: IO[bytes]) -> bytes | None:
    head = source.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return source.read(_LENGTH.unpack(head)[0])


def _write(sink: IO[bytes], outcome: Outcome) -> None:
    body = msgspec.msgpack.encode(outcome)
    sink.write(_LENGTH.pack(len(body)) + body)
    sink.flush()


if __name__ == "__main__":
    main()
