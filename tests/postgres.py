"""A PostgreSQL server of the tests' own, where its programs are installed: a fresh cluster, one socket, no network."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), None)


def programs() -> tuple[str, str] | None:
    """initdb and postgres; None where they are not installed."""
    for folder in _FOLDERS:
        found = [shutil.which(name, path=folder) for name in ("initdb", "postgres")]
        if found[0] and found[1]:
            return found[0], found[1]
    return None


def _owner() -> str | None:
    """Whom to run as: the server refuses root."""
    if os.getuid():
        return None
    return next((one.pw_name for one in pwd.getpwall() if one.pw_name == "postgres"), "nobody")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of a running server."""
    found = programs()
    assert found is not None, "ask `programs` first"
    initdb, server = found
    user = _owner()
    folder = tempfile.mkdtemp(prefix="octavo-pg-")
    if user is not None:
        shutil.chown(folder, user)
    data = f"{folder}/data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "user": user, "cwd": folder}
    command = [initdb, "-D", data, "-U", "octavo", "-A", "trust", "--no-sync", "-E", "UTF8"]
    subprocess.run(command, check=True, **quiet)
    flags = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-F"]
    process = subprocess.Popen([server, "-D", data, *flags], **quiet)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if b"ready to accept connections" in line:
                break
        else:
            raise AssertionError("postgres ended before it was ready")
        yield f"postgresql://octavo@/postgres?host={folder}"
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(folder, ignore_errors=True)
