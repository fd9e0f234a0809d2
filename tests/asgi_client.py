"""A client for the server's application in this process: one request after another, without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec

MODEL_ID = "shades@0"  # in a feature log


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Request(NamedTuple):
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    method: str = ""
    prefix: str = ""  # where the application is mounted
    query: str = ""


class ModelFault(Exception):
    pass


class FailingPredictor(FakePredictor):
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ModelFault("out of memory")


def send(*requests: Request, model: type[FakePredictor] = FakePredictor, **options: Any) -> list[Answer]:
    """Send requests one after another to a server with `options` of `create_app`, and return the answers."""
    from sightline.serve.app import create_app

    classifier = Classifier(model(("dark", "light"), PreprocessingSpec(8, 8)))
    classifier.feature_model_id = MODEL_ID
    classifier.thresholds = Thresholds(9, coverage=0.9, conformal_quantile=0.5, ood_limit=1.5)

    async def send_all() -> list[Answer]:
        app = create_app(classifier, max_bytes=1 << 20, name="shades", **options)
        async with app.router.lifespan_context(app):
            return [await call(app, request) for request in requests]

    return asyncio.run(send_all())


async def call(app: Any, request: Request) -> Answer:
    scope = make_scope(
        request.prefix + request.path, request.query, request.headers,
        method=request.method or ("GET" if request.body is None else "POST"), root_path=request.prefix,
        raw_path=(request.prefix + request.path).encode(), client=("10.0.0.7", 1),
    )  # fmt: skip
    answer = await exchange(app, scope, request.body or b"")
    return Answer(answer.status, answer.headers, answer.body.decode())


class RawAnswer(NamedTuple):
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def make_scope(
    path: str, query: str = "", headers: Mapping[str, str] = {}, *, method: str = "POST", **others: Any
) -> dict[str, Any]:
    """Return the scope of a request, as a server passes it to an application; `others` are further keys."""
    return {
        "type": "http", "method": method, "path": path, "query_string": query.encode(), "scheme": "http",
        "http_version": "1.1", "server": ("test", 80), "client": ("test", 1), "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    } | others  # fmt: skip


async def exchange(app: Any, scope: dict[str, Any], body: bytes | AsyncIterator[bytes] = b"") -> RawAnswer:
    """Send a request, with its body whole or in chunks, and wait for the answer like a client."""
    messages: list[Any] = []
    is_sent = False

    async def receive() -> dict[str, Any]:
        nonlocal is_sent
        if is_sent:
            await asyncio.Event().wait()
        content = body if isinstance(body, bytes) else await anext(body, b"")
        is_sent = isinstance(body, bytes) or not content
        return {"type": "http.request", "body": content, "more_body": not is_sent}

    async def take(message: Any) -> None:
        messages.append(message)

    try:
        await app(scope, receive, take)
    except ModelFault:  # raised again for the server, which logs it
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
    return RawAnswer(messages[0]["status"], headers, b"".join(message.get("body", b"") for message in messages[1:]))
