"""The HTTP API of a model: three endpoints, raw images in, JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sightline.api import Classifier
from sightline.errors import SightlineError
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.serve import open_inference
from sightline.serve.batcher import Batcher
from sightline.serve.openapi import build_openapi
from sightline.serve.served_model import ServedModel

DEFAULT_TOP = 5
BODY_SECONDS = 120.0  # within which a client must send an image
MAX_BODY_BYTES = 1 << 30  # bytes of all images that are being sent or wait to be decoded
MAX_DIGITS = 20  # of a number in a query: Python refuses to convert more than 4,300


def create_app(classifier: Classifier, *, max_bytes: int, name: str | None = None) -> Starlette:
    """Return an ASGI application that accepts images of up to `max_bytes` bytes.

    ``GET /health`` returns the status, ``GET /model`` describes the model; ``POST /predict?top=5`` takes the bytes of
    an image as its body and returns what ``sightline predict`` prints as JSON, without the path, and which model it is
    from. Below ``/v2`` is the Open Inference Protocol, see `open_inference`, where the model is called `name`.

    Errors are ``{"error": message}`` with status 400 (unreadable image), 408 (sent too slowly), 413 (too large), 415
    (form data) or 503 (too many requests waiting).
    """
    served = ServedModel.from_classifier(classifier, name)
    batcher = Batcher(classifier)
    uploads = _Uploads(max_bytes, max(max_bytes, MAX_BODY_BYTES))

    @asynccontextmanager
    async def read_body(request: Request) -> AsyncIterator[bytes]:
        if batcher.busy:
            raise _busy()
        async with uploads.receive(request) as body:
            yield body

    async def predict(request: Request) -> JSONResponse:
        top = _parse_top(request, len(classifier.classes))
        if request.headers.get("content-type", "").strip().lower().startswith("multipart/"):
            curl = f"curl --data-binary @photo.jpg {_describe_url(request)}"
            raise HTTPException(415, f"Send the bytes of the image as the body, not as form data: {curl}")
        async with read_body(request) as body:
            prediction = await batcher.predict(body)
        if prediction.error == NOT_FINITE_REASON:
            raise HTTPException(500, f"There is no prediction: {prediction.error}.")
        if prediction.error is not None:
            raise HTTPException(400, f"The image cannot be read: {prediction.error}.")
        content = prediction.to_dict()
        del content["path"]
        return JSONResponse(content | {"top": content["top"][:top], "model": served.identity})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            batcher.close()

    return Starlette(
        routes=[
            *_make_description_routes(served),
            Route("/predict", predict, methods=["POST"]),
            *open_inference.make_routes(served, batcher, read_body, lambda: True),
        ],
        exception_handlers={
            HTTPException: _error_response,
            SightlineError: _error_response,
            ClientDisconnect: _ignore_disconnect,
            500: _error_response,
        },
        lifespan=lifespan,
    )


def _make_description_routes(served: ServedModel) -> list[Route]:
    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def model(_request: Request) -> JSONResponse:
        return JSONResponse(served.describe())

    async def openapi(_request: Request) -> JSONResponse:
        return JSONResponse(build_openapi(served))

    return [Route("/health", health), Route("/model", model), Route("/openapi.json", openapi)]


async def _error_response(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 500)


def _parse_top(request: Request, classes: int) -> int:
    text = request.query_params.get("top", str(DEFAULT_TOP))
    if not text.isdecimal() or len(text) > MAX_DIGITS or not int(text):
        raise HTTPException(
            400, f"top is {text[:MAX_DIGITS]!r}: expected the number of classes to return, 1 to {classes}."
        )
    return int(text)


class _Uploads:
    """The bodies of requests, limited one by one and all together."""

    def __init__(self, max_bytes: int, max_total: int) -> None:
        self._max_bytes, self._max_total, self._total = max_bytes, max_total, 0

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body, of which no more than the maximum size of an image is read."""
        body = bytearray()  # not a list of chunks: a client may send a byte at a time
        try:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    await self._collect(request, body)
            except TimeoutError:
                raise HTTPException(408, f"The image did not arrive within {BODY_SECONDS:g} seconds.") from None
            if not body:
                raise HTTPException(400, "The request has no body: send the bytes of an image.")
            yield bytes(body)
        finally:
            self._total -= len(body)

    async def _collect(self, request: Request, body: bytearray) -> None:
        async for chunk in request.stream():
            body += chunk
            self._total += len(chunk)
            if len(body) > self._max_bytes:
                raise HTTPException(
                    413, f"The image has more than {self._max_bytes} bytes, the maximum of this server."
                )
            if self._total > self._max_total:
                raise _busy()


def _describe_url(request: Request) -> str:
    try:
        return str(request.url.replace(query=""))
    except ValueError:  # the client states the host
        return request.scope["path"] or "/"


def _busy() -> HTTPException:
    return HTTPException(503, "Too many images are waiting: try again in a moment.", {"Retry-After": "1"})


async def _ignore_disconnect(_request: Request, _error: Exception) -> Response:
    """Answer a client that left before its image was sent: nobody reads it, and it is not an error of the server."""
    return Response(status_code=400)
