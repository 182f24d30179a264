"""OpenTelemetry traces, to a real receiver of each protocol."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from fakes import MODEL, FakeEngine, InProcess, ServerThread, make_state, running
from octavo.core.errors import ConfigError
from octavo.meter import trace
from octavo.meter.trace import Tracer, check, target_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"


@pytest.mark.parametrize(
    ("given", "protocol", "expected"),
    [
        ("grpc://h:4317", "", ("grpc", "http://h:4317", True)),
        ("grpcs://h:4317", "", ("grpc", "https://h:4317", False)),
        ("http://h:4317", "", ("grpc", "http://h:4317", True)),
        ("http://h:4318", "", ("http/protobuf", "http://h:4318/v1/traces", True)),
        (
            "https://h/otlp/v1/traces?a=b",
            "",
            ("http/protobuf", "https://h/otlp/v1/traces?a=b", False),
        ),
        ("http://h:9999", "http/protobuf", ("http/protobuf", "http://h:9999/v1/traces", True)),
        ("http://h:4318", "grpc", ("grpc", "http://h:4318", True)),
    ],
)
def test_the_endpoint_says_how(given: str, protocol: str, expected: tuple[str, str, bool]) -> None:
    assert tuple(target_of(given, protocol)) == expected


@pytest.mark.parametrize("given", ["localhost:4317", "ftp://h", "http://", "http://h:port", ""])
def test_no_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL") as refused:
        target_of(given)
    assert refused.value.code == "E-TRACE-01"
    with pytest.raises(ConfigError, match="expected grpc or http/protobuf"):
        target_of("http://h", "http/json")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "NEEDS", ("opentelemetry_of_nobody.sdk",))
    with pytest.raises(ConfigError, match="opentelemetry_of_nobody") as refused:
        check("grpc://localhost:4317")
    assert "octavo[otel]" in refused.value.fix


pytest.importorskip("opentelemetry.sdk", reason="octavo[otel] is not installed")


@contextmanager
def http_receiver(seen: queue.Queue[Any]) -> Iterator[str]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            seen.put(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def grpc_receiver(seen: queue.Queue[Any]) -> Iterator[str]:
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    class Receiver(service.TraceServiceServicer):  # type: ignore[misc]  # generated without types
        def Export(self, request: Any, context: Any) -> Any:
            seen.put(request)
            return messages.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    service.add_TraceServiceServicer_to_server(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


RECEIVERS: dict[str, Callable[[queue.Queue[Any]], Any]] = {
    "grpc": grpc_receiver,
    "http": http_receiver,
}


def value(attribute: Any) -> Any:
    kind = attribute.value.WhichOneof("value")
    if kind == "array_value":
        return [item.string_value for item in attribute.value.array_value.values]
    return getattr(attribute.value, kind)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: value(one) for one in span.attributes}


def received(seen: queue.Queue[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The spans so far, and the attributes of their resource."""
    spans: list[Any] = []
    resource: dict[str, Any] = {}
    while not seen.empty():
        for part in seen.get().resource_spans:
            resource = attributes(part.resource)
            spans += [span for scope in part.scope_spans for span in scope.spans]
    return spans, resource


def traced(endpoint: str, server: ServerThread | InProcess) -> Tracer:
    server.state.tracer = Tracer(endpoint, model=MODEL, version="1.2.3")
    return server.state.tracer


