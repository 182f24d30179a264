"""Looks after what cannot say itself that it is stuck: the threads that read long texts, and the engine.

Twice a second, at no cost to speak of. An engine that hangs is started anew where its client can do that; else
`/livez` asks for the same of whoever started the server.
"""

from __future__ import annotations

import asyncio

from octavo.core.log import get_logger
from octavo.server.probes.trouble import engine_trouble
from octavo.server.state import AppState

logger = get_logger(__name__)

_EVERY_S = 0.5
_PROBE = "octavo"
_STUCK = ("engine_not_responding", "engine_hung")
_STUCK_LOOKS = 20
"""Looks and no clock: a container or a machine that was frozen for an hour finds its engine an hour late, and well at the
next look but few.
"""


class Watch:
    """The watching task. Owner: the server's event loop."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self._num_stuck = 0
        """Looks in a row at which the engine was stuck."""

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Once."""
        frontend = self._state.frontend
        frontend.workers.probe(lambda: frontend.tokenizer.encode(_PROBE))
        trouble = engine_trouble(self._state)
        is_stuck = trouble is not None and trouble.code in _STUCK
        self._num_stuck = self._num_stuck + 1 if is_stuck else 0
        if trouble is not None and self._num_stuck >= _STUCK_LOOKS:
            self._num_stuck = 0
            logger.error("the engine is started anew: %s", trouble.reason)
            self._state.engine.restart(trouble.reason)
