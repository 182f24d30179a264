"""The application: a table of routes, each behind its key, and nothing else.

Deny by default: a route needs a key unless its row says `public=True`, and more than a user's where it names a role.
Public are the probes, because orchestrators carry no keys, and the files of the console, because no data is in them.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from octavo.core.errors import NotFoundError, RequestError, did_you_mean
from octavo.core.log import get_logger
from octavo.server.batches import BatchRunner
from octavo.server.call import Endpoint, Handler, RequestId, RouteRow
from octavo.server.canary import Canary
from octavo.server.errors import MethodError, error_response
from octavo.server.jobs.store import Store
from octavo.server.probes.watch import Watch
from octavo.server.state import AppState

logger = get_logger(__name__)

_HEALTH = "octavo.server.probes.health"
_ADMIN = "octavo.server.admin"
_OPENAI = "octavo.server.openai"
_RESPONSES = "octavo.server.responses.endpoint"
_ANTHROPIC = "octavo.server.anthropic.endpoint"
_CONSOLE = "octavo.server.console"

ROUTES: tuple[RouteRow, ...] = (
    RouteRow("/health", "GET", f"{_HEALTH}:health", public=True),
    RouteRow("/ping", "GET", f"{_HEALTH}:health", public=True),
    RouteRow("/ping", "POST", f"{_HEALTH}:health", public=True),
    RouteRow("/livez", "GET", f"{_HEALTH}:livez", public=True),
    RouteRow("/readyz", "GET", f"{_HEALTH}:readyz", public=True),
    RouteRow("/startupz", "GET", f"{_HEALTH}:startupz", public=True),
    RouteRow("/healthz", "GET", f"{_HEALTH}:healthz", public=True),
    RouteRow("/version", "GET", f"{_HEALTH}:version"),
    RouteRow("/metrics", "GET", f"{_HEALTH}:metrics", role="operator"),
    RouteRow("/openapi.json", "GET", "octavo.server.openapi:openapi_json"),
    RouteRow("/load", "GET", f"{_HEALTH}:load", role="operator"),
    RouteRow("/reset_prefix_cache", "POST", f"{_ADMIN}:reset_prefix_cache", role="admin"),
    RouteRow("/console", "GET", f"{_CONSOLE}.pages:index", public=True),
    RouteRow("/console/events", "GET", f"{_CONSOLE}.events:events", role="operator"),
    RouteRow("/console/{name:path}", "GET", f"{_CONSOLE}.pages:file", public=True),
    RouteRow("/v1/models", "GET", f"{_OPENAI}.models:list_models"),
    RouteRow("/v1/models/{model:path}", "GET", f"{_OPENAI}.models:get_model"),
    RouteRow("/v1/completions", "POST", f"{_OPENAI}.completions:completions"),
    RouteRow("/v1/chat/completions", "POST", f"{_OPENAI}.chat:chat_completions"),
    RouteRow("/v1/responses", "POST", f"{_RESPONSES}:create"),
    RouteRow("/v1/responses/{response_id}", "GET", f"{_RESPONSES}:retrieve"),
    RouteRow("/v1/responses/{response_id}", "DELETE", f"{_RESPONSES}:delete"),
    RouteRow("/v1/responses/{response_id}/cancel", "POST", f"{_RESPONSES}:cancel"),
    RouteRow("/v1/responses/{response_id}/input_items", "GET", f"{_RESPONSES}:input_items"),
    RouteRow("/v1/messages", "POST", f"{_ANTHROPIC}:create", shape="anthropic"),
    RouteRow("/v1/messages/count_tokens", "POST", f"{_ANTHROPIC}:count_tokens", shape="anthropic"),
    RouteRow("/v1/requests/{request_id}", "GET", "octavo.server.requests:get_request"),
    RouteRow("/v1/requests/{request_id}", "DELETE", "octavo.server.requests:delete_request"),
    RouteRow("/v1/usage", "GET", "octavo.server.usage:get_usage"),
    RouteRow("/v1/files", "POST", f"{_OPENAI}.files:upload_file"),
    RouteRow("/v1/files", "GET", f"{_OPENAI}.files:list_files"),
    RouteRow("/v1/files/{file_id}", "GET", f"{_OPENAI}.files:get_file"),
    RouteRow("/v1/files/{file_id}", "DELETE", f"{_OPENAI}.files:delete_file"),
    RouteRow("/v1/files/{file_id}/content", "GET", f"{_OPENAI}.files:file_content"),
    RouteRow("/v1/batches", "POST", f"{_OPENAI}.batches:create_batch"),
    RouteRow("/v1/batches", "GET", f"{_OPENAI}.batches:list_batches"),
    RouteRow("/v1/batches/{batch_id}", "GET", f"{_OPENAI}.batches:get_batch"),
    RouteRow("/v1/batches/{batch_id}/cancel", "POST", f"{_OPENAI}.batches:cancel_batch"),
    RouteRow("/v1/embeddings", "POST", f"{_OPENAI}.embeddings:embeddings"),
    RouteRow("/pooling", "POST", f"{_OPENAI}.pooling:pooling"),
    RouteRow("/classify", "POST", f"{_OPENAI}.pooling:classify"),
    RouteRow("/score", "POST", f"{_OPENAI}.score:score"),
    RouteRow("/v1/score", "POST", f"{_OPENAI}.score:score"),
    RouteRow("/rerank", "POST", f"{_OPENAI}.score:rerank"),
    RouteRow("/v1/rerank", "POST", f"{_OPENAI}.score:rerank"),
    RouteRow("/v2/rerank", "POST", f"{_OPENAI}.score:cohere_rerank"),
    RouteRow("/tokenize", "POST", f"{_OPENAI}.tokenize:tokenize"),
    RouteRow("/tokenizer_info", "GET", f"{_OPENAI}.tokenize:tokenizer_info"),
    RouteRow("/detokenize", "POST", f"{_OPENAI}.tokenize:detokenize"),
)


def create_app(state: AppState) -> Starlette:
    """The ASGI application over `state`, which it keeps as `app.state.octavo`."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(_beside(Watch(state).run()))
            await stack.enter_async_context(_beside(state.costs.run()))
            await stack.enter_async_context(_beside(state.console.run()))
            if state.config.canary_interval > 0:
                state.canary = Canary(state.engine, state.config.canary_interval)
                await stack.enter_async_context(_beside(state.canary.run()))
            if state.store is not None:
                await stack.enter_async_context(_batches(state, state.store))
            yield
        if state.on_stop is not None:
            await state.on_stop()
        await _end_background(state)
        if state.tracer is not None:
            state.tracer.close()
        await state.costs.close()
        state.responses.close()
        state.frontend.close()
        state.keys.close()

    app = Starlette(
        routes=[_route(row, state) for row in ROUTES],
        middleware=[Middleware(RequestId, state=state)],
        exception_handlers={HTTPException: _refuse},
        lifespan=lifespan,
    )
    # A redirect would be built from the Host header, which the caller writes.
    app.router.redirect_slashes = False
    app.state.octavo = state
    return app


