"""The page to try a run's model on an image: classes, the decision, a heat map and the nearest training images.

Heat maps are computed on demand, one at a time.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import jsonio
from sightline.api.classifier import Classifier
from sightline.api.explanation import explain_pixels
from sightline.errors import DataError, ImageError, ModelError
from sightline.explain.localization import map_to_original
from sightline.inference.bundle import MODEL_FILE
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.stream import find_size
from sightline.preprocessing import fit_size
from sightline.report.doctor_page import encode_thumbnail
from sightline.report.heatmap_plot import overlay_heat
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.look_alikes import make_feature_routes
from sightline.studio.pages import FOLDER, FRESH, POLICY, Pages, StrictJSONResponse, read_body

TOP = 5  # classes
NEAREST = 8  # training images
MAX_IMAGE = 64 << 20  # bytes of an image
MAX_SIDE = 900  # pixels of the longer side of the shown image
MAX_WAITING = 4  # requests, including the running one; each takes 154 model evaluations
RUNTIME = FOLDER / "static" / "vendor" / "onnxruntime-web" / "ort-wasm-simd-threaded.wasm.gz"


def make_routes(model: RunModel, library: Library, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page, and of the heat maps of the run's own images.

    ``POST /try`` accepts an image and returns its prediction, with ``nearest=1`` also the nearest training images;
    ``POST /try/heat`` returns its heat map for the class ``class``. ``POST /images/ID/heat`` returns the heat map of an
    image of the run, and ``GET /images/ID/nearest`` the training images nearest to it. ``GET /features`` returns the
    progress of computing the features of the run's images, and ``POST /features`` starts it.

    For the model in the browser, ``GET /try/bundle`` returns the required facts from the bundle,
    ``GET /try/model.onnx`` the file, and ``POST /try/probabilities`` the probabilities of an image as computed here.
    """
    endpoints = _Endpoints(model, library, name, pages)
    return [
        Route("/try", endpoints.page),
        Route("/try", endpoints.predict, methods=["POST"]),
        Route("/try/heat", endpoints.explain, methods=["POST"]),
        Route("/try/bundle", endpoints.describe_bundle),
        Route("/try/model.onnx", endpoints.model_file),
        Route("/try/probabilities", endpoints.compute_probabilities, methods=["POST"]),
        Route("/images/{id:int}/heat", endpoints.explain_own, methods=["POST"]),
        *make_nearest_routes(model, library),
    ]


def make_nearest_routes(model: RunModel, library: Library) -> list[Route]:
    """Return the routes for the features of the run's images, and for the training images nearest to one of them."""

    def find_nearest(request: Request) -> dict[str, Any]:
        position, features = find_position(model, request), model.features
        rows: list[dict[str, Any]] = []
        if features.vectors is not None and np.isfinite(features.vectors[position]).all():
            is_searched = model.is_training.copy()
            is_searched[position] = False
            nearest = features.find_nearest(np.array(features.vectors[position]), is_searched, NEAREST)
            rows = library.describe([i for i, _ in nearest])
        return {"images": rows}

    return make_feature_routes(model.features, find_nearest)


def find_position(model: RunModel, request: Request) -> int:
    """Return the position of the image named in a URL; raise `HTTPException` if there is none."""
    position: int = request.path_params["id"]
    if not 0 <= position < len(model.index.images):
        raise HTTPException(404, "There is no such image.")
    return position


