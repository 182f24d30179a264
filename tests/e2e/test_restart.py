"""A restart that nobody notices: the successor takes the listening socket over, or a service manager keeps it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from openai import OpenAI

from hostile.server import port_of

NUM_RESTARTS = 2
_CODE = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
_SERVE = (sys.executable, "-c", _CODE, "serve", "--disable-access-log", "--threads", "1")


def launch(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*_SERVE, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a good end; what it wrote to standard error."""
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return errors


@dataclass
class Load:
    """Clients that call again and again over connections of their own. No retries: every failure counts."""

    port: int
    answers: set[str] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    num_calls: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def call(self, is_streaming: bool) -> None:
        with OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="-", max_retries=0, timeout=60
        ) as client:
            while not self.is_over.is_set():
                try:
                    self.answers.add(_complete(client, is_streaming))
                except Exception as error:  # what the test looks for
                    self.failures.append(error)
                self.num_calls += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.call, args=(n % 2 == 0,)) for n in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.is_over.set()
            for thread in threads:
                thread.join()


def _complete(client: OpenAI, is_streaming: bool) -> str:
    if is_streaming:
        stream = client.completions.create(
            model="octavo-mini", prompt="def add(", max_tokens=24, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
    answer = client.completions.create(
        model="octavo-mini", prompt="def add(", max_tokens=24, temperature=0
    )
    return answer.choices[0].text


def test_restarts_under_load_fail_no_request(tmp_path: Path) -> None:
    flags = ("--state-dir", str(tmp_path), "--shutdown-timeout", "20")
    server = launch("--port", "0", *flags)
    load = Load(port_of(server))
    with load.running():
        for _ in range(NUM_RESTARTS):
            successor = launch("--port", str(load.port), "--takeover", *flags)
            assert port_of(successor) == load.port
            assert "E-" not in end(server), "the old one ends by itself, in order"
            server = successor
    server.send_signal(signal.SIGTERM)
    end(server)
    assert load.failures == []
    assert load.num_calls > 8
    assert len(load.answers) == 1, "all servers, streamed or not, say the same"


def test_a_successor_that_fails_changes_nothing(tmp_path: Path) -> None:
    """Killed while it loads, or unable to load: the server keeps its port and can be taken over after that."""
    server = launch("--port", "0")
    port = port_of(server)
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0) as client:
        before = _complete(client, is_streaming=False)
        broken = launch("--port", str(port), "--takeover", "--max-model-len", "99999999")
        _, errors = broken.communicate(timeout=60)
        assert broken.returncode != 0, "it says why it cannot start"
        assert "E-" in errors.splitlines()[-1] and "Traceback" not in errors, errors
        killed = launch("--port", str(port), "--takeover")
        killed.kill()
        killed.communicate()
        assert _complete(client, is_streaming=True) == before
    successor = launch("--port", str(port), "--takeover")
    assert port_of(successor) == port
    end(server)
    # Told to end while it loads: it does, and the other goes on.
    late = launch("--port", str(port), "--takeover")
    late.send_signal(signal.SIGTERM)
    late.communicate(timeout=60)
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0) as client:
        assert _complete(client, is_streaming=False) == before
    successor.send_signal(signal.SIGTERM)
    end(successor)


def test_takeover_of_a_free_port_is_a_plain_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = launch("--port", str(port), "--takeover")
    assert port_of(server) == port
    server.send_signal(signal.SIGTERM)
    end(server)


def test_a_service_manager_keeps_the_socket() -> None:
    """As systemd does it: connections that come between two servers, and while a model loads, wait in the backlog."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        server = activate(sock)
        assert port_of(server) == port
        server.send_signal(signal.SIGTERM)
        end(server)
        answers: list[str] = []

        def call() -> None:
            with OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0
            ) as client:
                answers.append(_complete(client, is_streaming=False))

        waiting = threading.Thread(target=call)
        waiting.start()
        server = activate(sock)
        waiting.join()
        assert answers[0]
        server.send_signal(signal.SIGTERM)
        end(server)


def activate(sock: socket.socket, *flags: str) -> subprocess.Popen[str]:
    """Start a server with the socket as descriptor 3 and its own process id in LISTEN_PID."""
    shell = 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    return subprocess.Popen(
        ["bash", "-c", shell, str(sock.fileno()), *_SERVE, *flags],
        pass_fds=[sock.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