async def _end_background(state: AppState) -> None:
    """Responses that nobody waits for are kept as far as they have come."""
    tasks = list(state.background.values())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _batches(state: AppState, store: Store) -> AsyncIterator[None]:
    """Batch jobs run meanwhile."""
    state.batches = runner = BatchRunner(state, store)
    runner.start()
    try:
        yield
    finally:
        await runner.stop()
        store.close()


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Something runs meanwhile, for ever unless it is a bug, which is logged."""
    task = asyncio.create_task(work)
    task.add_done_callback(_tell_bug)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tell_bug(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("a task of the server ended", exc_info=error)


def _route(row: RouteRow, state: AppState) -> Route:
    module, _, attribute = row.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(module), attribute)
    endpoint = Endpoint(row, handler, state)
    if row.method == "POST":
        state.endpoints[row.path] = endpoint.inner
    return Route(row.path, endpoint, methods=[row.method])


async def _refuse(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    path = request.url.path[:256]
    assert isinstance(error, HTTPException), "registered for these alone"
    headers = dict(error.headers or {})
    known = dict.fromkeys(row.path for row in ROUTES)
    nearest = did_you_mean(path, known)
    fix = "" if nearest else f"Routes: {', '.join(known)}."
    refusal: RequestError = NotFoundError(f"no route {path!r}.{nearest}", fix=fix)
    if error.status_code == 405:
        refusal = MethodError(
            f"{request.method} does not go with {path!r}; expected {headers['Allow']}."
        )
    response = error_response(refusal)
    response.headers.update(headers)
    return response
