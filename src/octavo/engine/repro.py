"""Files that say how a request made the engine throw, so that it can be done again. No torch.

They hold token ids, which are a caller's text: a private folder (0700), files of 0600, and never a word of it in the log.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import ErrorInfo
from octavo.core.log import get_logger
from octavo.core.plan import BlockCopy, Slice, StepPlan
from octavo.core.request import Request
from octavo.engine.faults import Fault

logger = get_logger(__name__)

MAX_FILES = 64
"""Kept in the folder; the oldest go first."""
_MOST_CHARS = 64_000
"""Of a traceback."""
_LIBRARIES = ("octavo", "torch", "numpy", "msgspec")


class Thrown(msgspec.Struct, frozen=True, kw_only=True):
    """An exception."""

    type: str
    message: str
    traceback: tuple[str, ...]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of the step, without what others said."""

    number: int
    slices: tuple[Slice, ...]
    started: tuple[tuple[int, int], ...]
    """(row, known tokens) of the sequences that began with it."""
    ended: tuple[int, ...]
    copies: tuple[BlockCopy, ...]


class Repro(msgspec.Struct, frozen=True, kw_only=True):
    """One fault."""

    phase: str
    error: ErrorInfo
    """What the caller was told."""
    thrown: Thrown | None
    """None where nothing threw, but what came of it could not be used."""
    request: Request
    """As accepted, without its `cache_scope`."""
    row: int
    token_ids: tuple[int, ...]
    """Prompt and output before the step."""
    step: Step


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What ran."""

    written: str
    versions: dict[str, str]
    config: EngineConfig


def repro_of(
    plan: StepPlan,
    row: int,
    request: Request,
    token_ids: tuple[int, ...],
    fault: Fault,
    error: ErrorInfo,
) -> Repro:
    """What there is to say of a fault."""
    thrown = None
    if isinstance(fault.cause, Exception):
        lines = "".join(traceback.format_exception(fault.cause))[-_MOST_CHARS:].splitlines()
        thrown = Thrown(
            type=type(fault.cause).__name__,
            message=str(fault.cause)[:_MOST_CHARS],
            traceback=tuple(lines),
        )
    step = Step(
        number=plan.step,
        slices=tuple(plan.slices),
        started=tuple((start.row, len(start.token_ids)) for start in plan.starts),
        ended=plan.ended,
        copies=plan.copies,
    )
    return Repro(
        phase=fault.phase,
        error=error,
        thrown=thrown,
        request=msgspec.structs.replace(request, cache_scope=""),
        row=row,
        token_ids=token_ids,
        step=step,
    )


class Repros:
    """The folder of such files. Owner: the engine."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._folder = None if config.fault_dir is None else Path(config.fault_dir).expanduser()
        self._number = 0

    def write(self, repro: Repro) -> Path | None:
        """Write one, and delete the oldest beyond MAX_FILES; None where it cannot be written, which is logged."""
        self._number += 1
        name = re.sub(r"[^A-Za-z0-9_-]", "_", repro.request.id)[:80]
        try:
            folder = self._made()
            path = folder / f"fault-{time.time_ns()}-{self._number}-{name}.json"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(_text(_about(self._config), repro))
            for old in sorted(folder.glob("fault-*.json"), key=_age)[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:  # a full disk costs the file and nothing else
            logger.error("no repro file: %s", error)
            return None
        return path

    def _made(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="octavo-faults-"))  # mode 0700
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder


def read(path: Path) -> Repro:
    """Read a file back.

    Raises:
        msgspec.MsgspecError: it is not one of these.
    """
    return msgspec.json.decode(path.read_bytes(), type=Repro)


def _age(path: Path) -> str:
    return path.name  # nanoseconds since 1970 have nineteen digits until 2286


def _about(config: EngineConfig) -> _About:
    versions = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return _About(written=written, versions=versions, config=config)


def _text(*parts: msgspec.Struct) -> bytes:
    """One JSON object of all fields, a field per line: a line of thousands of ids is easier to pass over than a page."""
    fields = [
        b'"%s": %s' % (field.name.encode(), msgspec.json.encode(getattr(part, field.name)))
        for part in parts
        for field in msgspec.structs.fields(part)
    ]
    return b"{\n" + b",\n".join(fields) + b"\n}\n"
