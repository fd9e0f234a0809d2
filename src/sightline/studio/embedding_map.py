"""The map page: the images of a run in the plane, close to each other if their features are similar."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import math
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.data.cache import release_pages
from sightline.evaluation.covariance import iter_blocks, measure_covariance
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.pages import Pages, StrictJSONResponse, read_body

MAX_ROWS = 20_000  # principal components are computed from at most this many
AXES, ITERATIONS = 8, 40  # dimensions and rounds of the subspace iteration
MAX_SELECTION = 4 << 20  # bytes, 4 for each image
WRONG, RIGHT, UNKNOWN = range(3)


def make_routes(model: RunModel, library: Library, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page.

    ``GET /map/points`` returns the points computed by ``method``, and ``POST /selections`` accepts the positions of
    images, uint32 little-endian, and returns a key to list them by.
    """
    maps = _Maps(model, library)

    def page(request: Request) -> Response:
        return pages.render(request, "map.html.j2", name=name, methods=list_methods(), masks=model.predicts_masks)

    def points(request: Request) -> StrictJSONResponse:
        method = request.query_params.get("method", "pca")
        if method not in list_methods():
            raise HTTPException(400, f"There is no map {method[:40]!r}: expected {' or '.join(list_methods())}.")
        return StrictJSONResponse(maps.describe(method))

    async def select(request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_SELECTION)
        if len(content) % 4:
            raise HTTPException(400, "Expected positions of 4 bytes each.")
        ids = np.frombuffer(content, "<u4").tolist()
        return StrictJSONResponse({"selection": await run_in_threadpool(library.add_selection, ids)})

    return [
        Route("/map", page), Route("/map/points", points), Route("/selections", select, methods=["POST"])
    ]  # fmt: skip


def list_methods() -> list[str]:
    """Return the available methods: pca, and umap if the extra of that name is installed."""
    return ["pca", *(["umap"] if importlib.util.find_spec("umap") is not None else [])]


class _Maps:
    """The maps, computed one at a time, with the last response for each."""

    def __init__(self, model: RunModel, library: Library) -> None:
        self._model, self._library, self._lock = model, library, Lock()
        self._maps: dict[str, NDArray[np.float32]] = {}
        self._described: dict[str, tuple[int, dict[str, Any]]] = {}

    def describe(self, method: str) -> dict[str, Any]:
        vectors = self._model.features.vectors
        if vectors is None:
            raise HTTPException(409, "The features of the images are not computed yet.")
        with self._lock:
            if method not in self._maps:
                self._maps[method] = compute_pca(vectors) if method == "pca" else compute_umap(vectors)
                release_pages(vectors)
            revision = self._library.revision  # read before the classes, so that no change is missed
            if self._described.get(method, (-1,))[0] != revision:
                self._described[method] = revision, _describe_points(self._maps[method], self._library)
            return self._described[method][1]


def compute_pca(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first two principal components of features [N, F], float32 [N, 2]; rows of NaN stay.

    They are computed from at most `MAX_ROWS` evenly spaced rows. The largest weight of each is positive.
    """
    covariance = measure_covariance(vectors, math.ceil(len(vectors) / MAX_ROWS) or 1)
    components = _find_main_axes(covariance.matrix)
    components *= np.sign(components[np.abs(components).argmax(0), np.arange(components.shape[1])])
    points = np.zeros((len(vectors), 2), np.float32)
    for block, rows in iter_blocks(vectors):
        points[block, : components.shape[1]] = (rows - covariance.mean.astype(np.float32)) @ components.astype(
            np.float32
        )
    return points


def _find_main_axes(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the two eigenvectors [F, 2] with the largest eigenvalues, by subspace iteration.

    All eigenvectors would take seconds for a thousand features. Golub and Van Loan, Matrix Computations, section 8.2.
    """
    basis = covariance[:, np.argsort(covariance.diagonal())[-AXES:]]
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(covariance @ basis)[0]
    return np.asarray(basis @ np.linalg.eigh(basis.T @ covariance @ basis)[1][:, ::-1][:, :2])


def compute_umap(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return UMAP's two coordinates of features [N, F] by cosine distance, float32 [N, 2]; rows of NaN stay.

    McInnes, Healy and Melville, 2018, arXiv:1802.03426.
    """
    umap = importlib.import_module("umap")
    is_valid = ~np.isnan(vectors[:, 0])
    points = np.full((len(vectors), 2), np.nan, np.float32)
    reducer = umap.UMAP(metric="cosine", n_neighbors=min(15, max(2, int(is_valid.sum()) - 1)), random_state=0, n_jobs=1)
    points[is_valid] = reducer.fit_transform(np.asarray(vectors[is_valid]))
    return points


def _describe_points(points: NDArray[np.float32], library: Library) -> dict[str, Any]:
    """Return the images that have a point, as arrays in base64, and the names of the classes.

    `ids` are uint32, `x` and `y` float32 in [0, 1], `label` uint16 and `state` uint8, one of its constants.
    """
    is_valid = ~np.isnan(points[:, 0])
    rows = [row for row in library.list_predictions() if is_valid[row[0]]]
    classes = sorted({label for _, label, _ in rows})
    number_of = {label: number for number, label in enumerate(classes)}
    ids = np.array([position for position, _, _ in rows], "<u4")
    labels = np.array([number_of[label] for _, label, _ in rows], "<u2")
    states = [UNKNOWN if p is None else RIGHT if p == label else WRONG for _, label, p in rows]
    located = points[ids]
    low, high = (located.min(0), located.max(0)) if len(ids) else (np.zeros(2), np.ones(2))
    x, y = ((located - low) / np.where(high > low, high - low, 1)).astype("<f4").T
    arrays = {"ids": ids, "x": x, "y": y, "label": labels, "state": np.array(states, np.uint8)}
    encoded = {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
    return {"classes": classes, "count": len(ids), **encoded}
