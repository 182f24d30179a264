"""Restart a loaded server again and again with `--takeover`: no request may fail, no text may differ.

    python benchmarks/soak/restarts.py --restarts 50 --out benchmarks/results/restarts.json

Clients keep their connections and call without retries, half of them streaming. Each restart starts a successor on the
same port, waits until it is ready and the old one has ended with code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from openai import OpenAI

_CODE = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
PROMPTS = ("def add(", "The history of", "import os\n", "A list of")


class Clients:
    """Threads that call until told to stop, and what came of it."""

    def __init__(self, port: int, count: int, max_tokens: int) -> None:
        self._port, self._max_tokens = port, max_tokens
        self.answers: dict[str, set[str]] = {prompt: set() for prompt in PROMPTS}
        self.failures: list[str] = []
        self.seconds: list[float] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        url = f"http://127.0.0.1:{self._port}/v1"
        with OpenAI(base_url=url, api_key="-", max_retries=0, timeout=120) as client:
            while not self._is_over.is_set():
                prompt = PROMPTS[(number + len(self.seconds)) % len(PROMPTS)]
                begun = time.monotonic()
                try:
                    self.answers[prompt].add(self._call(client, prompt, number % 2 == 0))
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.seconds.append(time.monotonic() - begun)

    def _call(self, client: OpenAI, prompt: str, is_streaming: bool) -> str:
        asked = dict(model="octavo-mini", prompt=prompt, max_tokens=self._max_tokens, temperature=0)
        if not is_streaming:
            return client.completions.create(**asked).choices[0].text
        stream = client.completions.create(**asked, stream=True)
        return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def launch(port: int, state_dir: str, *flags: str) -> tuple[subprocess.Popen[str], int, float]:
    """A server that is ready, its port, and how long that took."""
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, "serve", "--port", str(port), "--disable-access-log"]
        + ["--state-dir", state_dir, "--shutdown-timeout", "30", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = ""
    while "Python  " not in printed:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"a server ended before it was ready:\n{printed}")
        printed += line
    found = re.search(r"URL\s+http://[^:]+:(\d+)", printed)
    assert found is not None
    return process, int(found[1]), time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    starts: list[float] = []
    bad_ends = 0
    with tempfile.TemporaryDirectory() as state_dir:
        server, port, _ = launch(0, state_dir)
        clients = Clients(port, args.clients, args.max_tokens)
        for _ in range(args.restarts):
            successor, _, seconds = launch(port, state_dir, "--takeover")
            starts.append(seconds)
            bad_ends += server.wait(timeout=120) != 0
            server = successor
        clients.stop()
        server.send_signal(signal.SIGTERM)
        bad_ends += server.wait(timeout=120) != 0
    differences = sum(len(texts) > 1 for texts in clients.answers.values())
    found = {
        "restarts": args.restarts,
        "requests": len(clients.seconds),
        "failures": len(clients.failures),
        "differing_prompts": differences,
        "bad_exits": bad_ends,
        "median_call_s": round(statistics.median(clients.seconds), 4),
        "longest_call_s": round(max(clients.seconds), 3),
        "median_start_s": round(statistics.median(starts), 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    for name, value in found.items():
        print(f"{name:20} {value}")
    for failure in clients.failures[:10]:
        print(failure)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(clients.failures or differences or bad_ends))


if __name__ == "__main__":
    raise SystemExit(main())
