"""A client of the server's application in this process: one request after the other, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sightline.api import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec

MODEL_ID = "shades@0"  # in a log of features


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Request(NamedTuple):
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    method: str = ""
    prefix: str = ""  # below which the application is mounted


class ModelFault(Exception):
    pass


class FailingPredictor(FakePredictor):
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise ModelFault("out of memory")


def send(*requests: Request, model: type[FakePredictor] = FakePredictor, **options: Any) -> list[Answer]:
    """Send requests, one after the other, to a server with `options` of `create_app`, and return the answers."""
    from sightline.serve.app import create_app

    classifier = Classifier(model(("dark", "light"), PreprocessingSpec(8, 8)))
    classifier.feature_model_id = MODEL_ID
    classifier.thresholds = Thresholds(9, coverage=0.9, conformal_quantile=0.5, ood_limit=1.5)

    async def exchange() -> list[Answer]:
        app = create_app(classifier, max_bytes=1 << 20, name="shades", **options)
        async with app.router.lifespan_context(app):
            return [await call(app, request) for request in requests]

    return asyncio.run(exchange())


async def call(app: Any, request: Request) -> Answer:
    messages: list[Any] = []
    bodies = iter([request.body or b""])

    async def receive() -> dict[str, Any]:
        body = next(bodies, None)
        if body is None:  # the client waits for the response
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http", "method": request.method or ("GET" if request.body is None else "POST"),
        "path": request.prefix + request.path, "raw_path": (request.prefix + request.path).encode(),
        "query_string": b"key=secret", "scheme": "http", "http_version": "1.1", "server": ("test", 80),
        "client": ("10.0.0.7", 1), "root_path": request.prefix,
        "headers": [(name.lower().encode(), value.encode()) for name, value in request.headers.items()],
    }  # fmt: skip
    try:
        await app(scope, receive, take)
    except ModelFault:  # raised again for what runs the application, which logs it
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
    return Answer(
        messages[0]["status"], headers, b"".join(message.get("body", b"") for message in messages[1:]).decode()
    )
