"""Admission: limits are checked before a request's body is read, and enforced until its response is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.serve.limits import Limits
from sightline.serve.listening import STOPPING_REASON
from sightline.serve.responses import RETRY, make_error_response, refuse_busy

CLOSE = (b"connection", b"close")
MAX_DIGITS = 20  # limit for a number in a request: Python refuses to convert more than 4,300
UNCOUNTED_METHODS = {"GET", "HEAD", "OPTIONS"}  # answered even when nothing else is, as probes must be


class Admission:
    """Counts the requests and bytes in flight, and decides whether there is room for more.

    Attributes:
        limits: The limits to enforce.
        max_bytes: The maximum size of one body.
        requests: The number of requests in flight, except those with `UNCOUNTED_METHODS`.
        bytes: The total size of their bodies: the stated length, or the bytes received if no length was stated.
        draining: Whether the server is about to stop, so that it refuses new requests.
        on_change: Called when `requests` or `bytes` have changed.
    """

    def __init__(self, max_bytes: int, limits: Limits) -> None:
        self.limits, self.max_bytes = limits, max_bytes
        self.requests = self.bytes = 0
        self.draining = False
        self.on_change: Callable[[], None] = lambda: None

    def check(self, method: str, length: int | None) -> None:
        """Raise an HTTPException if a request with a body of `length` bytes (None: not stated) must be refused."""
        if length is not None and length > self.max_bytes:
            raise self.refuse_size()
        if method in UNCOUNTED_METHODS:
            return
        if self.draining:
            raise HTTPException(503, STOPPING_REASON, RETRY)
        if self.requests >= self.limits.requests or not self.has_room(length or 0):
            raise refuse_busy()

    def has_room(self, size: int) -> bool:
        """Return whether `size` more bytes may be in flight."""
        return self.bytes + size <= max(self.limits.body_bytes, self.max_bytes)

    def take(self, size: int) -> None:
        """Count `size` more bytes as in flight; raise HTTPException if there is no room for them."""
        if not self.has_room(size):
            raise refuse_busy()
        self.add(0, size)

    def add(self, requests: int, size: int) -> None:
        """Add to the counts of requests and bytes in flight; negative values subtract."""
        self.requests += requests
        self.bytes += size
        self.on_change()

    def refuse_size(self) -> HTTPException:
        """Return the error for a body that is too large."""
        return HTTPException(413, f"The body has more than {self.max_bytes} bytes, the maximum of this server.")


class AdmissionMiddleware:
    """Admits requests to `app`, counts them, limits their bodies and time, and cancels them if the client leaves."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self._admission, scope, receive, send)
        try:
            length = exchange.read_length()
            self._admission.check(scope["method"], length)
        except HTTPException as refusal:
            await exchange.respond(refusal)
            return
        with exchange.count(length):
            await exchange.run(self._app)


class _Exchange:
    """A request and its response, with the `receive` and `send` that the application gets."""

    def __init__(self, admission: Admission, scope: Scope, receive: Receive, send: Send) -> None:
        self._admission, self._limits = admission, admission.limits
        self._scope, self._receive, self._send = scope, receive, send
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._has_body = any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self._headers
        )
        self._complete = self._started = self._ended = False  # body received, response started, response ended
        self._size = self._counted = 0  # body bytes received; body bytes counted as in flight
        self._start = asyncio.get_running_loop().time()
        self._expects_body = self._has_body or scope["method"] not in UNCOUNTED_METHODS
        seconds = self._limits.body if self._expects_body else self._limits.request  # the body's limit first
        self._deadline = asyncio.timeout_at(self._start + seconds)
        self._disconnected = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def read_length(self) -> int | None:
        """Return the stated length of the body, or None; raise HTTPException if it is ambiguous."""
        lengths = [value for name, value in self._headers if name == b"content-length"]
        if not lengths:
            return None
        if any(name == b"transfer-encoding" for name, _ in self._headers):  # RFC 9112, 6.1: an attempt at smuggling
            raise HTTPException(400, "The request has both Content-Length and Transfer-Encoding: send one of them.")
        if len(set(lengths)) > 1 or not lengths[0].isdigit():
            raise HTTPException(400, "Content-Length is not one number.")
        if len(lengths[0]) > MAX_DIGITS:
            raise self._admission.refuse_size()
        return int(lengths[0])

    @contextmanager
    def count(self, length: int | None) -> Iterator[None]:
        """Count the request as in flight during the block, unless its method is one of `UNCOUNTED_METHODS`."""
        number = int(self._scope["method"] not in UNCOUNTED_METHODS)
        self._counted = number * (length or 0)
        self._admission.add(number, self._counted)
        try:
            yield
        finally:
            self._admission.add(-number, -self._counted)

    async def run(self, app: ASGIApp) -> None:
        """Run the application until it has answered, the client leaves, or the time is up."""
        try:
            async with self._deadline:
                await app(self._scope, self.receive, self.send)
        except TimeoutError:
            if not self._deadline.expired():
                raise
            if not self._started and not self._disconnected.is_set():
                await self.respond(self._refuse_late())
        finally:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None  # its traceback refers to `self`: a cycle

    def _refuse_late(self) -> HTTPException:
        if self._expects_body and not self._complete:
            return HTTPException(408, f"The body did not arrive within {self._limits.body:g} seconds.")
        return HTTPException(503, f"The response takes more than {self._limits.request:g} seconds.", RETRY)

    async def respond(self, error: HTTPException) -> None:
        """Send an error."""
        await make_error_response(error)(self._scope, self._receive, self.send)

    async def receive(self) -> Message:
        """Return the client's next message; raise HTTPException when the body exceeds a limit."""
        if self._complete:
            await self._disconnected.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            self._take(len(message.get("body", b"")))
            if not message.get("more_body", False):
                self._complete = True
                self._reschedule(self._start + self._limits.request)
                self._watch = asyncio.create_task(self._wait_for_disconnect())
        return message

    async def send(self, message: Message) -> None:
        """Send a message to the client; the connection is closed if the rest of the body is not wanted."""
        if message["type"] == "http.response.start":
            self._started = True
            if (self._has_body and not self._complete) or self._admission.draining:
                message = {**message, "headers": [*message.get("headers", []), CLOSE]}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    def _take(self, size: int) -> None:
        """Count `size` bytes of the body."""
        self._size += size
        if self._size > self._admission.max_bytes:
            raise self._admission.refuse_size()
        if (more := self._size - self._counted) > 0:
            self._admission.take(more)
            self._counted += more

    async def _wait_for_disconnect(self) -> None:
        """Cancel the running request if the client disconnects after its body has arrived."""
        if (await self._receive())["type"] == "http.disconnect" and not self._ended:
            self._disconnected.set()
            self._reschedule(asyncio.get_running_loop().time())

    def _reschedule(self, when: float) -> None:
        if not self._deadline.expired():
            self._deadline.reschedule(when)


def check_encoding(request: Request) -> None:
    """Raise 415 if the body of a request is still compressed (see `encodings` for those that are unpacked)."""
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in {"", "identity"}:
        raise HTTPException(415, f"Content-Encoding is {encoding[:80]!r}: send gzip, deflate or an uncompressed body.")


async def read_body(request: Request) -> bytearray:
    """Return the body of a request, at least one byte; an unknown encoding is refused before the body is read."""
    check_encoding(request)
    body = bytearray()  # not a list of chunks: a client may send a byte at a time
    async for chunk in request.stream():
        body += chunk
    if not body:
        raise HTTPException(400, "The request has no body: send the bytes of an image.")
    return body
