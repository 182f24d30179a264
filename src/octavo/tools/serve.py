"""`octavo serve`: listen, start the engine, say what was decided and how to call it.

The server listens before the engine is ready, so that `/startupz` can tell how far it is. When the
engine cannot start, the server stops and the last line printed is the cause.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from octavo.core import env, log
from octavo.core.config import EngineConfig, ServerConfig
from octavo.core.errors import ConfigError, EngineDeadError
from octavo.core.inject import injections
from octavo.engine.ipc import Phase, Ready
from octavo.tools import startup
from octavo.tools.flags import Configs, add_config_flags, configs
from octavo.tools.parser import Parser
from octavo.tools.startup import Address, process_age_s

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient
    from octavo.engine.frontend import Frontend
    from octavo.engine.spawn import Spawned

QUIET_S = 1.0
"""Without a step, after which the engine may be kept busy with what nobody has asked for yet."""


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    add_config_flags(parser, EngineConfig, ServerConfig)


def run(args: argparse.Namespace, spawned: Spawned | None = None) -> int:
    """Serve until a signal ends it. `spawned` is an engine's process that waits to be told what to be; None: one is started
    when that is known.
    """
    entered = process_age_s()
    parsed = configs(args)
    injections(parsed.engine.inject)  # for its error, before a process is started
    # lazy: asyncio and messages, a tenth of a second that a mistyped flag should not cost
    from octavo.engine.child import EngineProcess
    from octavo.engine.client import EngineClient

    log.configure(style=parsed.engine.log_format)
    _check_security(parsed.server)
    parsed = with_step_log(parsed)
    if parsed.server.otlp_traces_endpoint is not None:
        # lazy: most servers are not traced
        from octavo.meter.trace import check

        check(parsed.server.otlp_traces_endpoint, env.otlp_protocol())
    waiting = [] if spawned is None else [spawned]
    client = EngineClient(
        parsed.engine, lambda: EngineProcess(spawned=waiting.pop() if waiting else None)
    )
    client.launch()  # the engine loads torch while the server's libraries are loaded here
    launched = process_age_s()
    if spawned is not None:
        launched -= time.monotonic() - spawned.started_at
        entered = launched
    try:
        _serve(parsed, client, entered, launched)
    except BaseException:
        client.abandon()
        raise
    return 0


def with_step_log(configs: Configs) -> Configs:
    """The step log in the state folder, where there is one and no other was named."""
    engine, server = configs
    if engine.step_log is not None or server.state_dir is None:
        return configs
    folder = str(Path(server.state_dir).expanduser().absolute() / "steps")
    return Configs(replace(engine, step_log=folder), server)


def _check_security(server: ServerConfig) -> None:
    """Refuse what would be unsafe before anything is started."""
    # lazy: a mistyped flag should not cost the loading of ssl and sqlite
    from octavo.server.listen.exposure import check_exposure
    from octavo.server.listen.tls import tls_context

    check_exposure(server, env.api_keys())
    tls_context(server)


def _serve(parsed: Configs, client: EngineClient, entered: float, launched: float) -> None:
    # lazy: the server's libraries take a quarter of a second, during which the engine loads its own
    import asyncio

    # lazy: as above
    from octavo.server.app import create_app
    from octavo.server.listen.exposure import check_exposure
    from octavo.server.listen.handover import Takeover
    from octavo.server.listen.listening import bind, host_of
    from octavo.server.listen.serve import run_server
    from octavo.tools.local import choose_formats, make_state, when_ready

    wants = parsed.server.takeover
    takeover = Takeover.ask(parsed.server.host, parsed.server.port) if wants else None
    sock = bind(parsed.server) if takeover is None else takeover.sock
    try:
        check_exposure(parsed.server, env.api_keys(), sock)  # a service manager may have chosen it
    except ConfigError:
        sock.close()
        raise
    state = make_state(parsed, client)
    address = Address(
        host=parsed.server.host if env.listen_fd() is None else host_of(sock) or "localhost",
        port=sock.getsockname()[1],
        model=state.served_names[0],
        needs_key=not state.keys.is_open,
        has_keys=len(env.api_keys()) > 1,
        is_tls=parsed.server.ssl_certfile is not None,
    )

    async def start() -> Ready:
        await client.start()
        ready = await when_ready(client, state.frontend.tokenizer)
        learning.append(asyncio.ensure_future(learn_when_quiet(client, state.frontend)))
        await state.costs.opened()
        return ready

    async def stop() -> None:
        for task in learning:
            task.cancel()
        await client.close()

    learning: list[asyncio.Future[None]] = []

    chosen = choose_formats(parsed.server, state.chat_template).decisions
    state.on_start = announcing(start, address, entered, launched, chosen)
    state.on_stop = stop
    run_server(create_app(state), parsed.server, sock, takeover)


async def learn_when_quiet(
    client: EngineClient, frontend: Frontend, quiet_s: float = QUIET_S
) -> None:
    """Have the engine read the vocabulary that grammars are for in its first pause of `quiet_s`.

    With 150k tokens it can do nothing else for up to a second, for which the first answer would wait. A grammar that somebody
    asks for before that brings the vocabulary along.
    """
    # lazy: loaded where there is an event loop
    import asyncio

    num_steps = client.stats.num_steps
    while True:
        await asyncio.sleep(quiet_s)
        stats = client.stats
        if stats.num_steps == num_steps and not (stats.num_running or stats.num_waiting):
            break
        num_steps = stats.num_steps
    with contextlib.suppress(EngineDeadError):  # the next request says so
        await frontend.prepare_grammars()


def announcing(
    start: Callable[[], Awaitable[Ready]],
    address: Address,
    entered: float,
    launched: float,
    chosen: tuple[tuple[str, str, str], ...] = (),
) -> Callable[[], Awaitable[None]]:
    """Start an engine, then print all that an operator wants to know.

    `entered` and `launched`: age of this process at `run`, and when the engine was started, equal if that was first.
    `chosen`: what was decided here, beside the engine's decisions.
    """

    async def start_and_tell() -> None:
        ready = await start()
        total = process_age_s()
        before = [Phase(name="python", seconds=entered, detail="interpreter and command line")]
        if launched > entered:
            before.append(
                Phase(
                    name="launch",
                    seconds=launched - entered,
                    detail="what it takes to start the engine",
                )
            )
        parts = (
            startup.memory_text(ready),
            startup.decisions_text(ready, chosen),
            startup.timeline_text(total, before, ready.phases),
            startup.ready_text(ready, address, has_openai=has_openai()),
        )
        print("\n" + "\n\n".join(part for part in parts if part), flush=True)

    return start_and_tell


def has_openai() -> bool:
    """Whether this interpreter has the official client."""
    return importlib.util.find_spec("openai") is not None
