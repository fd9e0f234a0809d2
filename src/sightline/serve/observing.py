"""Observability of requests: ids, the access log, metrics and traces."""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline import jsonio
from sightline.escaping import printable
from sightline.serve.addressing import read_path, resolve_target
from sightline.serve.admission import UNCOUNTED_METHODS
from sightline.serve.metrics import Metrics, name_endpoint
from sightline.serve.tracing import Tracing

REQUEST_ID = "X-Request-ID"
CLIENT_LEFT = 499  # nginx's log status for a request whose client left before the response
LogFormat = Literal["text", "json"]
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT = re.compile(r"[A-Za-z0-9.:%-]{1,128}")  # an address; a proxy on this machine may pass on any text instead
_REQUEST_IDS: ContextVar[dict[str, str]] = ContextVar("request_ids", default={})  # noqa: B039  # never mutated


class ObservingMiddleware:
    """Gives each request an id, measures it, and, if there are any, logs it with `log` and traces it with `tracing`.

    The id is the client's `X-Request-ID`, if it has up to 128 letters, digits and ``.-_``, else a random one; the
    response carries it. Requests of `UNCOUNTED_METHODS`, probes above all, are not traced.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        log: Callable[[dict[str, Any]], None] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._app, self._metrics, self._log, self._tracing = app, metrics, log, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = resolve_target(scope)
        path = read_path(scope)
        endpoint, request_id = name_endpoint(path), read_request_id(scope)
        tracing = None if scope["method"] in UNCOUNTED_METHODS else self._tracing
        with nullcontext() if tracing is None else tracing.trace_request(scope, endpoint, request_id):
            ids = {"request_id": request_id, **({} if tracing is None else tracing.get_ids())}
            _REQUEST_IDS.set(ids)  # not reset: the server may still log an error that the application raised
            start, status, size = time.perf_counter(), CLIENT_LEFT, 0

            async def send_observed(message: Message) -> None:
                nonlocal status, size
                if message["type"] == "http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
                size += len(message.get("body", b""))
                await send(message)

            try:
                await self._app(scope, receive, send_observed)
            finally:
                seconds = time.perf_counter() - start
                self._metrics.count_request(path, status, seconds)
                if tracing is not None:
                    tracing.set_status(status)
                if self._log is not None:
                    self._log(_describe_request(scope, ids, status, seconds, size))


def _describe_request(scope: Scope, ids: dict[str, str], status: int, seconds: float, size: int) -> dict[str, Any]:
    """Return the entry of the access log for a request."""
    client = scope.get("client")
    return {
        "time": _format_time(time.time()),
        "level": "info",
        "message": "request",
        **ids,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
        "bytes": size,
    }


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def read_request_id(scope: Scope) -> str:
    """Return the id that the client gave the request, or a new one."""
    text = Headers(scope=scope).get(REQUEST_ID, "")
    return text if _ID.fullmatch(text) else uuid.uuid4().hex


def format_entry(entry: dict[str, Any], log_format: LogFormat) -> str:
    r"""Return a line of the access log; text from clients is quoted, so that it cannot forge a line.

    >>> entry = {"time": "12:00", "request_id": "7", "client": "::1", "method": "GET", "path": "/a\n", "status": 200}
    >>> format_entry(entry | {"seconds": 0.5, "bytes": 3}, "text")
    '12:00 ::1 "GET /a\\n" 200 3 0.500 s 7'
    """
    if log_format == "json":
        return jsonio.dumps(entry)
    client, request = str(entry["client"]), _quote(f"{entry['method']} {entry['path']}")
    client = client if _CLIENT.fullmatch(client) else _quote(client)
    head = f"{entry['time']} {client} {request} {entry['status']} {entry['bytes']}"
    return f"{head} {entry['seconds']:.3f} s {entry['request_id']}"


def _quote(text: str) -> str:
    return printable(jsonio.dumps(text))


def make_log(log_format: LogFormat) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes an entry to standard error, in one piece."""

    def log(entry: dict[str, Any]) -> None:
        line = jsonio.encode_text(format_entry(entry, log_format) + "\n").decode()
        sys.stderr.write(line)
        sys.stderr.flush()

    return log


class RecordFormatter(logging.Formatter):
    """Writes a server's log records other than requests, such as an error with its traceback, like its access log.

    As JSON, a record is one line, with the fields ``time``, ``level``, ``message`` and the ids of the request; as text,
    a traceback follows on lines of its own.
    """

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._log_format = log_format

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": _format_time(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **_REQUEST_IDS.get(),
        }
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        if self._log_format == "json":
            line = jsonio.dumps(entry | ({"exception": exception} if exception else {}))
        else:
            head = (entry["time"], f"{entry['level']}:", printable(entry["message"]), entry.get("request_id"))
            line = "\n".join(filter(None, (" ".join(filter(None, head)), printable(exception, keep="\n\t"))))
        return jsonio.encode_text(line).decode()


@contextmanager
def set_log_format(log_format: LogFormat | None) -> Iterator[None]:
    """Write all logs of the process in a format, if there is one; restore handlers and levels at the end."""
    if log_format is None:
        yield
        return
    root, own = logging.getLogger(), logging.getLogger("sightline")
    handlers, levels = root.handlers, (root.level, own.level)
    handler = logging.StreamHandler()
    handler.setFormatter(RecordFormatter(log_format))
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    own.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(levels[0])
        own.setLevel(levels[1])
