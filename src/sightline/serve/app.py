"""The HTTP API of a model: three endpoints, raw images in, JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sightline.api import Classifier
from sightline.errors import SightlineError
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.serve.batcher import Batcher

DEFAULT_TOP = 5


def create_app(classifier: Classifier, *, max_bytes: int) -> Starlette:
    """Return an ASGI application that accepts images of up to `max_bytes` bytes.

    ``GET /health`` returns the status, ``GET /model`` describes the model; ``POST /predict?top=5`` takes the bytes of
    an image as its body and returns what ``sightline predict`` prints as JSON, without the path. Errors are
    ``{"error": message}`` with status 400 (unreadable image), 413 (too large), 415 (form data) or 503 (too many
    requests waiting).
    """
    batcher = Batcher(classifier)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def model(_request: Request) -> JSONResponse:
        return JSONResponse(_describe_model(classifier))

    async def predict(request: Request) -> JSONResponse:
        top = _parse_top(request, len(classifier.classes))
        if request.headers.get("content-type", "").startswith("multipart/"):
            curl = f"curl --data-binary @photo.jpg {request.url.replace(query='')}"
            raise HTTPException(415, f"Send the bytes of the image as the body, not as form data: {curl}")
        if batcher.busy:
            raise HTTPException(503, "Too many images are waiting: try again in a moment.", {"Retry-After": "1"})
        prediction = await batcher.predict(await _read_body(request, max_bytes))
        if prediction.error == NOT_FINITE_REASON:
            raise HTTPException(500, f"There is no prediction: {prediction.error}.")
        if prediction.error is not None:
            raise HTTPException(400, f"The image cannot be read: {prediction.error}.")
        content = prediction.to_dict()
        del content["path"]
        return JSONResponse(content | {"top": content["top"][:top]})

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
            Route("/health", health),
            Route("/model", model),
            Route("/predict", predict, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _error_response, SightlineError: _error_response, 500: _error_response},
        lifespan=lifespan,
    )


async def _error_response(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 500)


def _parse_top(request: Request, classes: int) -> int:
    text = request.query_params.get("top", str(DEFAULT_TOP))
    if not text.isdecimal() or not int(text):
        raise HTTPException(400, f"top is {text!r}: expected the number of classes to return, 1 to {classes}.")
    return int(text)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body, reading no more than the maximum size of an image."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise HTTPException(413, f"The image has more than {max_bytes} bytes, the maximum of this server.")
        chunks.append(chunk)
    if not size:
        raise HTTPException(400, "The request has no body: send the bytes of an image.")
    return b"".join(chunks)


def _describe_model(classifier: Classifier) -> dict[str, Any]:
    manifest = classifier.manifest
    manifest_fields = (
        "model",
        "recipe",
        "precision",
        "parameters",
        "weights_sha256",
        "temperature",
        "metrics",
        "version",
    )
    return {
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_dict(),
        **({} if manifest is None else {name: getattr(manifest, name) for name in manifest_fields}),
    }
