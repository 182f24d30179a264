"""A tiny OpenAI-compatible server on a free port, with faults to order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from octavo.tools.background import LoopThread


@dataclass
class FakeOpenAI:
    """Answers `w0 w1 ...`; tests set the fields to order faults and read `bodies`."""

    url: str = ""
    missing_tokens: int = 0
    """So many fewer tokens than asked."""
    cached_tokens: int | None = 0
    fail_every: int = 0
    """Every n-th request is a 500."""
    cut_off: bool = False
    in_one_piece: bool = False
    delay_s: float = 0.0
    key: str | None = None
    bodies: list[dict] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/version", self.version)
        app.router.add_post("/v1/completions", self.generate)
        app.router.add_post("/v1/chat/completions", self.generate)
        return app

    async def models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            error = {"message": "wrong key", "type": "auth", "code": "invalid_api_key"}
            return web.json_response({"error": error}, status=401)
        return web.json_response({"object": "list", "data": [{"id": "fake"}]})

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "fake-1"})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            return web.json_response({"error": {"message": "boom", "code": "oops"}}, status=500)
        is_chat = "chat" in request.path
        count = max(0, body.get("max_tokens", 5) - self.missing_tokens)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(data: object) -> None:
            text = data if isinstance(data, str) else json.dumps(data)
            await response.write(f"data: {text}\n\n".encode())

        def choice(text: str | None, reason: str | None = None) -> dict:
            if is_chat:
                return {"index": 0, "delta": {"content": text}, "finish_reason": reason}
            return {"index": 0, "text": text or "", "finish_reason": reason}

        words = [f"w{i} " for i in range(count)]
        for text in ["".join(words)] if self.in_one_piece and words else words:
            await asyncio.sleep(self.delay_s)
            await send({"choices": [choice(text)]})
        if self.cut_off:
            request.transport.close()
            return response
        await send({"choices": [choice(None, "length")]})
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        usage = {"prompt_tokens": len(prompt), "completion_tokens": count}
        if self.cached_tokens is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        await send({"choices": [], "usage": usage})
        await send("[DONE]")
        return response


@contextlib.asynccontextmanager
async def _running(fake: FakeOpenAI) -> AsyncIterator[FakeOpenAI]:
    runner = web.AppRunner(fake.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@pytest.fixture
def fake() -> Iterator[FakeOpenAI]:
    with LoopThread() as loop, loop.hold(_running(FakeOpenAI())) as running:
        yield running
