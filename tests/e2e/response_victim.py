"""A server in a process of its own, to be killed in the middle. Run by test_responses.py.

usage: response_victim.py FOLDER PAUSE_AFTER: keeps responses in FOLDER; the model stops after so many tokens, 0: never.
Prints its port.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from fakes import FakeEngine, ServerThread, make_state
from octavo.server.response_store import ResponseStore
from octavo.server.state import Kept

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are threads
    engine = FakeEngine()
    engine.pause_after = int(sys.argv[2]) or None
    state = make_state(engine, keys=("one", "two"))
    state.kept = Kept(responses=ResponseStore(Path(sys.argv[1]) / "responses.sqlite3"))
    with ServerThread(state) as server:
        print(server.port, flush=True)
        signal.sigwait({signal.SIGTERM})
