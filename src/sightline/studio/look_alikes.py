"""Look-alikes in a data set without a run: by pretrained features, or by perceptual hash until these exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from sightline.callbacks import Progress
from sightline.data.types import Index
from sightline.studio.background import ProgressCallback
from sightline.studio.checks import BackgroundCheck
from sightline.studio.features import ImageFeatures
from sightline.studio.labeling import ComputeFeatures
from sightline.studio.library import Library
from sightline.studio.pages import StrictJSONResponse, translate_state

NEAREST = 8  # number of images returned


class LookAlikes:
    """Finds the nearest images to an image of an index; methods may be called from any thread."""

    def __init__(self, index: Index, compute: ComputeFeatures, check: BackgroundCheck) -> None:
        """`compute` returns the features of an index, float32 [N, D], with a row of NaN for an undecodable image."""
        self._index, self._compute, self._check = index, compute, check
        self.features = ImageFeatures(self._load)

    def find_nearest(self, position: int) -> tuple[str, list[int]]:
        """Return how images are compared (``features``, ``hash`` or "") and the positions of the nearest ones."""
        vectors, hashes = self.features.vectors, self._check.hashes
        others = np.arange(len(self._index.images)) != position
        if vectors is not None and np.isfinite(vectors[position]).all():
            nearest = self.features.find_nearest(np.array(vectors[position]), others, NEAREST)
            return "features", [i for i, _ in nearest]
        if hashes is None:
            return "", []
        distances = np.bitwise_count(hashes ^ hashes[position]).astype(np.int64)
        order = np.argsort(np.where(others, distances, 65), kind="stable")
        return "hash", order[: min(NEAREST, len(order) - 1)].tolist()

    def _load(self, progress: Progress) -> NDArray[np.float32]:
        progress("features", 0, len(self._index.images))
        return self._compute(self._index, ProgressCallback(progress))[0]


def make_routes(look_alikes: LookAlikes, library: Library) -> list[Route]:
    """Return the same routes as for a run, see `make_feature_routes`; responses also state how images are compared."""

    def find_nearest(request: Request) -> dict[str, Any]:
        position: int = request.path_params["id"]
        if not library.describe([position]):
            raise HTTPException(404, "There is no such image.")
        by, positions = look_alikes.find_nearest(position)
        return {"by": by, "images": library.describe(positions)}

    return make_feature_routes(look_alikes.features, find_nearest)


def make_feature_routes(features: ImageFeatures, find_nearest: Callable[[Request], dict[str, Any]]) -> list[Route]:
    """Return the routes ``GET /images/ID/nearest``, which calls `find_nearest`, and ``GET`` and ``POST /features``.

    Both ``/features`` routes return the progress of `features`; POST also starts the computation.
    """

    def nearest(request: Request) -> StrictJSONResponse:
        values = find_nearest(request)
        return StrictJSONResponse({"features": translate_state(request, features.state)} | values)

    def state(request: Request) -> StrictJSONResponse:
        return StrictJSONResponse(translate_state(request, features.state))

    def start(request: Request) -> StrictJSONResponse:
        features.start()
        return state(request)

    return [
        Route("/images/{id:int}/nearest", nearest),
        Route("/features", state),
        Route("/features", start, methods=["POST"]),
    ]
