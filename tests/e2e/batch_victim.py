"""A server's batch runner in a process of its own, which kills itself in the middle. Run by test_batches.py.

usage: batch_victim.py FOLDER COUNT: SIGKILL at the COUNT-th request to the engine; 0 runs to the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from fakes import FakeEngine, make_state
from octavo.core.request import Request
from octavo.core.result import Event
from octavo.server.app import create_app
from octavo.server.jobs.store import Store


class Victim(FakeEngine):
    """Answers COUNT - 1 requests, then takes the process with it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        async for event in super().generate(request):
            yield event


async def main(folder: Path, count: int) -> None:
    store = Store(folder)
    app = create_app(make_state(Victim(count), store=store))
    async with app.router.lifespan_context(app):
        while store.open_batches():
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
