"""The HTTP face of a model: three addresses, JSON answers, raw pictures in."""

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
    """Return an ASGI application; a picture may have `largest` bytes.

    ``GET /health`` says that it is up, ``GET /model`` what it is; ``POST /predict?top=5`` takes the bytes of a picture
    as its body and gives the line of ``sightline predict --json``, less the path. Errors are ``{"error": sentence}``:
    400 the picture cannot be read, 413 it is too large, 415 it is a form, 503 too many wait.
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
            raise HTTPException(415, f"Send the picture's bytes as the body, not as a form: {curl}")
        if batcher.busy:
            raise HTTPException(503, "Too many pictures wait: try again in a moment.", {"Retry-After": "1"})
        answer = await batcher.predict(await _body(request, largest))
        if answer.error == NOT_FINITE:
            raise HTTPException(500, f"There is no prediction: {answer.error}.")
        if answer.error is not None:
            raise HTTPException(400, f"The picture cannot be read: {answer.error}.")
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
        raise HTTPException(400, f"top is {text!r}: give the number of classes wanted, 1 to {classes}.")
    return int(text)


async def _body(request: Request, largest: int) -> bytes:
    """Return the body, read no further than what a picture may have."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise HTTPException(413, f"The picture has more than {largest} bytes, which is the most taken here.")
        parts.append(part)
    if not size:
        raise HTTPException(400, "The request has no body: send a picture's bytes.")
    return b"".join(parts)


def _facts(classifier: Classifier) -> dict[str, Any]:
    manifest = classifier.manifest
    known = ("model", "recipe", "precision", "parameters", "weights_sha256", "temperature", "figures", "version")
    return {
        "classes": list(classifier.classes),
        "preprocess": classifier.preprocess.to_dict(),
        **({} if manifest is None else {name: getattr(manifest, name) for name in known}),
    }
