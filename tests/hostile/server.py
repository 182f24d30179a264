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

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextlib.contextmanager
    def start(cls, *flags: str) -> Iterator[Served]:
        """The bundled model on a free port, with a state folder; SIGTERM and exit 0 at the end."""
        with tempfile.TemporaryDirectory() as folder:
            given = ("--port", "0", "--disable-access-log", "--state-dir", folder, *flags)
            process = subprocess.Popen(
                [sys.executable, "-c", _CODE, "serve", *given], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            try:
                yield cls(process, _port(process))
                process.send_signal(signal.SIGTERM)
                assert process.wait(timeout=60) == 0
            finally:
                process.kill()
                process.wait()
                process.stdout.close()

    def pids(self) -> set[int]:
        """The server and its engine. Workers that may be killed for taking too long are not among them."""
        return {self.process.pid, *_engines(self.process.pid)}

    def resident_bytes(self) -> int:
        """Of these processes together."""
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in self.pids()
        )


def _engines(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"octavo.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield int(child)


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    printed = ""
    while "Python  " not in printed:
        line = process.stdout.readline()
        assert line, f"the server ended before it was ready:\n{printed}"
        printed += line
    found = re.search(r"URL\s+http://[^:]+:(\d+)", printed)
    assert found is not None
    return int(found[1])
