"""Traces of requests with OpenTelemetry, if it is installed and the variables ``OTEL_*`` ask for it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from importlib.metadata import version as get_version
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from sightline.errors import UsageError, suggest_install
from sightline.serve.addressing import read_path

if TYPE_CHECKING:  # an optional package
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import TracerProvider

EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points
SWITCHES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


class Tracing:
    """Records a span for each request, as a child of the span in its ``traceparent`` header, if there is one.

    It contains spans for each image: ``decode``, ``queue`` (waiting for the previous batch) and ``model``. Spans are
    recorded by `provider`, which `close` shuts down if this is its `owner`.
    """

    def __init__(self, provider: TracerProvider, *, owner: bool = False) -> None:
        from opentelemetry import propagate, trace

        self._provider, self._owner = provider, owner
        self._trace, self._extract = trace, propagate.extract
        self._tracer = provider.get_tracer("sightline.serve", get_version("sightline"))

    @contextmanager
    def trace_request(self, scope: Scope, endpoint: str, request_id: str) -> Iterator[None]:
        """Record the block as the span of a request, with names from OpenTelemetry's conventions for HTTP."""
        headers, method, client = Headers(scope=scope), scope["method"], scope.get("client")
        attributes = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "sightline.request_id": request_id,
            **({"client.address": client[0]} if client else {}),
        }
        if (route := _name_route(read_path(scope), endpoint)) is not None:
            attributes["http.route"] = route
        with self._tracer.start_as_current_span(
            f"{method} {route}" if route else method,
            self._extract({name: headers.getlist(name) for name in headers}),
            self._trace.SpanKind.SERVER,
            attributes,
        ):
            yield

    def set_status(self, status: int) -> None:
        """Record the status of the response to the current request."""
        span = self._trace.get_current_span()
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(self._trace.StatusCode.ERROR)

    def get_ids(self) -> dict[str, str]:
        """Return the ids of the current span, for logs."""
        context = self._trace.get_current_span().get_span_context()
        trace_id, span_id = self._trace.format_trace_id(context.trace_id), self._trace.format_span_id(context.span_id)
        return {"trace_id": trace_id, "span_id": span_id}

    def trace(self, name: str) -> AbstractContextManager[Any]:
        """Return a context manager that records its block as a span of the current request."""
        return self._tracer.start_as_current_span(name)

    def record(self, name: str, start: float, end: float, **attributes: Any) -> None:
        """Record a span of the current request; times are in seconds of `time.perf_counter`."""
        offset = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(name, attributes=attributes, start_time=offset + int(start * 1e9))
        span.end(offset + int(end * 1e9))

    def close(self) -> None:
        """Send the recorded spans and stop; blocks for as long as the exporter needs."""
        if self._owner:
            self._provider.shutdown()  # type: ignore[attr-defined]  # the SDK's provider has it


def _name_route(path: str, endpoint: str) -> str | None:
    """Return the route of a prediction request: its path with placeholders, so that there are few values.

    >>> _name_route("/v2/models/cats/versions/1/infer", "infer"), _name_route("/explain", "explain")
    ('/v2/models/{model}/versions/{version}/infer', '/explain')
    """
    if endpoint == "other":
        return None
    if path == f"/{endpoint}":
        return path
    prefix, version = "/v2" * (endpoint == "infer"), "/versions/{version}" * ("/versions/" in path)
    return f"{prefix}/models/{{model}}{version}/{endpoint}"


def start_tracing() -> Tracing | None:
    """Start to record traces; return None if they are not requested or OpenTelemetry is not installed.

    Traces are recorded if one of `SWITCHES` is set, as configured by the other standard variables: exporters, endpoint,
    sampler, propagators, attributes and name of the service (default: sightline). If this program has set a global
    provider, as ``opentelemetry-instrument`` does, it is used.

    Raises `UsageError` for an exporter that is not installed or refuses its settings.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or not any(map(os.environ.get, SWITCHES)):
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        return None
    if not isinstance(current := trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return Tracing(current)
    exporters = _create_exporters()
    if not exporters:
        return None
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "sightline"}))
    provider = TracerProvider(resource=resource)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, owner=True)


def _create_exporters() -> list[SpanExporter]:
    """Return the exporters named in ``OTEL_TRACES_EXPORTER``, by default OTLP."""
    exporters = []
    for text in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        if (name := text.strip()) in {"", "none"}:
            continue
        if name == "otlp":
            variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
            protocol = next(filter(None, map(os.environ.get, variables)), "http/protobuf").strip()
            name = _OTLP.get(protocol, f"otlp over {protocol}")
        installed = entry_points(group=EXPORTERS)
        if name not in installed.names:
            names = ", ".join(sorted(installed.names))
            raise UsageError(
                f"OTEL_TRACES_EXPORTER names the exporter {name!r}, which is not installed; these are: {names}. "
                f"Install it; for otlp over HTTP, {suggest_install('otel')}."
            )
        try:
            exporters.append(installed[name].load()())
        except ValueError as error:
            raise UsageError(f"The trace exporter {name!r} rejected its settings: {error}.") from error
    return exporters
