"""OpenTelemetry traces: one span per call, one per request below it, and where its time went below that.

Spans of calls follow the GenAI semantic conventions; those of requests carry the name (`llm_request`) and the latency
attributes that vLLM's do. Whether a call is traced is its caller's decision (W3C `traceparent`); without one, all are, unless
OTEL_TRACES_SAMPLER says otherwise. Spans leave in a thread of their own, from a bounded queue: when the collector is away they
are dropped, and nobody waits. Knows requests and outcomes; knows no HTTP.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from octavo.core.errors import ConfigError
from octavo.core.request import Request
from octavo.meter.metrics import Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Protocol = Literal["grpc", "http/protobuf"]

NEEDS = (
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.grpc",
    "opentelemetry.exporter.otlp.proto.http",
)
_HTTP_PORT = 4318
_HTTP_PATH = "/v1/traces"
_EXPORT_S = 5
_CLOSE_S = 3.0

OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/pooling": "embeddings",
    "/classify": "classify",
    "/score": "rerank",
    "/v1/score": "rerank",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
}
"""Routes whose calls are traced -> `gen_ai.operation.name`."""


class Target(NamedTuple):
    """Where spans go, and how."""

    protocol: Protocol
    url: str
    is_plain: bool
    """Whether without TLS."""


def target_of(endpoint: str, protocol: str = "") -> Target:
    """What `--otlp-traces-endpoint` means; `protocol`, where it is not empty, decides between the two.

    Else: grpc:// and grpcs:// are gRPC; http:// and https:// are HTTP with a path or on port 4318, and gRPC without.

    Raises:
        ConfigError: no URL that could be meant, or an unknown protocol.
    """
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise ConfigError(
            f"--otlp-traces-endpoint is {endpoint!r}; expected a URL, as grpc://localhost:4317 or "
            "http://localhost:4318/v1/traces.",
            code="E-TRACE-01",
        )
    if protocol not in ("", "grpc", "http/protobuf"):
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is {protocol!r}; expected grpc or http/protobuf.",
            code="E-TRACE-01",
        )
    is_plain = parts.scheme in ("http", "grpc")
    has_path = parts.path not in ("", "/")
    is_http = parts.scheme.startswith("http") and (has_path or port == _HTTP_PORT)
    if protocol == "http/protobuf" or (not protocol and is_http):
        scheme = "http" if is_plain else "https"
        path = parts.path if has_path else _HTTP_PATH
        query = f"?{parts.query}" if parts.query else ""
        return Target("http/protobuf", f"{scheme}://{parts.netloc}{path}{query}", is_plain)
    return Target("grpc", f"{'http' if is_plain else 'https'}://{parts.netloc}", is_plain)


def check(endpoint: str, protocol: str = "") -> None:
    """Refuse what could not be traced to, before anything is started.

    Raises:
        ConfigError: as `target_of`; or what is needed is not installed.
    """
    target_of(endpoint, protocol)
    for name in NEEDS:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ConfigError(
                f"--otlp-traces-endpoint needs {name}, which is not installed.",
                code="E-TRACE-02",
                fix="pip install 'octavo[otel]', or leave the flag out.",
            )


class Tracer:
    """Makes spans of calls and sends them. Owner: the server."""

    def __init__(self, endpoint: str, *, model: str, version: str, protocol: str = "") -> None:
        check(endpoint, protocol)
        # lazy: an optional dependency, which takes half a second to load
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.model = model
        self._provider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
        exporter = _exporter(target_of(endpoint, protocol))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", version)
        self._propagator = TraceContextTextMapPropagator()
        # Requests tell times of time.monotonic(); spans want those of the clock on the wall.
        self._epoch_s = time.time() - time.monotonic()

    def begin(self, route: str, headers: Mapping[str, str]) -> CallTrace:
        """A call begins; `headers` may name the caller's span."""
        # lazy: as above
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS.get(route, "unknown")
        span = self._tracer.start_span(
            f"{operation} {self.model}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "octavo",
                "gen_ai.request.model": self.model,
                "gen_ai.response.model": self.model,
                "http.request.method": "POST",
                "http.route": route,
            },
        )
        return CallTrace(self, span)

    def flush(self) -> None:
        """Send what is there; waits for that. For tests."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what is there and end, within three seconds: a collector may be away."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_S)

    def child(self, parent: Span, name: str, begun: float, attributes: Mapping[str, Any]) -> Span:
        """A span below another one, from `begun` (`time.monotonic()`) on."""
        # lazy: as above
        from opentelemetry.trace import set_span_in_context

        return self._tracer.start_span(
            name,
            context=set_span_in_context(parent),
            start_time=self.nanoseconds(begun),
            attributes=dict(attributes),
        )

    def nanoseconds(self, at: float) -> int:
        """Of the clock on the wall, at a time of `time.monotonic()`."""
        return int((self._epoch_s + at) * 1e9)


class CallTrace:
    """The span of one call. Owner: the call; ended once."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._num_input = self._num_output = self._num_cached = 0
        self._reasons: list[str] = []

    @property
    def traceparent(self) -> str:
        """What names this span to others, as the W3C header has it."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def identify(self, request_id: str) -> None:
        """Say under which id the call is known."""
        self._span.set_attribute("gen_ai.response.id", request_id)

    def add(self, request: Request, outcome: Outcome, num_cached: int) -> None:
        """One request of the call has ended."""
        if not self._span.is_recording():
            return
        if request.index == 0:  # choices share their prompt
            self._num_input += request.num_prompt
            self._num_cached += num_cached
        self._num_output += outcome.num_output
        self._reasons.append(outcome.reason)
        parts = _parts(outcome)
        attributes = _asked(request) | _latencies(request, outcome, parts)
        attributes["gen_ai.response.model"] = self._tracer.model
        span = self._tracer.child(self._span, "llm_request", request.arrived, attributes)
        for name, begun, ended in parts:
            part = self._tracer.child(span, name, begun, {})
            part.end(self._tracer.nanoseconds(ended))
        if outcome.reason == "error":
            _fail(span, "request_failed")
        span.end(self._tracer.nanoseconds(outcome.ended))

    def fail(self, code: str) -> None:
        """The call is answered with an error."""
        _fail(self._span, code)

    def end(self, status: int) -> None:
        """The call is over."""
        span = self._span
        if span.is_recording():
            span.set_attribute("http.response.status_code", status)
            if self._reasons:
                span.set_attribute("gen_ai.response.finish_reasons", self._reasons)
                span.set_attribute("gen_ai.usage.input_tokens", self._num_input)
                span.set_attribute("gen_ai.usage.output_tokens", self._num_output)
                span.set_attribute("gen_ai.usage.cache_read.input_tokens", self._num_cached)
        span.end()


def _resource(version: str) -> Any:
    # lazy: as above
    from opentelemetry.sdk.resources import Resource

    found = Resource.create({"service.version": version})
    if str(found.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
        found = found.merge(Resource({"service.name": "octavo"}))
    return found


def _exporter(target: Target) -> SpanExporter:
    return _to_grpc(target) if target.protocol == "grpc" else _to_http(target)


def _to_grpc(target: Target) -> SpanExporter:
    # lazy: as above, and only the one that is asked for: gRPC alone takes a quarter of a second
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=target.url, insecure=target.is_plain, timeout=_EXPORT_S)


def _to_http(target: Target) -> SpanExporter:
    # lazy: as above
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=target.url, timeout=_EXPORT_S)


def _fail(span: Span, code: str) -> None:
    # lazy: as above
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, code))


def _parts(outcome: Outcome) -> list[tuple[str, float, float]]:
    """(name, from, to) of what followed each other: queue, prefill, decode; only what did happen."""
    timing = outcome.timing
    marks = (
        ("queue", timing.arrived, timing.admitted),
        ("prefill", timing.admitted, timing.first_token),
        ("decode", timing.first_token, timing.last_token),
    )
    return [(name, a, max(a, b)) for name, a, b in marks if a is not None and b is not None]


def _asked(request: Request) -> dict[str, Any]:
    """What the caller asked for; never text."""
    params = request.params
    attributes: dict[str, Any] = {
        "gen_ai.request.id": request.id,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.n": params.n,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.frequency_penalty": params.frequency_penalty,
        "gen_ai.request.presence_penalty": params.presence_penalty,
    }
    if params.seed is not None:
        attributes["gen_ai.request.seed"] = params.seed
    return attributes


def _latencies(
    request: Request, outcome: Outcome, parts: list[tuple[str, float, float]]
) -> dict[str, Any]:
    """Token counts, and seconds under the names that vLLM gives them."""
    timing = outcome.timing
    attributes: dict[str, Any] = {
        "gen_ai.usage.num_sequences": 1,
        "gen_ai.usage.prompt_tokens": request.num_prompt,
        "gen_ai.usage.completion_tokens": outcome.num_output,
        "gen_ai.response.finish_reasons": [outcome.reason],
        "gen_ai.latency.e2e": outcome.ended - request.arrived,
        "octavo.num_preemptions": outcome.num_preemptions,
    }
    names = {
        "queue": "gen_ai.latency.time_in_queue",
        "prefill": "gen_ai.latency.time_in_model_prefill",
        "decode": "gen_ai.latency.time_in_model_decode",
    }
    attributes |= {names[name]: ended - begun for name, begun, ended in parts}
    if timing.first_token is not None:
        attributes["gen_ai.latency.time_to_first_token"] = timing.first_token - request.arrived
    if timing.admitted is not None and timing.last_token is not None:
        attributes["gen_ai.latency.time_in_model_inference"] = timing.last_token - timing.admitted
    return attributes
