"""The HTTP API of one or more models: images in, JSON out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api.classifier import Classifier
from sightline.errors import SightlineError
from sightline.serve import explanation, open_inference, page, prediction
from sightline.serve.access import Access
from sightline.serve.admission import Admission, AdmissionMiddleware
from sightline.serve.batcher import Batching
from sightline.serve.encodings import UnpackingMiddleware
from sightline.serve.feature_logs import FeatureLogs
from sightline.serve.limits import Limits
from sightline.serve.metrics import Metrics
from sightline.serve.observing import CLIENT_LEFT, LogFormat, ObservingMiddleware, make_log
from sightline.serve.openapi import build_openapi
from sightline.serve.reloading import Reloader
from sightline.serve.responses import RETRY, JSONResponse, make_error_response
from sightline.serve.running_models import MODEL_ADDRESSES, RunningModels
from sightline.serve.served_model import ServedModel
from sightline.serve.tracing import Tracing

_LOG = logging.getLogger(__name__)


def create_app(  # noqa: PLR0913  # each argument is an optional part of the server
    model: Classifier | Iterable[ServedModel],
    *,
    max_bytes: int,
    name: str | None = None,
    limits: Limits | None = None,
    batching: Batching | None = None,
    warm_up: bool = False,
    access: Access | None = None,
    log_format: LogFormat | None = None,
    tracing: Tracing | None = None,
    feature_logs: FeatureLogs | None = None,
    reloader: Reloader | None = None,
) -> Starlette:
    """Return an ASGI application for a classifier or several models; bodies may have up to `max_bytes` bytes.

    ``GET /health`` returns the status, ``GET /model`` describes the model; ``POST /predict?top=5`` takes images in any
    form that `uploads` accepts and returns the JSON that ``sightline predict`` prints, with the identity of the model;
    ``POST /explain`` returns the heat map of an image. With several models, each has the same endpoints below
    ``/models/NAME`` and ``/models/NAME/versions/VERSION``. ``GET /`` is a page to try the models. Below ``/v2`` is the
    Open Inference Protocol, see `open_inference`. `name` is the name of a classifier for clients.

    ``GET /metrics`` is for Prometheus. `access` restricts who may use the server; with a `log_format`, each request is
    logged to standard error; with `tracing`, it is traced. The outputs computed for each image are added to
    `feature_logs`, and ``log_id`` in the response is the image's id there. With `warm_up`, the models and the decoders
    run once before the first request; with a `reloader`, models that change on disk are replaced.
    ``app.state.admission`` is the `Admission` that counts requests in flight, ``app.state.metrics`` the `Metrics`.

    Errors are ``{"error": message}`` with status 400 (unreadable image), 408 (sent too slowly), 413 (too large), 415
    (an unknown encoding) or 503 (too many requests in flight, too slow, or stopping).
    """
    limits = limits or Limits()
    metrics = Metrics(feature_logs)
    models = RunningModels(limits, batching or Batching(), metrics, tracing, feature_logs)
    models.put([ServedModel.from_classifier(model, name)] if isinstance(model, Classifier) else model)
    admission = Admission(max_bytes, limits)
    metrics.watch_admission(admission)
    access = access or Access()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        reloading = None
        try:
            await models.start(warm_up=warm_up)
            _log_models(models)
            metrics.workers.set(1)
            if reloader is not None:
                reloading = asyncio.create_task(reloader.run(models, metrics))
            yield
        finally:
            if reloading is not None:
                reloading.cancel()
                await asyncio.wait([reloading])
            await models.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
            _LOG.info("The server has stopped.")

    app = Starlette(
        routes=[
            *_make_description_routes(models, lambda: admission.draining, access),
            metrics.make_route(),
            *page.make_routes(),
            *prediction.make_routes(models),
            *explanation.make_routes(models),
            *open_inference.make_routes(models, lambda: admission.draining),
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
            Middleware(UnpackingMiddleware, admission),
            Middleware(ServerErrorMiddleware, handler=_error_response),  # inside, so that the others see its response
        ],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # redirects would go to http, even if a proxy in front encrypts
    app.state.admission, app.state.metrics = admission, metrics
    return app


def _log_models(models: RunningModels) -> None:
    """Log which models are ready; a function of its own, as its variables would otherwise keep the last model alive."""
    for served in models.served:
        _LOG.info("The model %s, version %s, is ready.", served.name, served.version)


def _make_description_routes(models: RunningModels, is_stopping: Callable[[], bool], access: Access) -> list[Route]:
    async def health(_request: Request) -> JSONResponse:
        status = "stopping" if is_stopping() else "stalled" if models.is_stalled else "ok"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def model(request: Request) -> JSONResponse:
        return JSONResponse(models.find_requested(request).served.describe())

    async def list_models(_request: Request) -> JSONResponse:
        return JSONResponse({"models": [served.identity for served in models.served]})

    async def openapi(_request: Request) -> JSONResponse:
        is_secured, limits_hosts = access.token is not None, bool(access.hosts)
        return JSONResponse(build_openapi(models.served, is_secured=is_secured, limits_hosts=limits_hosts))

    return [
        Route("/health", health),
        *(Route(address, model) for address in ("/model", *MODEL_ADDRESSES)),
        Route("/models", list_models),
        Route("/openapi.json", openapi),
    ]


async def _error_response(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        return make_error_response(_explain_refusal(request, error))
    if isinstance(error, TimeoutError):
        return make_error_response(HTTPException(503, str(error), RETRY))
    return JSONResponse({"error": str(error)}, 500)


def _explain_refusal(request: Request, error: HTTPException) -> HTTPException:
    """Return a full sentence for an unknown path or method: Starlette's error only names the status."""
    path = request.url.path[:80]
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "another method")
        detail = f"{path} takes {methods}, not {request.method}: /openapi.json describes the requests."
    elif error.status_code == 404 and error.detail == "Not Found":
        detail = f"There is nothing at {path}: /openapi.json describes the requests."
    else:
        return error
    return HTTPException(error.status_code, detail, error.headers)


async def _ignore_disconnect(_request: Request, _error: Exception) -> Response:
    """Answer a client that left before sending its image: nobody reads the response, and the server did not fail."""
    return Response(status_code=CLIENT_LEFT)
