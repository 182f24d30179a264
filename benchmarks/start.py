"""Process start to first token of `octavo serve`, and where the time goes.

    python benchmarks/start.py MODEL --rounds 5 --json benchmarks/results/start.json

Each round starts a server, asks for one token as soon as it answers, and stops it. The first round warms the page cache
and is thrown away. The parts are the server's own, printed when it is ready. Python may keep bytecode, as an installed package
has it: without, a start compiles all of Octavo's source twice, which no user of an installation waits for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from octavo.tools.bench.environment import environment

PART = (
    "python",
    "launch",
    "server",
    "process",
    "imports",
    "config",
    "weights",
    "kv cache",
    "unexplained",
)
UNKEPT = "PYTHONDONTWRITEBYTECODE"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def ask(url: str, model: str) -> None:
    """One token."""
    body = json.dumps({"model": model, "prompt": "def", "max_tokens": 1, "ignore_eos": True})
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", body.encode(), head)
    with urllib.request.urlopen(request) as response:
        response.read()


def seconds_of(text: str) -> float:
    """A time as the table shows it: "1.20 s" or "350 ms"."""
    number, unit = text.split()
    return float(number) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[unit]


def one_round(command: list[str], port: int) -> dict[str, float]:
    """Seconds to the ready line and to the first token, and of the parts."""
    begun = time.perf_counter()
    kept = {name: value for name, value in os.environ.items() if name != UNKEPT}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=kept)
    assert server.stdout is not None
    printed = []
    try:
        for line in server.stdout:
            printed.append(line.rstrip())
            if line.startswith("ready: "):
                break
        else:
            raise SystemExit("the server did not start")
        found = {"ready": time.perf_counter() - begun}
        ask(f"http://127.0.0.1:{port}", "start")
        found["first token"] = time.perf_counter() - begun
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()
    begin = next(at for at, line in enumerate(printed) if line.startswith("start-up"))
    for line in printed[begin:]:
        name = next((part for part in PART if line.startswith(f"{part}  ")), None)
        if name is not None:
            found[name] = seconds_of(" ".join(line[len(name) :].split()[:2]))
    return found


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="octavo-mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--args", nargs="*", default=[], help="more flags of the server, each given as name=value"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    port = free_port()
    flags = [f"--{flag}" for flag in args.args]
    command = [sys.executable, "-m", "octavo.tools.cli", "serve", args.model]
    command += ["--served-model-name", "start", "--port", str(port), *flags]
    rounds = [one_round(command, port) for _ in range(args.rounds + 1)][1:]
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        middle = statistics.median(values)
        print(f"{name:12} {middle:7.3f} s  ({min(values):.3f} to {max(values):.3f})")
    if args.json:
        record = {
            "command": ["octavo", *command[3:]],
            "environment": environment(),
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
