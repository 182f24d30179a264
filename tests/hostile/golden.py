"""Requests of ordinary callers, whose answers must not change by a byte whatever else the server is sent."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_TEXTS = ("def add(a, b):", "The history of the press", "import os\n", "A list of things:\n1.")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def golden_requests(count: int = 32) -> list[tuple[str, dict[str, Any]]]:
    """Path and body of each: greedy and seeded, plain and with log-probabilities, stops, grammars and choices."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0.8, "seed": 7, "top_p": 0.9},
        {"temperature": 0, "logprobs": 3},
        {"temperature": 1, "seed": 3, "n": 2},
        {"temperature": 0, "stop": ["\n\n", "def"]},
        {"temperature": 0.7, "seed": 1, "presence_penalty": 0.5, "repetition_penalty": 1.1},
        {"temperature": 0.5, "seed": 2, "structured_outputs": {"json": _SCHEMA}},
        {"temperature": 0, "echo": True},
    ]
    made = []
    for number in range(count):
        text, kind = _TEXTS[number % len(_TEXTS)], kinds[number // len(_TEXTS) % len(kinds)]
        body = {**kind, "max_tokens": 24 + number % 5, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if number % 8 == 7 and "echo" not in kind:
            body["messages"] = [{"role": "user", "content": text}]
            body["logprobs"] = "logprobs" in kind
            made.append((CHAT, body))
        else:
            made.append((COMPLETIONS, {**body, "prompt": f"{text} {number}"}))
    return made


class Golden:
    """The streams, alone and then among others."""

    def __init__(self, client: httpx.AsyncClient, count: int = 32) -> None:
        self._client = client
        self._requests = golden_requests(count)
        self._expected: list[str] = []
        self.num_streams = 0
        self.differences: list[str] = []
        self.worst_gap_s = 0.0

    async def record(self) -> None:
        """What each says when nobody else is there."""
        self._expected = [await self._read(*request) for request in self._requests]
        self.worst_gap_s = 0.0

    async def keep_asking(self, is_over: asyncio.Event, at_once: int = 4) -> None:
        """Ask all of them again and again, a few at a time, until it is over."""

        async def ask_some(first: int) -> None:
            index = first
            while not is_over.is_set():
                await self._compare(index % len(self._requests))
                index += at_once

        await asyncio.gather(*[ask_some(first) for first in range(at_once)])

    async def _compare(self, index: int) -> None:
        path, body = self._requests[index]
        try:
            found = await self._read(path, body)
        except (httpx.HTTPError, AssertionError) as error:
            found = f"{type(error).__name__}: {error}"
        self.num_streams += 1
        if found != self._expected[index]:
            self.differences.append(
                f"{path} {json.dumps(body)[:200]}\n  expected {self._expected[index]!r}\n  found {found!r}"
            )

    async def _read(self, path: str, body: dict[str, Any]) -> str:
        """What a stream says in the end: text, log-probabilities, reasons and usage, without ids and cut points."""
        said: dict[str, Any] = {}
        last = time.monotonic()
        async with self._client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200, (answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                now = time.monotonic()
                self.worst_gap_s, last = max(self.worst_gap_s, now - last), now
                if line.startswith("data: {"):
                    _fold(said, json.loads(line[6:]))
        assert "usage" in said, "a stream that ends without its usage was cut"
        return json.dumps(said, sort_keys=True)


def _fold(said: dict[str, Any], event: dict[str, Any]) -> None:
    assert "error" not in event, event
    for choice in event["choices"]:
        one = said.setdefault(str(choice["index"]), {"text": "", "logprobs": [], "reason": None})
        delta = choice.get("delta") or choice
        one["text"] += delta.get("text") or delta.get("content") or ""
        found = choice.get("logprobs") or {}
        one["logprobs"] += found.get("token_logprobs") or [
            entry["logprob"] for entry in found.get("content") or ()
        ]
        one["reason"] = choice.get("finish_reason") or one["reason"]
    if event.get("usage"):
        usage = event["usage"]
        # What the prefix cache held depends on who came before.
        said["usage"] = [usage["prompt_tokens"], usage["completion_tokens"]]
