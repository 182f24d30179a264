"""`octavo batch FILE`: answer a JSONL file of requests offline, or against --url, with a progress bar.

Lines are those of /v1/batches: custom_id, url, body. Every answer is on disk before another line takes its place, and
a second run over a half-written output goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Raw

from octavo.core.errors import ConfigError, EngineDeadError
from octavo.tools.backend import add_backend_flags, open_backend
from octavo.tools.background import LoopThread
from octavo.tools.openai_client import Backend
from octavo.tools.parser import Parser, number

DEFAULT_CONCURRENCY = 64
_TRIES = 5
_RETRY_S = 1.0
_LATER = (429, 503)
_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument(
        "-i",
        "--input-file",
        metavar="FILE",
        help="JSONL file with one request per line; also FILE.",
    )
    parser.add_argument(
        "-o", "--output-file", metavar="FILE", help="Where answers go [FILE with .out.jsonl]."
    )
    parser.add_argument(
        "--concurrency",
        type=number(1, 4096, whole=True),
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"Requests under way at once [{DEFAULT_CONCURRENCY}].",
    )
    add_backend_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the verb: 0 when every line went well, 1 when some did not."""
    source = _input(args)
    target = Path(args.output_file) if args.output_file else source.with_suffix(".out.jsonl")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError("the output file is the input file.", code="E-FLAG-02")
    total = _check(source)
    with _opened(target) as out:
        done, num_bad = _resume(out)
        if done:
            print(f"{target}: {len(done)} of {total} are answered; going on.", file=sys.stderr)
        if len(done) < total:
            job = _Job(source, out, done, total, args.concurrency)
            with LoopThread() as loop:
                loop.run(job.run(args))
            num_bad += job.num_bad
    print(f"{target}: {total - num_bad} answered, {num_bad} refused or failed.", file=sys.stderr)
    return 1 if num_bad else 0


def _input(args: argparse.Namespace) -> Path:
    """The input: -i, or the first bare word, which then is no model."""
    if args.input_file is not None:
        return Path(args.input_file)
    if args.model_positional is None:
        raise ConfigError("no input file.", fix="Give it as `octavo batch FILE` or with -i.")
    path, args.model_positional = Path(args.model_positional), None
    return path


def _check(source: Path) -> int:
    """How many lines there are; all of them are looked at before anything is loaded."""
    # lazy: the server's package, which an unknown flag should not wait for
    from octavo.server.jobs.lines import check

    if not source.is_file():
        raise ConfigError(f"there is no file {str(source)!r}.", code="E-FILE-01")
    total, errors = check(source, _ENDPOINTS)
    if errors:
        first = errors[0]
        where = f"{source}:{first.line}" if first.line else str(source)
        raise ConfigError(
            f"{where}: {first.message}", code="E-FILE-01", fix="Correct it and run again."
        )
    return total


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[IO[bytes]]:
    try:
        with target.open("a+b") as out:
            yield out
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}.", code="E-FILE-01") from error


class _Kept(msgspec.Struct):
    """What is read of an answer from an earlier run."""

    custom_id: str
    error: object = None


def _resume(out: IO[bytes]) -> tuple[set[str], int]:
    """Ids that are answered already, and how many of them badly. A line that was cut off is removed."""
    out.seek(0)
    done: set[str] = set()
    num_bad = end = 0
    for raw in out:
        try:
            kept = msgspec.json.decode(raw, type=_Kept)
        except msgspec.MsgspecError as error:
            if raw.endswith(b"\n"):
                raise ConfigError(
                    f"{out.name} holds something else than answers.",
                    code="E-FILE-01",
                    fix="Give another --output-file.",
                ) from error
            break
        if not raw.endswith(b"\n"):
            break
        done.add(kept.custom_id)
        num_bad += kept.error is not None
        end += len(raw)
    out.truncate(end)
    out.seek(end)
    return done, num_bad


class _Job:
    """The lines that are left. Owner: `run`."""

    def __init__(
        self, source: Path, out: IO[bytes], done: set[str], total: int, concurrency: int
    ) -> None:
        self.num_bad = 0
        self._source = source
        self._out = out
        self._done = done
        self._total = total
        self._window = asyncio.Semaphore(concurrency)

    async def run(self, args: argparse.Namespace) -> None:
        """Answer them.

        Raises:
            OctavoError: the engine cannot start, or the server is gone.
        """
        try:
            await self._run(args)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _run(self, args: argparse.Namespace) -> None:
        # lazy: rich is needed only here
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        # lazy: as in `_check`
        from octavo.server.jobs import lines

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        async with open_backend(args) as backend:
            with bar:
                task = bar.add_task(self._source.name, total=self._total, completed=len(self._done))
                async with asyncio.TaskGroup() as group:
                    for _, line in lines.requests(self._source):
                        if line.custom_id in self._done:
                            continue
                        await self._window.acquire()
                        work = self._one(backend, line.custom_id, line.url, bytes(line.body))
                        one = group.create_task(work)
                        one.add_done_callback(lambda _: bar.advance(task))

    async def _one(self, backend: Backend, custom_id: str, url: str, body: bytes) -> None:
        # lazy: as in `_check`
        from octavo.server.jobs.shapes import Answer, AnswerError, Response
        from octavo.server.jobs.store import new_id

        try:
            status, request_id, answer = await self._ask(backend, url, body)
            error = None
            if status != 200:
                self.num_bad += 1
                error = AnswerError(code=str(status), message="see response.body")
            doc = msgspec.json.encode(
                Answer(
                    id=new_id("batch_req_"),
                    custom_id=custom_id,
                    response=Response(
                        status_code=status, request_id=request_id, body=_on_one_line(answer)
                    ),
                    error=error,
                )
            )
            self._out.write(doc + b"\n")
            self._out.flush()
            await asyncio.to_thread(os.fsync, self._out.fileno())
        finally:
            self._window.release()

    async def _ask(self, backend: Backend, url: str, body: bytes) -> tuple[int, str, bytes]:
        for attempt in range(_TRIES):
            status, request_id, answer = await backend.client.post(url, body)
            if status not in _LATER:
                return status, request_id, answer
            await asyncio.sleep(_RETRY_S * 2**attempt)
        raise EngineDeadError(
            f"the server answered {_TRIES} times that it has no room ({status}).",
            fix="Run the same command again: it goes on where it stopped.",
        )


def _on_one_line(answer: bytes) -> Raw:
    """JSON without line breaks; what is no JSON (a proxy's page, say) as a JSON text."""
    try:
        return Raw(msgspec.json.format(answer, indent=-1))
    except msgspec.DecodeError:
        return Raw(msgspec.json.encode(answer.decode(errors="replace")))
