"""`octavo serve` as a user meets it: the printed lines work, disconnects free everything, SIGTERM ends cleanly."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from openai import OpenAI

NUM_DISCONNECTS = 1_000


@dataclass
class Live:
    """A running server and what it printed until it was ready."""

    process: subprocess.Popen[str]
    printed: str
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/metrics") as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M)
        assert found, f"no metric {name}"
        return sum(float(value) for value in found)


def start(*flags: str, stderr: IO[str] | None = None) -> Live:
    code = "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--disable-access-log", *flags],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed = ""
    while "Python  " not in printed:
        line = process.stdout.readline()
        assert line, f"the server ended before it was ready:\n{printed}"
        printed += line
    match = re.search(r"URL\s+(\S+)", printed)
    assert match is not None
    return Live(process, printed, match[1])


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    server = start("--threads", "1", "--canary-interval", "0")
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 0, "SIGTERM drains and exits 0"
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_a_signal_to_the_whole_group_drains(tmp_path: Path) -> None:
    """As service managers and terminals send it: the engine must not die before its client is done with it."""
    with (tmp_path / "errors").open("w+") as errors:
        server = start("--threads", "1", stderr=errors)
        options = {"max_tokens": 300, "extra_body": {"ignore_eos": True}, "stream": True}
        with OpenAI(base_url=server.url, api_key="none") as client:
            chunks = client.completions.create(model="octavo-mini", prompt="x", **options)
            next(chunks)
            os.killpg(server.process.pid, signal.SIGTERM)
            assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
        assert server.process.wait(timeout=30) == 0
        assert server.process.stdout is not None
        server.process.stdout.close()
        errors.seek(0)
        assert "E-ENGINE" not in errors.read()


def test_the_printed_lines_work_as_printed(live: Live) -> None:
    for name in ("curl", "Python"):
        line = re.search(rf"^\s+{name}\s+(.*)$", live.printed, re.M)
        assert line is not None
        done = subprocess.run(
            ["bash", "-c", line[1]], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        text = json.loads(done.stdout)["choices"][0]["text"] if name == "curl" else done.stdout
        assert text.strip()


def test_the_start_up_timeline_sums_to_the_whole(live: Live) -> None:
    table = live.printed.partition("start-up")[2].partition("ready:")[0]
    seconds = {}
    for line in table.splitlines():
        if row := re.match(r"(.+?)\s{2,}(-?[\d.]+) (ms|s)\s", line):
            seconds[row[1]] = float(row[2]) * (0.001 if row[3] == "ms" else 1.0)
    total = seconds.pop("process start to ready")
    assert abs(total - sum(seconds.values())) < 0.03
    assert abs(seconds["unexplained"]) < 0.02 * total


def test_the_official_client_gets_what_curl_gets(live: Live) -> None:
    client = OpenAI(base_url=live.url, api_key="none")
    options = {"model": "octavo-mini", "prompt": "import os\n", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**options)
    pieces = list(client.completions.create(**options, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens <= 24
    answer = client.chat.completions.create(
        model="octavo-mini",
        messages=[{"role": "user", "content": "Who are you?"}],
        max_tokens=40,
        temperature=0,
    )
    assert answer.choices[0].message.content


def test_disconnects_give_every_block_back(live: Live) -> None:
    undisturbed = _complete(live)
    free = 1.0 - live.metric("vllm:kv_cache_usage_perc")
    rng = random.Random(11)
    asyncio.run(_disconnect_all(live.port, [rng.random() for _ in range(NUM_DISCONNECTS)]))
    deadline = time.monotonic() + 20
    while live.metric("vllm:num_requests_running") or live.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < deadline, "disconnected requests still run"
    assert 1.0 - live.metric("vllm:kv_cache_usage_perc") == free == 1.0
    assert _complete(live) == undisturbed
    with urllib.request.urlopen(f"{live.url.removesuffix('/v1')}/readyz") as answer:
        assert answer.status == 200


def _complete(live: Live) -> str:
    client = OpenAI(base_url=live.url, api_key="none")
    return (
        client.completions.create(
            model="octavo-mini", prompt="class Stack:", max_tokens=48, temperature=0
        )
        .choices[0]
        .text
    )


async def _disconnect_all(port: int, patience: list[float]) -> None:
    gate = asyncio.Semaphore(24)

    async def one(number: int, share: float) -> None:
        async with gate:
            await _disconnect(port, number, share)

    await asyncio.gather(*(one(i, share) for i, share in enumerate(patience)))


async def _disconnect(port: int, number: int, share: float) -> None:
    """Send a request (sometimes only part of it), read up to a random number of bytes, hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {
            "model": "octavo-mini",
            "prompt": f"# file {number % 7}\n" + "def f(x):\n    return x\n" * (number % 40),
            "max_tokens": 1000,
            "n": 1 + number % 3,
            "stream": number % 4 != 0,
            "ignore_eos": True,
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    data = head.encode() + body
    is_cut = share < 0.1
    writer.write(data[: int(len(data) * share * 2)] if is_cut else data)
    await writer.drain()
    wanted = 0 if is_cut or number % 4 == 0 else int(4000 * share * share)
    while wanted > 0:
        chunk = await reader.read(wanted)
        if not chunk:
            break
        wanted -= len(chunk)
    writer.transport.abort()
