"""Real small stand-ins: a byte tokenizer, an engine without a model, and a server in a thread.

`FakeEngine` is deterministic: what it generates depends on the request alone, however it is cut into events.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import httpx
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.core.config import EngineConfig, ServerConfig
from octavo.core.errors import EngineDeadError, ErrorInfo
from octavo.core.request import Request
from octavo.core.result import (
    EngineStats,
    Event,
    Failed,
    Finished,
    RequestTiming,
    TokenLogprobs,
    TokenOut,
)
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.client import EngineStatus, aborted
from octavo.engine.frontend import Frontend
from octavo.engine.ipc import Phase, Ready, Steps
from octavo.engine.page import Reading
from octavo.engine.streams import Stage
from octavo.meter.metrics import Metrics
from octavo.server.admission.desk import Bounds
from octavo.server.app import create_app
from octavo.server.auth import KeyRing
from octavo.server.jobs.store import Store
from octavo.server.listen.listening import bind
from octavo.server.listen.serve import Server
from octavo.server.state import AppState, Kept
from octavo.text.chat import ChatTemplate
from octavo.text.parsers.output import Formats
from octavo.text.tokenizer import Tokenizer, TokenizerFacts

EOS = 256
VOCAB_SIZE = 260
MAX_MODEL_LEN = 2048
MODEL = "fake-model"
SCRIPT = "The quick brown fox — naïve café, 日本語 and 🦊 emoji. ".encode()
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{% if shout %}!{% endif %}"
)


def byte_tokenizer(default_sampling: dict[str, float | int] | None = None) -> Tokenizer:
    """One token per byte (its id is the byte), plus <eos>, <user>, <assistant>, <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    vocab = {chr(byte): byte for byte in shown} | {
        chr(256 + i): byte for i, byte in enumerate(hidden)
    }
    assert sorted(vocab) == alphabet
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<eos>", "<user>", "<assistant>", "<pad>"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in specials])
    facts = TokenizerFacts(
        specials={"eos_token": "<eos>"},
        eos_token_ids=(EOS,),
        default_sampling=default_sampling or {},
    )
    return Tokenizer(backend, facts)


