"""One real `octavo serve` for all of these tests: every log line kept, every Python process under an audit hook."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from octavo.server.keys.store import KeyStore
from security.keyed import make_key

# Installed before anything else by `site`, in the server and in every process that it starts.
_HOOK = """
import sys

_CARRIERS = {"dill", "cloudpickle", "joblib", "shelve"}

def _hook(event, args):
    if event == "pickle.find_class":
        sys.stderr.write(f"AUDIT {event} {args[0]}.{args[1]}\\n")
    elif event == "import" and args[0] in _CARRIERS:
        sys.stderr.write(f"AUDIT import {args[0]}\\n")
    elif event in ("os.system", "pty.spawn"):
        sys.stderr.write(f"AUDIT {event} {args[0]!r}\\n")

sys.addaudithook(_hook)
sys.stderr.write("AUDIT watches\\n")
"""
NAMED_KEY = "named-key-canary-5f1b"


@dataclass
class Live:
    """A running server, its stored key, and where its log goes."""

    process: subprocess.Popen[str]
    url: str
    key: str
    state_dir: Path
    errors: Path
    answers: list[str]
    """Lines on standard output since it was ready: the access log."""

    @property
    def log(self) -> str:
        """All that it has written down since it was ready, and what it has written to standard error before."""
        return self.errors.read_text(errors="replace") + "".join(self.answers)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("live")
    (folder / "sitecustomize.py").write_text(_HOOK)
    state_dir = folder / "state"
    with KeyStore(state_dir / "keys.sqlite3", create=True) as store:
        key = make_key(store, "live", tenant="live")
    errors = folder / "errors"
    flags = (
        "--port",
        "0",
        "--threads",
        "1",
        "--state-dir",
        str(state_dir),
        "--enable-log-requests",
    )
    env = os.environ | {
        "PYTHONPATH": str(folder),
        "OCTAVO_API_KEY": NAMED_KEY,
        "OCTAVO_LOG_LEVEL": "DEBUG",
    }
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "octavo.tools.cli", "serve", *flags],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
            start_new_session=True,
        )
    assert process.stdout is not None
    printed = ""
    while "Python  " not in printed:
        line = process.stdout.readline()
        assert line, f"the server ended before it was ready:\n{printed}{errors.read_text()}"
        printed += line
    assert key not in printed and NAMED_KEY not in printed
    match = re.search(r"URL\s+(\S+)/v1", printed)
    assert match is not None
    server = Live(process, match[1], key, state_dir, errors, [])
    reader = threading.Thread(target=server.answers.extend, args=(process.stdout,))
    reader.start()
    try:
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=60)
        reader.join(timeout=60)
        process.stdout.close()
        assert code == 0, server.log
