"""An engine and its API: what `serve` shows the world, and `chat` keeps to itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from octavo.core import env
from octavo.core.assets import tokenizer_folder
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.core.inject import injections
from octavo.engine.client import EngineClient
from octavo.engine.frontend import Frontend
from octavo.engine.ipc import Ready
from octavo.meter.metrics import Metrics
from octavo.server.admission.desk import Bounds
from octavo.server.app import create_app
from octavo.server.auth import KeyRing, key_ring
from octavo.server.jobs.store import Store
from octavo.server.listen.serve import Server
from octavo.server.response_store import ResponseStore
from octavo.server.state import AppState, Kept, octavo_version
from octavo.text import inject
from octavo.text.chat import ChatTemplate
from octavo.text.fit import check_fit
from octavo.text.parsers.choose import Chosen, choose
from octavo.text.tokenizer import Tokenizer
from octavo.tools import openai_client
from octavo.tools.flags import Configs
from octavo.tools.openai_client import Backend

LEDGER_FILE = "ledger.sqlite3"
"""Of a --state-dir."""
_PRIVATE = ServerConfig(disable_access_log=True, shutdown_timeout=0.0)


def make_state(configs: Configs, client: EngineClient) -> AppState:
    """The server's state over an engine that need not have started yet.

    Raises:
        ModelError: the model folder or its tokenizer cannot be used.
        ConfigError: the chat template file cannot be read.
    """
    engine, server = configs
    tokenizer = Tokenizer.load(tokenizer_folder(engine))
    inject.install(tokenizer, injections(engine.inject))
    names = server.served_model_name or (engine.model,)
    template = _chat_template(server, tokenizer)
    state = AppState(
        config=server,
        engine=client,
        frontend=Frontend(client, tokenizer),
        chat_template=template,
        formats=choose_formats(server, template).formats,
        served_names=names,
        metrics=Metrics(names[0]),
        keys=key_ring(server, env.api_keys()),
        scheduling_policy=engine.scheduling_policy,
        step_log=Path(engine.step_log).expanduser()
        if engine.step_log is not None and engine.step_log_size
        else None,
        bounds=Bounds(engine.max_num_queued_reqs, server.max_num_queued_tokens),
    )
    if server.otlp_traces_endpoint is not None:
        # lazy: most servers are not traced
        from octavo.meter.trace import Tracer

        state.tracer = Tracer(
            server.otlp_traces_endpoint,
            model=names[0],
            version=octavo_version(),
            protocol=env.otlp_protocol(),
        )
    client.watch(state.metrics.observe_stats)
    url = ledger_url(server)
    if url is not None:
        state.costs.open(url)
    client.charge_to(state.costs.book)
    state.costs.set_pace = client.charge_every
    if server.state_dir is not None:
        folder = Path(server.state_dir).expanduser()
        if server.takeover:
            state.open_kept = functools.partial(_open_kept, folder, is_shared=True)
        else:
            state.kept = _open_kept(folder)
    return state


def ledger_url(config: ServerConfig) -> str | None:
    """Where a server's ledger is kept, if anywhere."""
    if config.ledger_url is not None or config.state_dir is None:
        return config.ledger_url
    return f"sqlite:///{Path(config.state_dir).expanduser().absolute() / LEDGER_FILE}"


def _open_kept(folder: Path, *, is_shared: bool = False) -> Kept:
    """What is kept in a state folder; `is_shared` while the server that had it ends."""
    store = Store(folder)
    return Kept(store, ResponseStore(folder / "responses.sqlite3", is_shared=is_shared))


def choose_formats(config: ServerConfig, template: ChatTemplate | None) -> Chosen:
    """How the model writes reasoning and tool calls. Raises ConfigError for an unknown name."""
    sources = template.sources.values() if template is not None else ()
    return choose(sources, tools=config.tool_call_parser, reasoning=config.reasoning_parser)


def _chat_template(config: ServerConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    if config.chat_template is None:
        templates = tokenizer.chat_templates
        return ChatTemplate(templates, tokenizer.special_tokens) if templates else None
    try:
        source = Path(config.chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat-template {config.chat_template!r}: {error}.", code="E-FILE-01"
        ) from error
    return ChatTemplate(source, tokenizer.special_tokens)


@contextlib.asynccontextmanager
async def serving(configs: Configs) -> AsyncIterator[Backend]:
    """Start an engine and answer for it on a Unix socket that only this user can open.

    Raises:
        OctavoError: the engine cannot start; the cause.
    """
    client = EngineClient(configs.engine)
    state = make_state(configs, client)
    state.keys.close()
    state.keys = KeyRing()
    state.config = msgspec.structs.replace(state.config, canary_interval=0.0)
    folder = tempfile.mkdtemp(prefix="octavo-")  # mode 0700
    path = str(Path(folder) / "api.sock")
    try:
        await client.start()
        await _wait_ready(client, state.frontend.tokenizer)
        async with (
            _server(state, path),
            openai_client.connect("http://localhost", uds=path) as connected,
        ):
            yield Backend(connected, state.served_names[0])
    finally:
        await client.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _server(state: AppState, path: str) -> AsyncIterator[None]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.listen()
    server = Server(create_app(state), _PRIVATE)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def when_ready(client: EngineClient, tokenizer: Tokenizer) -> Ready:
    """Wait for an engine, and see whether the tokenizer is its model's.

    Raises:
        OctavoError: the engine cannot start, or the tokenizer is another model's.
    """
    ready = await client.wait_ready()
    check_fit(tokenizer, ready.vocab_size, is_dummy=client.config.load_format == "dummy")
    return ready


async def _wait_ready(client: EngineClient, tokenizer: Tokenizer) -> None:
    """Wait, and show on a terminal what is being waited for."""
    ready = asyncio.ensure_future(when_ready(client, tokenizer))
    try:
        while not ready.done():
            await asyncio.wait({ready}, timeout=0.1)
            if sys.stderr.isatty():
                status = client.status()
                line = f"loading {client.config.model}: {status.phase} {status.fraction:.0%}"
                text = "" if ready.done() else line
                sys.stderr.write(f"\r\x1b[K{text}")
                sys.stderr.flush()
        ready.result()
    finally:
        ready.cancel()
