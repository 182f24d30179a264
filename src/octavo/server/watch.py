"""Looks after what cannot say itself that it is stuck: the threads that read long texts, and the engine.

Twice a second, at no cost to speak of. An engine that hangs is started anew where its client can do that; else
`/livez` asks for the same of whoever started the server.
"""

from __future__ import annotations

import asyncio

from octavo.core.log import get_logger
from octavo.server.state import AppState
from octavo.server.trouble import RESTART_S, engine_trouble

logger = get_logger(__name__)

_EVERY_S = 0.5
_PROBE = "octavo"
_STUCK = ("engine_not_responding", "engine_hung")


class Watch:
    """The watching task. Owner: the server's event loop."""

    def __init__(self, state: AppState) -> None:
        self._state = state

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Once."""
        frontend = self._state.frontend
        frontend.workers.probe(lambda: frontend.tokenizer.encode(_PROBE))
        trouble = engine_trouble(self._state, patience_s=RESTART_S)
        if trouble is not None and trouble.code in _STUCK:
            logger.error("the engine is started anew: %s", trouble.reason)
            self._state.engine.restart(trouble.reason)
