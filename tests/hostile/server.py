"""`octavo serve` as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CODE = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    flags: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextlib.contextmanager
    def start(cls, *flags: str) -> Iterator[Served]:
        """The bundled model on a free port, with a state folder; SIGTERM and exit 0 at the end."""
        with tempfile.TemporaryDirectory() as folder:
            given = ("--disable-access-log", "--state-dir", folder, *flags)
            process = _launch("--port", "0", *given)
            served = cls(process, 0, given)
            try:
                served.port = port_of(process)
                yield served
                served.process.send_signal(signal.SIGTERM)
                assert served.process.wait(timeout=60) == 0
            finally:
                _end(served.process)

    def replace(self) -> None:
        """Let a successor take the port over; the old server ends by itself, in order."""
        successor = _launch("--port", str(self.port), "--takeover", *self.flags)
        old = self.process
        try:
            port_of(successor)
            self.process = successor
            assert old.wait(timeout=120) == 0
        finally:
            _end(old if self.process is successor else successor)

    def pids(self) -> set[int]:
        """The server and its engine. Workers that may be killed for taking too long are not among them."""
        return {self.process.pid, *self.engines()}

    def engines(self) -> set[int]:
        """The engine's process, while there is one."""
        found = set()
        with contextlib.suppress(OSError):  # processes come and go
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    if b"octavo.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                        found.add(int(child))
        return found

    def server_bytes(self) -> int:
        """Resident memory of the server without its engine."""
        return _resident(self.process.pid)

    def resident_bytes(self) -> int:
        """Of these processes together."""
        return sum(map(_resident, self.pids()))


def _launch(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, "serve", *flags], stdout=subprocess.PIPE, text=True
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def port_of(process: subprocess.Popen[str]) -> int:
    """Read what it prints until it is ready; its port."""
    assert process.stdout is not None
    printed = ""
    while "Python  " not in printed:
        line = process.stdout.readline()
        assert line, f"the server ended before it was ready:\n{printed}"
        printed += line
    found = re.search(r"URL\s+http://[^:]+:(\d+)", printed)
    assert found is not None
    return int(found[1])
