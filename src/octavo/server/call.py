"""One HTTP call as its handler sees it, and the edge at which its errors become answers.

Every route is an `Endpoint`: the key, its role and its allowance are checked here, behind the routing, so that no
spelling of a path can get around them. Request ids are minted here; what callers send as an id is never used.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.core.errors import EngineError, OctavoError, RequestError
from octavo.core.log import REQUEST_ID, get_logger
from octavo.engine.frontend import Caller
from octavo.meter.trace import OPERATIONS, CallTrace
from octavo.server.access import AccessLog
from octavo.server.admission.tickets import Stay
from octavo.server.auth import Guest
from octavo.server.costs.tab import Tab
from octavo.server.costs.tags import HEADER, read_feature
from octavo.server.errors import RoleError, anthropic_error_json, error_json, error_response
from octavo.server.keys.allowance import Allowance, LimitError
from octavo.server.keys.rows import Role
from octavo.server.lenient import Warned, WarningSender
from octavo.server.limits import ClientGone, read_body
from octavo.server.listen.protocol import ADMIN_KEY
from octavo.server.marks import Marks
from octavo.server.parse import Parser
from octavo.server.running import Running
from octavo.server.state import AppState, Inner
from octavo.server.timing import TimingSender, wants_timing

logger = get_logger(__name__)

T = TypeVar("T", bound=msgspec.Struct)
_MAX_WARNINGS = 128
_ID_KEY = "octavo.request_id"


class RouteRow(NamedTuple):
    """One route. Whatever is not `public` needs a key when keys are configured."""

    path: str
    method: str
    handler: str
    """module:attribute of an async function from Call to an ASGI response."""
    public: bool = False
    shape: Literal["openai", "anthropic"] = "openai"
    """How errors are written, and in which header a key may come beside Authorization."""
    role: Role = "user"
    """What a key must be, at least. `admin` is never anyone's who came without a key, but through the admin socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: who asks, for what, under which id."""

    scope: Scope
    receive: Receive
    state: AppState
    guest: Guest
    id: str
    """Minted by us; 32 hexadecimal digits."""
    running: Running
    """The same call as those see it who want to end it."""
    warnings: list[Warned] = field(default_factory=list)
    """What the answer has to say of ignored fields."""
    began: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when its headers were read: deadlines count from here."""
    stay: Stay
    tab: Tab
    """What the call spends."""
    trace: CallTrace | None = None
    """Its span, where calls of this kind are traced."""

    @property
    def caller(self) -> Caller:
        """Whose tenant, cache scope and share."""
        return self.guest.caller

    @property
    def allowance(self) -> Allowance:
        """What the key may still use: `begin`, `spend` and `end` go around whatever generates."""
        return self.guest.allowance

    async def body(self, parser: Parser[T]) -> T:
        """The body, checked. Raises RequestError naming the field at fault."""
        body = await read_body(self.receive, Headers(scope=self.scope), self.stay.hold)
        self.running.marks.body = time.monotonic()
        return parser(body, self.refuse)

    def refuse(self, error: RequestError) -> None:
        """A field that nobody honours: refuse it, or under `--lenient` note for the answer that it is ignored.

        Raises:
            RequestError: `error`, unless the server is lenient.
        """
        if not self.state.config.lenient:
            raise error
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(
                Warned(param=error.param or "", code=error.code, message=error.message)
            )


Handler = Callable[[Call], Awaitable[ASGIApp]]


class Endpoint:
    """A route's ASGI application."""

    def __init__(self, row: RouteRow, handler: Handler, state: AppState) -> None:
        self._row = row
        self._error_body = anthropic_error_json if row.shape == "anthropic" else error_json
        self._handler = handler
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authorise, handle, answer. One call may fail; the server goes on."""
        began, status = time.monotonic(), 499

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, seen, None)
        finally:
            seconds = time.monotonic() - began
            self._state.metrics.observe_call(self._row.path, self._row.method, status, seconds)

    async def inner(self, body: bytes, guest: Guest) -> Inner:
        """Answer a call that comes from within, as if `guest` had sent `body`; who makes it counts it as a request."""
        request_id = secrets.token_hex(16)
        scope = {
            "type": "http",
            "method": self._row.method,
            "path": self._row.path,
            "path_params": {},
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            _ID_KEY: request_id,
        }
        sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        parts: list[bytes] = []
        status, retry_after_s = 500, 0.0

        async def receive() -> Message:
            return sent.pop() if sent else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            nonlocal status, retry_after_s
            if message["type"] == "http.response.start":
                status = message["status"]
                retry_after_s = float(MutableHeaders(scope=message).get("retry-after", 0))
            parts.append(message.get("body", b""))

        await self._answer(scope, receive, send, guest)
        return Inner(status, request_id, b"".join(parts), retry_after_s)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, guest: Guest | None
    ) -> None:
        status, marks = 0, Marks()
        tab: Tab | None = None

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if tab is not None:
                    MutableHeaders(scope=message).update(tab.headers())
                if guest is not None:
                    MutableHeaders(scope=message).update(guest.allowance.headers())
                if trace is not None:
                    MutableHeaders(scope=message)["traceparent"] = trace.traceparent
            begun = time.monotonic()
            await send(message)
            marks.wrote(begun)

        request_id = scope[_ID_KEY]
        trace = self._trace(scope)
        warnings: list[Warned] = []
        stay = Stay(self._state.admission)
        try:
            if guest is None:
                guest = self._guest(scope)
                if self._row.method == "POST" and not self._row.public:
                    guest.allowance.count_request()
            marks.authorized = time.monotonic()
            feature = read_feature(Headers(scope=scope).getlist(HEADER))
            tab = self._state.costs.tab(guest.caller.tenant, guest.key, feature)
            running = Running(request_id, guest.caller.tenant, self._row.path, marks)
            call = Call(
                scope=scope,
                receive=receive,
                state=self._state,
                guest=guest,
                id=request_id,
                running=running,
                warnings=warnings,
                stay=stay,
                trace=trace,
                tab=tab,
            )
            with self._state.calls.held(running):
                with running.interruptible():
                    response = await self._handler(call)
                sender = WarningSender(watched, warnings) if warnings else watched
                if wants_timing(scope):
                    sender = TimingSender(sender, running)
                await response(scope, receive, sender)
        except ClientGone:
            self._state.metrics.count("octavo:client_disconnects")
            status = status or 499
        except OctavoError as error:
            if isinstance(error, LimitError):
                self._state.metrics.count("vllm:admission_rejections", 1, f"key_{error.limit}")
            if error.status == 500:
                logger.warning("request %s: %s", request_id, error.info().one_line())
            if trace is not None:
                trace.fail(error.code)
            await error_response(error, self._error_body)(scope, receive, watched)
        except (
            Exception
        ):  # edge of a call: a bug in one answer must not take the server's other calls with it
            logger.exception("request %s failed", request_id)
            if trace is not None:
                trace.fail("internal_error")
            if not status:
                hidden = EngineError("internal error; the log has it under this request's id.")
                await error_response(hidden, self._error_body)(scope, receive, watched)
        finally:
            stay.close()
            # Cut off from within before there was an answer, as a line of a batch that is cancelled.
            told = str(status or 499)
            self._state.metrics.count("octavo:http_responses", 1, self._row.path, told)
            if trace is not None:
                trace.end(status or 499)

    def _trace(self, scope: Scope) -> CallTrace | None:
        """The span of a call that an engine is asked in."""
        tracer = self._state.tracer
        if tracer is None or self._row.method != "POST" or self._row.path not in OPERATIONS:
            return None
        trace = tracer.begin(self._row.path, Headers(scope=scope))
        trace.identify(scope[_ID_KEY])
        return trace

    def _guest(self, scope: Scope) -> Guest:
        """Who calls, if that is enough for this route.

        Raises:
            AuthError: no key, or none that is known.
            RoleError: a key that may not do this.
        """
        keys, role = self._state.keys, self._row.role
        if self._row.public:
            return Guest(Caller(), "user", Allowance())
        headers = Headers(scope=scope)
        given = headers.getlist("authorization")
        if self._row.shape == "anthropic" and "x-api-key" in headers:
            given = [f"Bearer {key}" for key in headers.getlist("x-api-key")]
        is_admin = scope.get(ADMIN_KEY, False)
        if is_admin and not given:
            return keys.admin()
        guest = keys.admit(given)
        if is_admin:
            return guest._replace(role="admin")
        if not guest.may(role):
            has = "no key is asked for here" if keys.is_open else f"this key's role is {guest.role}"
            raise RoleError(
                f"{self._row.path} needs the role {role}; {has}.",
                fix=f"Take a key made with `octavo keys create --role {role}`, or the admin socket.",
            )
        return guest


class RequestId:
    """Middleware: mints the id of each call and sends it back as `x-request-id`; says when a connection will close."""

    def __init__(self, app: ASGIApp, state: AppState) -> None:
        self._app = app
        self._state = state
        self._access = AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the id in the scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16)
        scope[_ID_KEY] = request_id

        status = 0

        async def stamped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                if self._state.is_leaving or self._state.is_draining:
                    headers["connection"] = "close"
            await send(message)

        began, told = time.monotonic(), REQUEST_ID.set(request_id)
        try:
            await self._app(scope, receive, stamped)
        finally:
            REQUEST_ID.reset(told)
            if not self._state.config.disable_access_log:
                self._access.add(scope, status or 499, time.monotonic() - began, request_id)


def json_response(body: msgspec.Struct | dict[str, Any], status: int = 200) -> Response:
    """A Struct or an object as a JSON answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
