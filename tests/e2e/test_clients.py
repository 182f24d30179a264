"""Client libraries, each running a real script of tests/clients against a live server.

They come with the extra `clients`, in an environment of their own (`.venv-clients`) because they hold back each other's
and our versions; without it, or in the same environment as these tests, those that are installed run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fakes import MODEL, FakeEngine, ServerThread, running
from octavo.core.request import Request

TESTS = Path(__file__).parents[1]
OWN = TESTS.parent / ".venv-clients" / "bin" / "python"
PYTHON = str(OWN) if OWN.exists() else sys.executable
PACKAGES = {
    "litellm": "litellm",
    "langchain": "langchain-openai",
    "llama_index": "llama-index-llms-openai-like",
    "instructor": "instructor",
    "lm_eval": "lm_eval",
}
"""Script -> the package it needs."""


class Obliging(FakeEngine):
    """Recites a script, and what it is asked for where that is a person."""

    def _tokens(self, request: Request) -> tuple[list[int], str, int | None]:
        if b"Ann, 7" not in bytes(token for token in request.token_ids if token < 256):
            return super()._tokens(request)
        text = json.dumps({"name": "Ann", "age": 7}).encode()
        tokens = [*b"```json\n", *text, *b"\n```"][: request.max_tokens]
        is_whole = len(tokens) < request.max_tokens
        end = request.eos_token_ids[:1] if is_whole else ()
        return [*tokens, *end], "stop" if is_whole else "length", None


@cache
def versions() -> dict[str, str]:
    """What the interpreter of the clients has."""
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name.lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    run = subprocess.run([PYTHON, "-c", code], capture_output=True, check=True)
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with running(Obliging(chunks=(2, 1))) as made:
        yield made


@pytest.mark.parametrize("script", PACKAGES)
def test_script(script: str, server: ServerThread, tmp_path: Path) -> None:
    package = PACKAGES[script]
    version = versions().get(package.replace("_", "-"))
    if version is None:
        pytest.skip(f"{package} is not installed: pip install 'octavo[clients]'")
    path = TESTS / "clients" / f"{script}_script.py"
    home = {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    run = subprocess.run(
        [PYTHON, str(path), server.url, MODEL],
        env=home,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    print(f"{package} {version}")
