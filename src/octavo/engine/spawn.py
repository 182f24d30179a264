"""An engine's process as it is started: no asyncio, no messages, next to nothing imported.

`octavo serve` starts it before it reads its own flags: the interpreter and the libraries that every engine needs come up on
another core meanwhile. What it is to be is told later (`child.EngineProcess.foretell`).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from octavo.engine.page import Page

WORKER = (sys.executable, "-m", "octavo.engine.worker")


class Spawned:
    """A process that will connect to `listener`. The socket lies in a private folder (0700) and is 0600.

    It waits for what it is told on its standard input. Dies with its parent; `remove` takes away what it leaves on disk.
    """

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        """`command` gets two words more: the socket's path, and the number of the pulse's file.

        Raises:
            OSError: there is no room for a socket, or for a process.
        """
        self.started_at = time.monotonic()
        self.is_taken = False
        """Whether a `child.EngineProcess` answers for it."""
        self.folder = tempfile.mkdtemp(prefix="octavo-", dir=_socket_home())  # mode 0700
        path = str(Path(self.folder) / "engine.sock")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        os.chmod(path, 0o600)
        self.listener.listen(1)
        self.pulse = Page.create()
        try:
            self.popen = subprocess.Popen(
                [*command, path, str(self.pulse.fd)],
                stdin=subprocess.PIPE,
                pass_fds=(self.pulse.fd,),
            )
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        """Close the listener and delete the socket's folder."""
        self.listener.close()
        self.pulse.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> None:
        """Kill it, wait for its end, and remove: for a caller that will not get as far as an event loop."""
        self.popen.kill()
        self.popen.wait()
        if self.popen.stdin is not None:
            self.popen.stdin.close()
        self.remove()


def _socket_home() -> str:
    """Where the socket's folder goes: the temporary folder, unless its name leaves a socket's path no room."""
    home = tempfile.gettempdir()
    longest = 107 - len("/octavo-12345678/engine.sock")  # sun_path, unix(7), less the final zero
    return home if len(os.fsencode(home)) <= longest else "/tmp"