@pytest.mark.parametrize("kind", RECEIVERS)
def test_a_call_is_traced_from_its_caller_on(kind: str) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    with RECEIVERS[kind](seen) as endpoint, running(FakeEngine(chunks=(2,))) as server:
        tracer = traced(endpoint, server)
        body = {"prompt": "abcdefgh", "n": 2, "max_tokens": 6, "temperature": 0.5, "seed": 7}
        answer = httpx.post(
            f"{server.url}/v1/completions", json=body, headers={"traceparent": PARENT}, timeout=20
        )
        usage = answer.json()["usage"]
        tracer.flush()
        spans, resource = received(seen)
    assert (resource["service.name"], resource["service.version"]) == ("octavo", "1.2.3")
    trace_id = bytes.fromhex(PARENT[3:35])
    assert {span.trace_id for span in spans} == {trace_id}
    [call] = [span for span in spans if span.name == f"text_completion {MODEL}"]
    assert call.parent_span_id == bytes.fromhex(PARENT[36:52])
    assert answer.headers["traceparent"] == f"00-{trace_id.hex()}-{call.span_id.hex()}-01"
    told = attributes(call)
    assert told["gen_ai.operation.name"] == "text_completion"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == MODEL
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"] == 12
    assert told["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert told["gen_ai.response.id"] == answer.headers["x-request-id"]
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/completions", 200)
    requests = [span for span in spans if span.name == "llm_request"]
    assert [span.parent_span_id for span in requests] == [call.span_id] * 2
    for span in requests:
        own = attributes(span)
        assert own["gen_ai.usage.completion_tokens"] == 6
        assert own["gen_ai.usage.prompt_tokens"] == usage["prompt_tokens"]
        assert own["gen_ai.request.temperature"] == 0.5 and own["gen_ai.request.n"] == 2
        latencies = {k.rpartition(".")[2]: v for k, v in own.items() if ".latency." in k}
        whole = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert latencies["e2e"] == pytest.approx(whole, abs=1e-3)
        inference = latencies["time_in_model_prefill"] + latencies["time_in_model_decode"]
        assert latencies["time_in_model_inference"] == pytest.approx(inference)
        queued = latencies["time_in_queue"]
        first = latencies["time_to_first_token"]
        assert first == pytest.approx(queued + latencies["time_in_model_prefill"])
        parts = [part for part in spans if part.parent_span_id == span.span_id]
        assert [part.name for part in parts] == ["queue", "prefill", "decode"]
        assert all(
            a.end_time_unix_nano == b.start_time_unix_nano
            for a, b in zip(parts, parts[1:], strict=False)
        )
        assert parts[0].start_time_unix_nano == span.start_time_unix_nano
    text = str(spans)
    assert "abcdefgh" not in text and answer.json()["choices"][0]["text"] not in text


def test_errors_are_told_and_the_parent_decides() -> None:
    seen: queue.Queue[Any] = queue.Queue()
    engine = FakeEngine()
    with http_receiver(seen) as endpoint:
        server = InProcess(make_state(engine))
        tracer = traced(endpoint, server)
        body = {"prompt": "ab", "max_tokens": 3}
        quiet = server.call(
            "POST", "/v1/completions", json=body, headers={"traceparent": UNSAMPLED}
        )
        assert quiet.headers["traceparent"].endswith("-00")
        assert quiet.headers["traceparent"][:36] == UNSAMPLED[:36]
        garbled = server.call(
            "POST",
            "/v1/completions",
            json={"prompt": "ab", "max_tokens": -1},
            headers={"traceparent": "x"},
        )
        assert garbled.status_code == 400
        engine.fail_after = 1
        assert (
            server.post(
                "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}
            ).status_code
            == 500
        )
        server.call("GET", "/v1/models")
        server.call("POST", "/tokenize", json={"prompt": "ab"})
        tracer.close()
        spans, _ = received(seen)
    calls = [span for span in spans if not span.parent_span_id]
    assert len(calls) == 2, "neither the unsampled one nor what asks no engine"
    by_status = {attributes(span)["http.response.status_code"]: span for span in calls}
    assert set(by_status) == {400, 500}
    assert all(span.status.code == 2 and "error.type" in attributes(span) for span in calls)
    [failed] = [span for span in spans if span.name == "llm_request"]
    assert failed.parent_span_id == by_status[500].span_id
    assert attributes(failed)["gen_ai.response.finish_reasons"] == ["error"]


def test_a_collector_that_is_away_holds_nobody_up() -> None:
    server = InProcess(make_state(FakeEngine()))
    tracer = traced("http://127.0.0.1:9/v1/traces", server)
    assert server.post("/v1/completions", {"prompt": "ab", "max_tokens": 3}).status_code == 200
    tracer.close()


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    assert importlib.util.find_spec("opentelemetry") is not None
    assert not [name for name in vars(trace) if name.startswith("opentelemetry")]
