"""An engine's process from its parent's side."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from octavo.engine.child import EngineProcess

ENDS_WITH_7 = (sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(7)")


def end_of(process: EngineProcess) -> tuple[object, int]:
    async def see() -> tuple[object, int]:
        process.foretell(b"")
        return await process.connect(), await asyncio.wait_for(process.wait(), 60)

    return asyncio.run(see())


def test_a_process_that_ends_before_it_connects_is_seen_to_its_end() -> None:
    process = EngineProcess(ENDS_WITH_7)
    assert end_of(process) == (None, 7)
    assert process.has_ended
    process.remove()
    assert not Path(process.folder).exists()


def test_its_end_is_seen_where_there_is_no_room_for_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = EngineProcess(ENDS_WITH_7)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert end_of(process) == (None, 7)
    process.remove()
