"""What `GET /v1/requests/{request_id}?what_if=true` adds: when the first token would have come without who cost it most.

That is a replay of the step log (`octavo why --step-log`), seconds of a core: it runs in a process of its own, of the lowest
priority, one at a time, so that it delays nobody's tokens.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

import msgspec

from octavo.core.errors import DeadlineError, NotFoundError, OverloadError, RequestError

TIMEOUT_S = 60.0
_CHILD = (
    "import os, sys; os.nice(19); from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
)


class WhatIfView(msgspec.Struct, kw_only=True):
    """When the first token would have come, by replay."""

    told: str
    """The same in a sentence; or why it cannot be told."""
    without: str | None = None
    """The request that is left out: of those before its first token the one that cost it most; null: nobody did, or it cannot be told."""
    actual_s: float | None = None
    """From the engine's taking it to its first token, as recorded."""
    simulated_s: float | None = None
    """By replay with everyone: how good the replay is."""
    without_s: float | None = None
    """By replay without that one."""


class Replays:
    """One at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def what_if(self, folder: Path | None, request_id: str) -> WhatIfView:
        """Of one of the engine's requests.

        Raises:
            RequestError: there is no step log; NotFoundError, it knows nothing of the request; OverloadError, another is replayed;
                DeadlineError, it took longer than `TIMEOUT_S`.
        """
        if folder is None:
            raise RequestError(
                "what_if is told from the step log, which this server does not write.",
                param="what_if",
                fix="Start it with --step-log FOLDER or --state-dir FOLDER.",
            )
        if not request_id:
            raise NotFoundError("the engine has not taken this request yet.", param="what_if")
        if self._turn.locked():
            raise OverloadError(
                "another request is being replayed.", param="what_if", fix="Ask again in a moment."
            )
        async with self._turn:
            return _view(await _ask(folder, request_id))


async def _ask(folder: Path, request_id: str) -> dict[str, Any]:
    words = ("why", request_id, "--step-log", str(folder), "--json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        out, problem = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    except TimeoutError:
        raise DeadlineError(
            f"the replay took longer than {TIMEOUT_S:.0f} s.",
            param="what_if",
            fix="Run octavo why ID --step-log FOLDER, which has no limit.",
        ) from None
    finally:
        await _end(process)
    if process.returncode:
        lines = problem.decode(errors="replace").strip().splitlines()
        raise NotFoundError(
            f"the step log does not tell: {lines[0][:400] if lines else process.returncode}",
            param="what_if",
        )
    found: dict[str, Any] = msgspec.json.decode(out)
    return found


async def _end(process: Process) -> None:
    """Whoever asked may have left."""
    if process.returncode is None:
        process.kill()
        await process.wait()


def _view(found: dict[str, Any]) -> WhatIfView:
    guess = found["what_if"]
    numbers = guess if isinstance(guess, dict) else {}
    return WhatIfView(told=found["told"], **numbers)