class FakeEngine:
    """An engine client whose model recites SCRIPT. All attributes may be set by tests.

    `chunks` are the sizes of the token events, repeated. With `pause_after`, a request stops after so many tokens
    until `release` is set; `paused` and `ended` tell a test in another thread that it got there.
    """

    def __init__(self, chunks: tuple[int, ...] = (1,)) -> None:
        self.chunks = chunks
        self.state = "ready"
        self.stats = EngineStats(num_blocks=100, num_free_blocks=100)
        self.submitted: list[Request] = []
        self.cancelled: list[str] = []
        self.finished: list[str] = []
        self.stopped: list[str] = []
        self.eos_after: int | None = None
        self.script: list[int] | None = None
        """Token ids to say in place of SCRIPT, then the end."""
        self.pause_after: int | None = None
        self.release = asyncio.Event()
        self.paused = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.refuse: Exception | None = None
        self.fail_after: int | None = None
        self.restarts: tuple[tuple[str, int], ...] = ()
        self.pulse: Reading | None = None
        self.aborts: dict[str, asyncio.Event] = {}
        """Of the requests under way: set to end one."""
        self.failure = ErrorInfo(code="engine_error", message="failed on purpose.", status=500)
        self.num_resets = 0
        self.steps: list[Steps] = []
        """What its steps were: who follows gets these, and then nothing."""
        self.num_followers = 0

    @property
    def ready(self) -> Ready:
        if self.state not in ("ready", "restarting"):
            raise EngineDeadError(f"the engine is {self.state}: for the test.", retry_after_s=1.0)
        return Ready(
            model=MODEL,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
            device="fake",
            dtype="float32",
            max_num_seqs=8,
            max_num_batched_tokens=256,
            num_blocks=100,
            block_size=16,
            kv_tokens=1600,
            memory=(),
            decisions=(),
            phases=(Phase(name="weights", seconds=0.25), Phase(name="warm up", seconds=0.5)),
            pid=1,
        )

    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self.state,  # type: ignore[arg-type]  # tests set only states there are
            phase="weights" if self.state in ("loading", "restarting") else "",
            fraction=0.5 if self.state in ("loading", "restarting") else 1.0,
            reason="killed by the test" if self.state in ("restarting", "dead") else "",
            restarts=self.restarts,
            pulse=self.pulse,
        )

    def cancel(self, request_id: str) -> None:
        """Takes effect at the next token, or while it pauses."""
        if request_id in self.aborts:
            self.aborts[request_id].set()

    def stop(self, request_id: str) -> None:
        self.stopped.append(request_id)

    def stage(self, request_id: str) -> Stage:
        return "running" if request_id in self.aborts else "elsewhere"

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    async def follow_steps(self) -> AsyncIterator[Steps]:
        self.num_followers += 1
        try:
            for steps in self.steps:
                yield steps
            await asyncio.Event().wait()
        finally:
            self.num_followers -= 1

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.submitted.append(request)
        if self.refuse is not None:
            raise self.refuse
        admitted = time.monotonic()
        tokens, reason, stop_token = self._tokens(request)
        num_cached = min(16, request.num_prompt // 2)
        sizes = itertools.cycle(self.chunks)
        is_done = False
        self._count(num_running=1, prompt_tokens=request.num_prompt - num_cached)
        self._count(prefix_queries=request.num_prompt, prefix_hits=num_cached)
        first = None
        sent = 0
        abort = self.aborts[request.id] = asyncio.Event()
        try:
            while sent < len(tokens):
                if self.pause_after is not None and sent >= self.pause_after:
                    self.paused.release()
                    await first_of(self.release.wait(), abort.wait())
                if abort.is_set():
                    yield aborted(request, sent)
                    return
                if self.fail_after is not None and sent >= self.fail_after:
                    is_done = True
                    yield Failed(id=request.id, error=self.failure)
                    return
                part = tokens[sent : sent + next(sizes)]
                self._count(num_steps=1, generation_tokens=len(part), last_step_tokens=len(part))
                first = first or time.monotonic()
                yield self._event(request, part, sent, num_cached)
                sent += len(part)
                await asyncio.sleep(0)
            is_done = True
            self.finished.append(request.id)
            yield Finished(
                id=request.id,
                reason=reason,  # type: ignore[arg-type]  # stop or length
                stop_token=stop_token,
                num_prompt=request.num_prompt,
                num_output=sent,
                num_cached=num_cached,
                num_preemptions=0,
                timing=RequestTiming(
                    arrived=request.arrived,
                    admitted=admitted,
                    first_token=first,
                    last_token=time.monotonic(),
                ),
            )
        finally:
            del self.aborts[request.id]
            self._count(num_running=-1)
            if not is_done:
                self.cancelled.append(request.id)
            self.ended.release()

    def _tokens(self, request: Request) -> tuple[list[int], str, int | None]:
        start = (sum(request.token_ids) + 7 * request.index + (request.seed % 101)) % len(SCRIPT)
        if request.params.seed is None:
            start = (sum(request.token_ids) + 7 * request.index) % len(SCRIPT)
        if self.script is not None:
            ends = len(self.script) < request.max_tokens and EOS in request.eos_token_ids
            tokens = [*self.script, EOS] if ends else self.script[: request.max_tokens]
            return tokens, "stop" if ends else "length", None
        tokens = []
        while len(tokens) < request.max_tokens:
            if len(tokens) == self.eos_after and EOS in request.eos_token_ids:
                return [*tokens, EOS], "stop", None
            tokens.append(SCRIPT[(start + len(tokens)) % len(SCRIPT)])
            if tokens[-1] in request.params.stop_token_ids:
                return tokens, "stop", tokens[-1]
        return tokens, "length", None

    def _event(self, request: Request, part: list[int], sent: int, num_cached: int) -> TokenOut:
        params = request.params
        logprobs = prompt = None
        if params.logprobs is not None:
            logprobs = tuple(fake_logprobs(token, params.logprobs) for token in part)
        if params.prompt_logprobs is not None and sent == 0:
            rest = request.token_ids[1:]
            prompt = tuple(fake_logprobs(token, params.prompt_logprobs) for token in rest)
        return TokenOut(
            id=request.id,
            token_ids=tuple(part),
            logprobs=logprobs,
            prompt_logprobs=prompt,
            num_cached=num_cached if sent == 0 else 0,
            admitted=request.arrived if sent == 0 else None,
        )

    def _count(self, last_step_tokens: int | None = None, **by: int) -> None:
        values = {name: getattr(self.stats, name) for name in EngineStats.__struct_fields__}
        for name, value in by.items():
            values[name] += value
        if last_step_tokens is not None:
            values["last_step_tokens"] = last_step_tokens
        self.stats = EngineStats(**values)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them is over; the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fake_logprobs(token: int, num_tops: int) -> TokenLogprobs:
    """The token at hand is always the third likeliest."""
    tops = [(token + 1) % 256, (token + 2) % 256, token, *range(60, 90)][:num_tops]
    own = -1.5
    values = [own if top == token else -0.5 * (i + 1) for i, top in enumerate(tops)]
    return TokenLogprobs((token, *tops), (own, *values), 3)


def make_state(
    engine: FakeEngine | None = None,
    *,
    keys: tuple[str, ...] = (),
    default_sampling: dict[str, float | int] | None = None,
    template: str | None = TEMPLATE,
    formats: Formats = Formats(),
    store: Store | None = None,
    bounds: Bounds = Bounds(),
    **config: Any,
) -> AppState:
    """A server state over a fake engine."""
    engine = engine or FakeEngine()
    return AppState(
        config=ServerConfig(
            **{"port": 0, "disable_access_log": True, "canary_interval": 0.0, **config}
        ),
        engine=engine,
        frontend=Frontend(engine, byte_tokenizer(default_sampling)),
        chat_template=ChatTemplate(template) if template is not None else None,
        served_names=(MODEL, "alias/model"),
        metrics=Metrics(MODEL),
        scheduling_policy=EngineConfig().scheduling_policy,
        keys=KeyRing(keys),
        formats=formats,
        kept=Kept() if store is None else Kept(store),
        bounds=bounds,
    )


class InProcess:
    """Calls an application without sockets; every call has its own event loop."""

    def __init__(self, state: AppState) -> None:
        self.state = state
        self.app = create_app(state)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self.acall(method, path, **options))

    async def acall(self, method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.call("POST", path, json=body)


def sse_chunks(text: str) -> list[dict[str, Any]]:
    """The JSON of each event; checks that [DONE] ends it."""
    events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert events[-1] == "[DONE]"
    return [json.loads(part) for part in events[:-1]]


class ServerThread:
    """A real uvicorn server on a free port, in a thread of its own."""

    def __init__(self, state: AppState) -> None:
        self.state = state
        self._is_up = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.error: BaseException | None = None

        async def up() -> None:
            self.loop = asyncio.get_running_loop()
            self._is_up.set()

        state.on_start = up
        self._sock: socket.socket = bind(state.config)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = Server(create_app(state), state.config)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.server.run(sockets=[self._sock])
        except BaseException as error:
            self.error = error

    def __enter__(self) -> ServerThread:
        self._thread.start()
        assert self._is_up.wait(10), self.error
        return self

    def on_loop(self, act: Callable[[], Any]) -> Any:
        """Run `act` on the server's loop and wait for it."""
        assert self.loop is not None

        async def run() -> Any:
            result = act()
            return await result if isinstance(result, Awaitable) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def join(self) -> None:
        """Wait for the server's end."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.error is None, self.error

    def __exit__(self, *exc: object) -> None:
        self.server.drain()
        self.join()


@contextlib.contextmanager
def running(engine: FakeEngine | None = None, **options: Any) -> Iterator[ServerThread]:
    """A server over a fake engine."""
    with ServerThread(make_state(engine, **options)) as server:
        yield server