class _Endpoints:
    def __init__(self, model: RunModel, library: Library, name: str, pages: Pages) -> None:
        self._model, self._library, self._name, self._pages = model, library, name, pages
        self._heat_maps = HeatMapQueue()

    def page(self, request: Request) -> Response:
        path = self._model.run.directory.bundle
        size = None if path is None else (path / MODEL_FILE).stat().st_size + RUNTIME.stat().st_size
        response = self._pages.render(request, "trial.html.j2", name=self._name, size=size)
        response.headers["Content-Security-Policy"] = f"{POLICY}; script-src 'self' 'wasm-unsafe-eval'"
        return response

    async def predict(self, request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_IMAGE)
        has_nearest = request.query_params.get("nearest") == "1"
        return StrictJSONResponse(await run_in_threadpool(self._predict, content, has_nearest=has_nearest))

    def _predict(self, content: bytes, *, has_nearest: bool) -> dict[str, Any]:
        classifier = self._model.classifier
        prediction = classifier.predict([content], top=TOP)[0]
        if prediction.error is not None:
            raise HTTPException(400, f"The image cannot be classified: {prediction.error}.")
        values: dict[str, Any] = prediction.to_dict() | {"nearest": []}
        del values["path"]
        if has_nearest and self._model.features.vectors is not None:
            vector = classifier.embed([content]).vectors[0]
            nearest = self._model.features.find_nearest(vector, self._model.is_training, NEAREST)
            rows = self._library.describe([position for position, _ in nearest])
            values["nearest"] = [row | {"similarity": s} for row, (_, s) in zip(rows, nearest, strict=True)]
        return values

    def describe_bundle(self, _request: Request) -> StrictJSONResponse:
        manifest = self._model.read_bundle().manifest
        values = {"classes": manifest.classes, "preprocess": manifest.preprocess.to_dict()}
        return StrictJSONResponse(values)

    def model_file(self, _request: Request) -> Response:
        content = self._model.read_bundle().model
        return Response(content, media_type="application/octet-stream", headers=FRESH)

    async def compute_probabilities(self, request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_IMAGE)
        try:
            (row,) = await run_in_threadpool(self._model.classifier.predict_proba, [content])
        except DataError as error:
            raise HTTPException(400, str(error)) from None
        return StrictJSONResponse({"probabilities": row.tolist()})

    async def explain(self, request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_IMAGE)
        return await self._explain(lambda: content, request.query_params.get("class"))

    async def explain_own(self, request: Request) -> StrictJSONResponse:
        position = find_position(self._model, request)
        return await self._explain(lambda: self._model.index.read(position), None)

    async def _explain(self, read: Callable[[], bytes | NDArray[np.uint8]], label: str | None) -> StrictJSONResponse:
        def compute() -> dict[str, Any]:
            return _compute_heat_map(self._model.classifier, read(), label)

        try:
            return StrictJSONResponse(await self._heat_maps.run(compute))
        except (ImageError, OSError) as error:
            raise HTTPException(400, f"The image cannot be read: {error}.") from None


def _compute_heat_map(classifier: Classifier, content: bytes | NDArray[np.uint8], label: str | None) -> dict[str, Any]:
    """Explain an image, encoded or as pixels; raise `ImageError`, or `UsageError` for an unknown class.

    The values are the class, its probability, the faithfulness, and the overlaid image as WebP in base64.
    """
    spec = classifier.preprocess
    width, height = find_size(spec, content)
    explanation = explain_pixels(classifier, classifier.predictor, spec.convert(content), width, height, label=label)
    if explanation.heat is None:
        raise ModelError(f"The image cannot be explained: {NOT_FINITE_REASON}.")
    width, height = fit_size(width, height, MAX_SIDE)
    image = spec.with_size(height, width).convert(content)
    visible_box, _ = spec.compute_placement(width, height)
    pixels = overlay_heat(image, map_to_original(explanation.heat, spec, width, height), visible_box)
    return {
        "label": explanation.label,
        "probability": explanation.probability,
        "faithfulness": jsonio.to_plain(explanation.faithfulness),
        "image": base64.b64encode(encode_thumbnail(pixels)).decode(),
    }


class HeatMapQueue:
    """Computes one heat map at a time in a thread, and refuses requests if more than a few are waiting."""

    def __init__(self) -> None:
        self._turn, self._waiting = asyncio.Semaphore(1), 0

    async def run(self, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run `compute` in a thread and return its result; raise `HTTPException` if too many requests are waiting."""
        if self._waiting >= MAX_WAITING:
            raise HTTPException(503, "Several heat maps are being computed: try again in a moment.")
        self._waiting += 1
        try:
            async with self._turn:
                return await run_in_threadpool(compute)
        finally:
            self._waiting -= 1
