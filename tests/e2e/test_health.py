"""A real server whose engine is killed, stopped, or loops inside a kernel says so within two seconds; a busy one is well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.core.assets import tokenizer_folder
from octavo.core.config import EngineConfig
from octavo.text.tokenizer import Tokenizer

SICK = Path(__file__).parent / "sick_server.py"
LOOPS, HOLDS = 251, 252
SEEN_S = 2.0
START_S = 60.0


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    http: httpx.Client
    url: str

    @property
    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def probe(self, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
        answer = self.http.get(path)
        return answer.status_code, answer.json()

    def until(self, status: int, limit_s: float, path: str = "/readyz") -> dict[str, Any]:
        """Ask until the probe says so, and that within the limit; what it says then."""
        begun = time.monotonic()
        while True:
            found, body = self.probe(path)
            if found == status:
                return body
            assert time.monotonic() - begun < limit_s, f"{path} is {found}: {body}"

    def canary(self) -> dict[str, Any] | None:
        return self.probe("/healthz?deep=1")[1]["canary"]


@contextlib.contextmanager
def served(*flags: str, is_sick: bool = False) -> Iterator[Served]:
    plain = ["-c", "import sys; from octavo.tools.cli import main; sys.exit(main(sys.argv[1:]))"]
    command = [str(SICK)] if is_sick else [*plain, "serve"]
    process = subprocess.Popen(
        [sys.executable, *command, "--port", "0", "--disable-access-log", *flags],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = ""
    try:
        while not url:
            line = process.stdout.readline()
            assert line, "the server ended before it was ready"
            if line.split()[:1] == ["URL"]:
                url = line.split()[1].removesuffix("/v1")
        with httpx.Client(base_url=url, timeout=30) as http:
            yield Served(process, http, url)
    finally:
        process.kill()  # whatever state its engine is in: it goes with its parent
        process.wait()
        process.stdout.close()


def test_stopped_and_killed() -> None:
    with served("--threads", "1", "--canary-interval", "0.5") as server:
        server.until(200, START_S)
        begun = time.monotonic()
        while (canary := server.canary()) is None or canary["age_s"] is None:
            assert time.monotonic() - begun < START_S
        assert (canary["tokens_matched"], canary["drift"], canary["failures"]) == (8, 0.0, 0)

        os.kill(server.engine_pid, signal.SIGSTOP)
        assert server.until(503, SEEN_S)["code"] == "engine_not_responding"
        assert server.probe("/livez")[0] == 200, "it may come back"
        os.kill(server.engine_pid, signal.SIGCONT)
        server.until(200, SEEN_S)

        os.kill(server.engine_pid, signal.SIGKILL)
        assert server.until(503, SEEN_S)["code"] in ("engine_dead", "engine_restarting", "loading")


@pytest.mark.parametrize(
    ("token_id", "code"), [(LOOPS, "engine_hung"), (HOLDS, "engine_not_responding")]
)
def test_a_kernel_that_never_returns(token_id: int, code: str) -> None:
    with served("--threads", "1", is_sick=True) as server:
        server.until(200, START_S)
        body = {"prompt": [5, 6, 7], "max_tokens": 4}
        server.http.post("/v1/completions", json=body).raise_for_status()
        caught: list[object] = []

        def ask() -> None:
            with contextlib.suppress(httpx.HTTPError):
                caught.append(
                    httpx.post(
                        f"{server.url}/v1/completions",
                        json=body | {"prompt": [token_id, 5, 6, 7]},
                        timeout=3.0,
                    )
                )

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        found = server.until(503, SEEN_S)
        assert found["code"] == code, found
        assert not caught
        if token_id == LOOPS:
            thread.join()  # its caller left: nothing of it goes on in the next engine
            server.until(200, START_S)
            found = server.http.post("/v1/completions", json=body).json()
            assert found["usage"]["completion_tokens"] == 4
            text = server.http.get("/metrics").text
            assert re.search(r"^octavo:engine_restarts_total\{.*\} 1.0$", text, re.M), text


def test_the_longest_prefill_at_full_load_is_no_hang() -> None:
    """Every place taken by the longest prompt there may be, as ids and as text, and every probe is answered with yes."""
    tokenizer = Tokenizer.load(tokenizer_folder(EngineConfig()))
    with served("--threads", "1", "--canary-interval", "0.5", "--max-num-seqs", "8") as server:
        server.until(200, START_S)
        models = server.http.get("/v1/models").json()
        longest = models["data"][0]["max_model_len"]
        answers, slowest = asyncio.run(_under_load(server.url, tokenizer, longest))
        assert all(usage["prompt_tokens"] >= longest - 5 for usage in answers)
        assert slowest < 1.0
        canary = server.canary()
        assert canary is not None and canary["failures"] == 0


async def _under_load(
    url: str, tokenizer: Tokenizer, longest: int
) -> tuple[list[dict[str, Any]], float]:
    """Usage of every call, and the longest that a probe took meanwhile."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:

        async def call(index: int) -> dict[str, Any]:
            ids = [(index + 11 * i) % 250 for i in range(longest - 4)]
            prompt: object = ids if index % 2 else tokenizer.decode(ids)
            body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True}
            if not index % 2:
                body["truncate_prompt_tokens"] = longest - 4
            answer = await http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            usage: dict[str, Any] = answer.json()["usage"]
            return usage

        calls = asyncio.gather(*(call(index) for index in range(8)))
        slowest, num_probes = 0.0, 0
        while not calls.done():
            begun = time.monotonic()
            for path in ("/readyz", "/livez"):
                answer = await http.get(path)
                assert answer.status_code == 200, answer.text
                num_probes += 1
            slowest = max(slowest, time.monotonic() - begun)
        assert num_probes > 20, json.dumps(num_probes)
        return await calls, slowest
