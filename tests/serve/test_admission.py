"""What is refused before its body is read, what ends a request that was admitted, and that nothing stays counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_client import make_scope
from sightline.serve.admission import Admission, AdmissionMiddleware, read_body
from sightline.serve.limits import Limits
from sightline.serve.responses import make_error_response

DISCONNECT = {"type": "http.disconnect"}
Headers = list[tuple[bytes, bytes]]


class Client:
    """A client of an application in this process; `messages` is what it sends after the header."""

    def __init__(self, app: Starlette) -> None:
        self.app, self.messages, self.sent = app, asyncio.Queue[dict[str, Any]](), list[dict[str, Any]]()
        self.reads = 0

    def send_body(self, *chunks: bytes, more: bool = False) -> None:
        for i, chunk in enumerate(chunks, start=1):
            self.messages.put_nowait({"type": "http.request", "body": chunk, "more_body": more or i < len(chunks)})

    async def request(self, headers: Iterable[tuple[bytes, bytes]] = (), method: str = "POST") -> None:
        scope = make_scope("/", method=method) | {"headers": list(headers)}

        async def receive() -> dict[str, Any]:
            self.reads += 1
            return await self.messages.get()

        async def send(message: Any) -> None:
            self.sent.append(dict(message))

        await self.app(scope, receive, send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def answer(self) -> Any:
        return json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))


Use = Callable[[Starlette, Admission], Awaitable[None]]


def run(use: Use, max_bytes: int = 10, limits: Limits | None = None, *, release: asyncio.Event | None = None) -> None:
    """Run `use` with an application that answers the length of a body; nothing may be in flight afterwards."""
    admission = Admission(max_bytes, limits or Limits())

    async def answer(request: Request) -> JSONResponse:
        size = 0 if request.method == "GET" else len(await read_body(request))
        if release is not None and size:
            await release.wait()
        return JSONResponse({"size": size})

    async def fail(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return make_error_response(error)

    async def ignore(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)

    app = Starlette(
        routes=[Route("/", answer, methods=["GET", "POST"])],
        middleware=[Middleware(AdmissionMiddleware, admission)],
        exception_handlers={HTTPException: fail, ClientDisconnect: ignore},
    )
    asyncio.run(use(app, admission))  # type: ignore[arg-type]
    assert (admission.requests, admission.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ([(b"content-length", b"11")], 413, "more than 10 bytes"),
        ([(b"content-length", b"9" * 5000)], 413, "more than 10 bytes"),
        ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 400, "both Content-Length and"),
        ([(b"content-length", b"3"), (b"content-length", b"4")], 400, "not one number"),
        ([(b"content-length", b"-3")], 400, "not one number"),
    ],
    ids=["too long", "5,000 digits", "two framings", "two lengths", "negative"],
)
def test_a_header_is_refused_before_the_body_is_read(headers: Headers, status: int, words: str) -> None:
    async def use(app: Starlette, _admission: Admission) -> None:
        for method in ("POST", "GET"):
            client = Client(app)
            await client.request(headers, method)
            assert (client.status, client.reads) == (status, 0)
            assert words in client.answer["error"]
            assert client.headers[b"connection"] == b"close"  # what follows is not another request

    run(use)


def test_no_more_requests_than_the_limit_are_in_flight() -> None:
    async def use(app: Starlette, admission: Admission) -> None:
        slow = [Client(app) for _ in range(2)]  # they never send their bodies
        tasks = [asyncio.create_task(client.request([(b"content-length", b"1")])) for client in slow]
        await asyncio.sleep(0)
        assert admission.requests == 2
        late, probe = Client(app), Client(app)
        await late.request([(b"content-length", b"1")])
        assert (late.status, late.reads, late.headers[b"retry-after"]) == (503, 0, b"1")
        await probe.request(method="GET")
        assert probe.answer == {"size": 0}
        for client in slow:
            client.send_body(b"x")
        await asyncio.gather(*tasks)
        assert [client.answer for client in slow] == [{"size": 1}] * 2
        late.sent.clear()
        late.send_body(b"x")
        await late.request([(b"content-length", b"1")])  # there is room again
        assert late.answer == {"size": 1}

    run(use, limits=Limits(requests=2))


def test_stated_bytes_are_counted_before_they_arrive() -> None:
    async def use(app: Starlette, admission: Admission) -> None:
        first, second, third = Client(app), Client(app), Client(app)
        task = asyncio.create_task(first.request([(b"content-length", b"9")]))
        await asyncio.sleep(0)
        assert admission.bytes == 9
        await second.request([(b"content-length", b"9")])
        assert (second.status, second.reads, second.headers[b"retry-after"]) == (503, 0, b"1")
        third.send_body(b"12345", more=True)
        third.send_body(b"12345")
        await third.request([(b"transfer-encoding", b"chunked")])  # no length is stated: counted as they arrive
        assert (third.status, third.reads, third.headers[b"retry-after"]) == (503, 2, b"1")
        first.send_body(b"123456789")
        await task
        assert first.status == 200

    run(use, limits=Limits(body_bytes=15))


def test_a_client_that_leaves_ends_its_request() -> None:
    async def use(app: Starlette, admission: Admission) -> None:
        client = Client(app)
        client.send_body(b"x")
        task = asyncio.create_task(client.request())
        await asyncio.sleep(0.01)
        assert admission.requests == 1
        client.messages.put_nowait(DISCONNECT)
        await asyncio.wait_for(task, 5)
        assert client.sent == []
        early = Client(app)
        early.send_body(b"x", more=True)
        early.messages.put_nowait(DISCONNECT)  # in the middle of its body
        await asyncio.wait_for(early.request(), 5)

    run(use, release=asyncio.Event())


def test_a_request_ends_with_its_time() -> None:
    async def use(app: Starlette, _admission: Admission) -> None:
        client, stalled = Client(app), Client(app)
        client.send_body(b"x")
        stalled.send_body(b"x", more=True)
        await asyncio.gather(client.request([(b"content-length", b"1")]), stalled.request([(b"content-length", b"2")]))
        assert (client.status, client.headers[b"retry-after"]) == (503, b"1")
        assert "more than 0.2 seconds" in client.answer["error"]
        assert stalled.status == 408
        assert "within 0.1 seconds" in stalled.answer["error"]
        assert stalled.headers[b"connection"] == b"close"

    run(use, limits=Limits(body=0.1, request=0.2), release=asyncio.Event())


def test_a_server_that_stops_finishes_what_it_admitted_and_refuses_the_rest() -> None:
    async def use(app: Starlette, admission: Admission) -> None:
        first, second = Client(app), Client(app)
        task = asyncio.create_task(first.request([(b"content-length", b"1")]))
        await asyncio.sleep(0)
        admission.draining = True
        await second.request([(b"content-length", b"1")])
        assert (second.status, second.reads, second.headers[b"connection"]) == (503, 0, b"close")
        assert "stopping" in second.answer["error"]
        assert second.headers[b"retry-after"] == b"1"
        first.send_body(b"x")
        await task
        assert (first.status, first.headers[b"connection"]) == (200, b"close")

    run(use)
