"""S1, deserialising: nothing in the tree unpickles, nothing at run time does, and a bomb at any door goes off nowhere."""

from __future__ import annotations

import ast
import contextlib
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from house.sources import dotted, package_sources
from octavo.core.errors import EngineError
from octavo.engine.ipc import decode_from_engine, decode_to_engine
from security.conftest import Live
from security.test_s16_exposure import listening, tree

CARRIERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "joblib",
    "copyreg",
}
CALLS = {"torch.load", "numpy.load", "np.load", "yaml.load", "pandas.read_pickle"}


def test_no_source_names_what_runs_code_when_it_reads() -> None:
    found = []
    for source in package_sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call):
                if dotted(node.func) in CALLS or any(
                    word.arg in ("allow_pickle", "weights_only") for word in node.keywords
                ):
                    found.append(f"{source.name}:{node.lineno}")
                names = {
                    str(argument.value).partition(".")[0]
                    for argument in node.args[:1]
                    if dotted(node.func) in ("importlib.import_module", "__import__")
                    and isinstance(argument, ast.Constant)
                }
            else:
                continue
            if names & CARRIERS:
                found.append(f"{source.name}:{node.lineno}: {names & CARRIERS}")
    assert not found


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self._marker,)


def bombs(marker: Path) -> Iterator[bytes]:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        bomb = pickle.dumps(Bomb(marker), protocol)
        yield bomb
        yield struct.pack("<I", len(bomb)) + bomb


def test_bombs_go_off_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(next(bombs(tmp_path / "marker")))  # noqa: S301  # our own
    assert (tmp_path / "marker").is_dir(), "else the tests below say nothing"


def test_a_bomb_is_no_frame(tmp_path: Path) -> None:
    for bomb in bombs(tmp_path / "marker"):
        for decode in (decode_to_engine, decode_from_engine):
            with pytest.raises(EngineError, match="bad frame"):
                decode(bomb)
    assert not (tmp_path / "marker").exists()


def test_bombs_at_every_door_of_a_server_go_off_nowhere(live: Live, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pids = tree(live.process.pid)
    _, unix = listening(pids)
    doors = [path for path in (live.state_dir / "admin.sock", *map(Path, unix)) if path.exists()]
    assert doors
    for bomb in bombs(marker):
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as sock:
            sock.sendall(bomb)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        for door in doors:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(door))
                sock.sendall(bomb)
                sock.shutdown(socket.SHUT_WR)
                # A door that reads no more than it must hangs up on the rest.
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(4096):
                        pass
    headers = {"content-type": "application/python-pickle"}
    with live.client() as client:
        for bomb in bombs(marker):
            assert client.post("/v1/completions", content=bomb, headers=headers).status_code == 415
            body = {"content-type": "application/json"}
            assert client.post("/v1/completions", content=bomb, headers=body).status_code == 400
        good = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert good.status_code == 200
    assert not marker.exists() and tree(live.process.pid) >= pids, "and nobody has died of it"
    assert live.log.count("AUDIT watches") >= 2, "the hook was there in server and engine"
    assert "AUDIT pickle" not in live.log and "AUDIT import" not in live.log


def test_an_engine_drops_a_client_that_sends_a_bomb(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "engine.sock"
    bomb = pickle.dumps(Bomb(marker))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        engine = subprocess.Popen(
            [sys.executable, "-m", "octavo.engine.worker", str(path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        peer, _ = listener.accept()
        with peer:
            peer.sendall(struct.pack("<I", len(bomb)) + bomb)
            _, errors = engine.communicate(timeout=120)
            answer = peer.recv(1 << 16)
    assert not marker.exists()
    assert engine.returncode != 0 or b"bad_frame" in answer, errors
    assert "bad frame" in errors or b"bad frame" in answer
