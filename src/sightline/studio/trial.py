"""The page to try a run's model: an image to classes, a decision, a heat map and the nearest training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.errors import ImageError
from sightline.studio.features import RunModel
from sightline.studio.heat_maps import HeatMap, HeatMapQueue, compute_heat_map
from sightline.studio.library import Library
from sightline.studio.pages import Pages, StrictJSONResponse, read_body

TOP = 5  # classes
NEAREST = 8  # training images
MAX_IMAGE = 64 << 20  # bytes of an image


def make_routes(model: RunModel, library: Library, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page, and of the heat maps of the run's own images.

    ``POST /try`` takes an image and returns its prediction, with ``nearest=1`` also the nearest training images;
    ``POST /try/heat`` its heat map for the class ``class``. ``POST /images/ID/heat`` is that of an image of the run,
    and ``GET /images/ID/nearest`` lists the training images nearest to it. ``GET /features`` is the progress of the
    features of the run's images, and ``POST /features`` starts them.
    """
    endpoints = _Endpoints(model, library, name, pages)
    return [
        Route("/try", endpoints.page),
        Route("/try", endpoints.predict, methods=["POST"]),
        Route("/try/heat", endpoints.explain, methods=["POST"]),
        Route("/images/{id:int}/heat", endpoints.explain_own, methods=["POST"]),
        Route("/images/{id:int}/nearest", endpoints.find_nearest),
        Route("/features", endpoints.state),
        Route("/features", endpoints.start_features, methods=["POST"]),
    ]


class _Endpoints:
    def __init__(self, model: RunModel, library: Library, name: str, pages: Pages) -> None:
        self._model, self._library, self._name, self._pages = model, library, name, pages
        self._heat_maps = HeatMapQueue()

    def page(self, request: Request) -> Response:
        return self._pages.render(request, "trial.html.j2", name=self._name)

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

    async def explain(self, request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_IMAGE)
        return await self._explain(lambda: content, request.query_params.get("class"))

    async def explain_own(self, request: Request) -> StrictJSONResponse:
        position = self._get_position(request)
        return await self._explain(lambda: self._model.index.read(position), None)

    def find_nearest(self, request: Request) -> StrictJSONResponse:
        position, features = self._get_position(request), self._model.features
        rows: list[dict[str, Any]] = []
        if features.vectors is not None and np.isfinite(features.vectors[position]).all():
            is_searched = self._model.is_training.copy()
            is_searched[position] = False
            nearest = features.find_nearest(np.array(features.vectors[position]), is_searched, NEAREST)
            rows = self._library.describe([i for i, _ in nearest])
        return StrictJSONResponse({"features": features.state, "images": rows})

    def _get_position(self, request: Request) -> int:
        position: int = request.path_params["id"]
        if not 0 <= position < len(self._model.index.images):
            raise HTTPException(404, "There is no such image.")
        return position

    async def _explain(self, read: Callable[[], bytes | NDArray[np.uint8]], label: str | None) -> StrictJSONResponse:
        def compute() -> HeatMap:
            return compute_heat_map(self._model.classifier.predictor, read(), label)

        try:
            return StrictJSONResponse((await self._heat_maps.run(compute)).to_dict())
        except (ImageError, OSError) as error:
            raise HTTPException(400, f"The image cannot be read: {error}.") from None

    def state(self, _request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(self._model.features.state)

    def start_features(self, request: Request) -> StrictJSONResponse:
        self._model.features.start()
        return self.state(request)
