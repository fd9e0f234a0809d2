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

from sightline.errors import SightlineError
from sightline.prediction.base import NOT_FINITE
from sightline.report import summary
from sightline.serve.batcher import Batcher
from sightline.workflow import Classifier

TOP = 5


def application(classifier: Classifier, *, largest: int) -> Starlette:
    """Return an ASGI application that accepts images of up to `largest` bytes.

    ``GET /health`` returns the status, ``GET /model`` describes the model; ``POST /predict?top=5`` takes the bytes of
    an image as its body and returns the JSON of ``sightline predict --json``, without the path. Errors are ``{"error":
    message}`` with status 400 (unreadable image), 413 (too large), 415 (form data) or 503 (too many requests waiting).
    """
    batcher = Batcher(classifier)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def model(_request: Request) -> JSONResponse:
        return JSONResponse(_facts(classifier))

    async def predict(request: Request) -> JSONResponse:
        top = _top(request, len(classifier.classes))
        if request.headers.get("content-type", "").startswith("multipart/"):
            curl = f"curl --data-binary @photo.jpg {request.url.replace(query='')}"
            raise HTTPException(415, f"Send the bytes of the image as the body, not as form data: {curl}")
        if batcher.busy:
            raise HTTPException(503, "Too many images are waiting: try again in a moment.", {"Retry-After": "1"})
        answer = await batcher.predict(await _body(request, largest))
        if answer.error == NOT_FINITE:
            raise HTTPException(500, f"There is no prediction: {answer.error}.")
        if answer.error is not None:
            raise HTTPException(400, f"The image cannot be read: {answer.error}.")
        found = summary.prediction(answer)
        del found["path"]
        return JSONResponse(found | {"top": found["top"][:top]})

    @asynccontextmanager
    async def working(_app: Starlette) -> AsyncIterator[None]:
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
        exception_handlers={HTTPException: _told, SightlineError: _told, 500: _told},
        lifespan=working,
    )


async def _told(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 500)


def _top(request: Request, classes: int) -> int:
    text = request.query_params.get("top", str(TOP))
    if not text.isdecimal() or not int(text):
        raise HTTPException(400, f"top is {text!r}: expected the number of classes to return, 1 to {classes}.")
    return int(text)


async def _body(request: Request, largest: int) -> bytes:
    """Return the body, reading no more than the maximum size of an image."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise HTTPException(413, f"The image has more than {largest} bytes, the maximum of this server.")
        parts.append(part)
    if not size:
        raise HTTPException(400, "The request has no body: send the bytes of an image.")
    return b"".join(parts)


def _facts(classifier: Classifier) -> dict[str, Any]:
    manifest = classifier.manifest
    known = ("model", "recipe", "precision", "parameters", "weights_sha256", "temperature", "figures", "version")
    return {
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_dict(),
        **({} if manifest is None else {name: getattr(manifest, name) for name in known}),
    }
