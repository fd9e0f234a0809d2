"""Traces and logs of requests, as OpenTelemetry's exporters and readers of JSON lines get them."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from asgi_client import FailingPredictor, Request, send
from sightline.errors import UsageError
from synthetic_images import encode_png

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sightline.serve.observing import RecordFormatter, set_log_format
from sightline.serve.tracing import SWITCHES, Tracing, start_tracing

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


@pytest.fixture(autouse=True)
def _without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SWITCHES, "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def collect(exporter: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, list[ReadableSpan]]]:
    """Return the span of the one request, and its children by name."""
    (request,) = [span for span in exporter.get_finished_spans() if span.kind.name == "SERVER"]
    children: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        if span is not request:
            assert span.parent is not None
            assert span.parent.span_id == request.context.span_id
            children.setdefault(span.name, []).append(span)
    return request, children


def test_a_request_and_its_steps_are_spans_of_the_trace_of_its_client(
    tracing: Tracing, exporter: InMemorySpanExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = TRACEPARENT | {"X-Request-ID": "7"}
    send(Request("/predict", encode_png(), headers), tracing=tracing, log_format="json")
    request, children = collect(exporter)
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE_ID, PARENT_ID)
    assert request.name == "POST /predict"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST", "http.route": "/predict", "url.path": "/predict", "url.scheme": "http",
        "network.protocol.version": "1.1", "client.address": "10.0.0.7", "sightline.request_id": "7",
        "http.response.status_code": 200,
    }  # fmt: skip
    decode, queue, model = (children.pop(name)[0] for name in ("decode", "queue", "model"))
    assert not children
    moments = [
        moment for span in (decode, queue, model) for moment in (span.start_time, span.end_time) if moment is not None
    ]
    assert moments == pytest.approx(sorted(moments), abs=1e6)  # of a nanosecond's clock, read in two ways
    assert moments[-1] > moments[0] >= (request.start_time or 0)
    assert (model.attributes or {})["sightline.batch_size"] == 1
    entry = json.loads(capsys.readouterr().err)
    assert (entry["trace_id"], entry["span_id"]) == (TRACE_ID, f"{request.context.span_id:016x}")


def test_each_image_of_a_request_has_its_spans(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [3, 8, 8, 3], "data": np.zeros(576).tolist()}]}
    content = json.dumps(body).replace(".0", "").encode()
    (answer,) = send(Request("/v2/models/shades/infer", content), tracing=tracing)
    assert answer.status == 200
    request, children = collect(exporter)
    assert (request.name, request.parent) == ("POST /v2/models/{model}/infer", None)
    assert {name: len(spans) for name, spans in children.items()} == {"queue": 3, "model": 3}
    sizes = [(span.attributes or {})["sightline.batch_size"] for span in children["model"]]
    assert set(sizes) <= {1, 2, 3}


@pytest.mark.parametrize(
    ("path", "route"), [("/explain", "/explain"), ("/models/shades/explain", "/models/{model}/explain")]
)
def test_a_heat_map_has_the_route_that_was_asked_for(
    tracing: Tracing, exporter: InMemorySpanExporter, path: str, route: str
) -> None:
    send(Request(path, encode_png()), tracing=tracing)
    request, _ = collect(exporter)
    assert (request.name, (request.attributes or {})["http.route"]) == (f"POST {route}", route)


def test_a_failure_is_an_error_of_its_span_and_a_bad_image_is_not_one_of_the_server(
    tracing: Tracing, exporter: InMemorySpanExporter
) -> None:
    send(Request("/predict", encode_png()), model=FailingPredictor, tracing=tracing)
    request, _ = collect(exporter)
    assert (request.status.status_code.name, (request.attributes or {})["error.type"]) == ("ERROR", "500")
    assert (request.events[0].attributes or {})["exception.message"] == "out of memory"
    exporter.clear()
    send(Request("/predict", b"not an image"), tracing=tracing)
    request, children = collect(exporter)
    assert (request.status.status_code.name, list(children)) == ("UNSET", ["decode"])
    assert (request.attributes or {})["http.response.status_code"] == 400


def test_probes_and_other_reads_are_not_traced(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    send(Request("/v2/health/ready"), Request("/metrics"), Request("/nowhere"), tracing=tracing)
    assert exporter.get_finished_spans() == ()


def test_there_are_no_traces_unless_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_tracing() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert start_tracing() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing() is None
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    tracing = start_tracing()
    assert tracing is not None
    tracing.close()
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert start_tracing() is None


@pytest.mark.parametrize(("exporter", "protocol"), [("zipkin", ""), ("otlp", "carrier-pigeon")])
def test_an_exporter_that_is_not_installed_is_refused(
    exporter: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(UsageError, match=rf"{protocol or exporter}.* is not installed.*console.*\.\[otel\]"):
        start_tracing()


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A collector of OTLP over HTTP on loopback: its address, and the paths and bodies that it got."""
    bodies: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


def test_spans_reach_the_collector_of_the_environment_when_the_server_stops(
    collector: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    address, bodies = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    send(Request("/predict", encode_png(), TRACEPARENT), tracing=start_tracing())
    ((path, body),) = bodies
    assert path == "/v1/traces"
    (group,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {item.key: item.value.string_value for item in group.resource.attributes}
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("sightline", "test")
    spans = {span.name: span for scope in group.scope_spans for span in scope.spans}
    assert set(spans) == {"POST /predict", "decode", "queue", "model"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}


def test_an_error_is_logged_as_one_line_with_the_ids_of_its_request(tracing: Tracing) -> None:
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("uvicorn.error")
    handler.setFormatter(RecordFormatter("json"))
    logger.addHandler(handler)
    try:
        send(
            Request("/predict", encode_png(), TRACEPARENT | {"X-Request-ID": "7"}),
            model=FailingPredictor,
            tracing=tracing,
        )
    finally:
        logger.removeHandler(handler)
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["request_id"], entry["trace_id"]) == ("error", "7", TRACE_ID)
    assert entry["exception"].endswith("ModelFault: out of memory")


def test_logs_are_json_while_the_server_runs_and_as_they_were_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    root, own = logging.getLogger(), logging.getLogger("sightline")
    before = (list(root.handlers), root.level, own.level)
    with set_log_format("json"):
        logging.getLogger("other").warning("a line")
        own.info("another")
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(entry["level"], entry["logger"], entry["message"]) for entry in entries] == [
        ("warning", "other", "a line"), ("info", "sightline", "another"),
    ]  # fmt: skip
    assert (list(root.handlers), root.level, own.level) == before


def test_a_text_log_dates_errors_and_events_too(capsys: pytest.CaptureFixture[str]) -> None:
    with set_log_format("text"):
        logging.getLogger("sightline").info("The model cats\n, version 2, is ready.")
        logging.getLogger("uvicorn.error").error("It failed.", exc_info=ValueError("out of\nmemory \x1b[2J"))
    first, second, *trace = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ info: The model cats\\n, version 2, is ready\.", first)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ error: It failed\.", second)
    assert trace == ["ValueError: out of", r"memory \x1b[2J"], "no control character reaches the terminal"
