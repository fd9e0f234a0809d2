"""The HTTP API of a model: images in, JSON out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import Classifier
from sightline.errors import SightlineError
from sightline.inference.feature_log import FeatureLog
from sightline.serve import open_inference, prediction
from sightline.serve.access import Access
from sightline.serve.admission import Admission, AdmissionMiddleware, read_body
from sightline.serve.batcher import Batcher
from sightline.serve.limits import Limits
from sightline.serve.metrics import Metrics
from sightline.serve.observing import LogFormat, ObservingMiddleware, make_log
from sightline.serve.openapi import build_openapi
from sightline.serve.responses import RETRY, JSONResponse, make_error_response, refuse_busy
from sightline.serve.served_model import ServedModel
from sightline.serve.tracing import Tracing

_LOG = logging.getLogger(__name__)


def create_app(  # noqa: PLR0913  # each one is a part of the server that can be left out
    classifier: Classifier,
    *,
    max_bytes: int,
    name: str | None = None,
    limits: Limits | None = None,
    warm_up: bool = False,
    access: Access | None = None,
    log_format: LogFormat | None = None,
    tracing: Tracing | None = None,
    feature_log: FeatureLog | None = None,
) -> Starlette:
    """Return an ASGI application that accepts bodies of up to `max_bytes` bytes, within `limits`.

    ``GET /health`` returns the status, ``GET /model`` describes the model; ``POST /predict?top=5`` takes images in any
    form of `uploads` and returns what ``sightline predict`` prints as JSON, and which model it is from.
    Below ``/v2`` is the Open Inference Protocol, see `open_inference`, where the model is called `name`.

    ``GET /metrics`` is for Prometheus. `access` says who may use the server; with a `log_format`, each request is
    logged to standard error; with `tracing`, it is traced. What was computed for each image is added to `feature_log`,
    and ``log_id`` in its answer is its id there. With `warm_up`, it starts what decodes images before the first
    request. ``app.state.admission`` is the `Admission` that counts what is in flight.

    Errors are ``{"error": message}`` with status 400 (unreadable image), 408 (sent too slowly), 413 (too large), 415
    (compressed) or 503 (too many requests in flight, too slow, or stopping).
    """
    limits = limits or Limits()
    served = ServedModel.from_classifier(classifier, name)
    metrics = Metrics(served)
    batcher = Batcher(classifier, limits, metrics, tracing, feature_log)
    admission = Admission(max_bytes, limits)
    metrics.watch_admission(admission)
    if feature_log is not None:
        metrics.watch_feature_log(feature_log)
    access = access or Access()

    def get_status() -> str:
        return "stopping" if admission.draining else "stalled" if batcher.stalled else "ok"

    def check_free() -> None:
        if batcher.busy or batcher.stalled:
            raise refuse_busy()

    async def receive(request: Request) -> bytearray:
        check_free()
        return await read_body(request)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        try:
            if warm_up:
                await batcher.warm_up()
            _LOG.info("The model %s, version %s, is ready.", served.name, served.version)
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            batcher.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
            _LOG.info("The server has stopped.")

    app = Starlette(
        routes=[
            *_make_description_routes(served, get_status, is_secured=access.token is not None),
            metrics.make_route(),
            *prediction.make_routes(served, batcher, check_free),
            *open_inference.make_routes(served, batcher, receive, lambda: get_status() == "ok"),
        ],
        exception_handlers={
            HTTPException: _error_response,
            SightlineError: _error_response,
            TimeoutError: _error_response,
            ClientDisconnect: _ignore_disconnect,
        },
        middleware=[
            Middleware(ObservingMiddleware, metrics, log_format and make_log(log_format), tracing),
            *access.make_cors_middleware(),
            Middleware(AdmissionMiddleware, admission),
            *access.make_checks_middleware(),
            Middleware(ServerErrorMiddleware, handler=_error_response),  # inside, so that the others see its answer
        ],
        lifespan=lifespan,
    )
    app.state.admission = admission
    return app


def _make_description_routes(served: ServedModel, get_status: Callable[[], str], *, is_secured: bool) -> list[Route]:
    async def health(_request: Request) -> JSONResponse:
        status = get_status()
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def model(_request: Request) -> JSONResponse:
        return JSONResponse(served.describe())

    async def openapi(_request: Request) -> JSONResponse:
        return JSONResponse(build_openapi(served, is_secured=is_secured))

    return [Route("/health", health), Route("/model", model), Route("/openapi.json", openapi)]


async def _error_response(_request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return make_error_response(error)
    if isinstance(error, TimeoutError):
        return make_error_response(HTTPException(503, str(error), RETRY))
    return JSONResponse({"error": str(error)}, 500)


async def _ignore_disconnect(_request: Request, _error: Exception) -> Response:
    """Answer a client that left before its image was sent: nobody reads it, and it is not an error of the server."""
    return Response(status_code=400)
