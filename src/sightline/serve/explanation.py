"""``POST /explain``, here and below the path of each model: the heat map of one image."""

from __future__ import annotations

import asyncio
import base64
import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from sightline.api.classifier import Classifier
from sightline.api.explanation import explain_pixels
from sightline.errors import ImageError, suggest
from sightline.explain.heatmaps import Method, has_gradcam, share_gradcam
from sightline.inference.predictor import NOT_FINITE_REASON, Outputs, OutputsPredictor, Predictor
from sightline.inference.results import Prediction
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.preprocessing import encode_png, inspect_image
from sightline.serve.batcher import Batcher
from sightline.serve.responses import JSONResponse, check_prediction, check_query, refuse_busy
from sightline.serve.running_models import MODEL_ADDRESSES, RunningModel, RunningModels
from sightline.serve.uploads import read_upload

METHODS: tuple[Method, ...] = ("gradcam", "gradcam++", "occlusion")  # RISE would take a thousand evaluations
MAX_NAMED = 100  # suggest a class only among so many: with a thousand, it blocks the event loop for 0.3 s
MAX_WAITING = 8  # heat map requests, including the running one; each takes 33 or 154 model evaluations


def list_methods(predictor: Predictor) -> tuple[Method, ...]:
    """Return the `METHODS` that a model supports."""
    return METHODS if isinstance(predictor, OnnxPredictor) and has_gradcam(predictor) else ("occlusion",)


class _GivenUp(Exception):
    """Nobody waits for the explanation any more."""


class _SharedPredictor(OutputsPredictor):
    """A predictor for use outside the model's thread; it computes in that thread, between batches of predictions.

    Not every runtime may be called by two threads at a time. Evaluation stops when `given_up` is set.
    """

    def __init__(self, predictor: Predictor, batcher: Batcher, given_up: threading.Event) -> None:
        self._batcher, self._given_up = batcher, given_up
        self.predictor = predictor
        self.classes, self.preprocess = predictor.classes, predictor.preprocess

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """Return all outputs for pixels [N, H, W, C]."""
        if self._given_up.is_set():
            raise _GivenUp
        return self._batcher.compute_outputs(pixels)


def make_routes(models: RunningModels) -> list[Route]:
    """Return the routes for a single model and for each of several; one heat map is computed at a time."""
    turn, waiting = asyncio.Semaphore(1), 0

    async def explain(request: Request) -> JSONResponse:
        nonlocal waiting
        check_query(request, "class", "method")
        with models.find_requested(request).use() as running:
            label, method = _parse_class(request, running), _parse_method(request)
            running.check_free()
            if waiting >= MAX_WAITING:
                raise refuse_busy()
            upload = await read_upload(request)
            content = upload.get_single()
            if waiting >= MAX_WAITING:  # others arrived while the body was read
                raise refuse_busy()
            waiting += 1
            try:
                return await _explain(content, label, method, running, turn)
            except ImageError as error:
                raise HTTPException(400, f"The image cannot be read: {error}.{upload.advice}") from None
            finally:
                waiting -= 1

    return [Route(f"{address}/explain", explain, methods=["POST"]) for address in ("", *MODEL_ADDRESSES)]


def _parse_class(request: Request, running: RunningModel) -> str | None:
    label, classes = request.query_params.get("class"), running.served.classifier.classes
    if label is not None and label not in classes:
        hint = suggest(label[:80], classes) if len(classes) <= MAX_NAMED else " GET /model lists them."
        raise HTTPException(400, f"The model has no class {label[:80]!r}.{hint}")
    return label


def _parse_method(request: Request) -> str | None:
    name = request.query_params.get("method")
    if name is not None and name not in METHODS:
        raise HTTPException(400, f"There is no method {name[:80]!r} here: choose gradcam, gradcam++ or occlusion.")
    return name


async def _explain(
    content: bytes | bytearray, label: str | None, method: str | None, running: RunningModel, turn: asyncio.Semaphore
) -> JSONResponse:
    classifier, batcher = running.served.classifier, running.batcher
    given_up = threading.Event()
    try:
        pixels = await batcher.decode(content)
        async with turn:
            shared = _SharedPredictor(classifier.predictor, batcher, given_up)
            explanation = await asyncio.to_thread(_compute, classifier, shared, content, pixels, label, method)
    finally:
        given_up.set()
    return JSONResponse(explanation | {"model": running.served.identity})


def _compute(
    classifier: Classifier,
    predictor: _SharedPredictor,
    content: bytes | bytearray,
    pixels: NDArray[np.uint8],
    label: str | None,
    method: str | None,
) -> dict[str, Any]:
    """Return the JSON that ``sightline explain`` prints, and the heat map as a grayscale PNG in base64."""
    supported = list_methods(predictor.predictor)
    if method is not None and method not in supported:
        raise HTTPException(
            400,
            f"The method {method} needs a model whose head is one dense layer behind pooling: use method=occlusion.",
        )
    if isinstance(predictor.predictor, OnnxPredictor):
        share_gradcam(predictor, predictor.predictor)
    preprocess = predictor.preprocess
    header = inspect_image(content, preprocess.page, preprocess.max_megapixels)  # harmless: was decoded before
    explanation = explain_pixels(classifier, predictor, pixels, header.width, header.height, method=method, label=label)
    if explanation.probability is None or not math.isfinite(explanation.probability) or explanation.heat is None:
        check_prediction(Prediction("", error=NOT_FINITE_REASON))
    assert explanation.heat is not None
    values = explanation.to_dict()
    del values["path"], values["figure"]
    box, (left, top, right, bottom) = preprocess.compute_placement(header.width, header.height)
    heat = np.rint(255 * explanation.heat[int(top) : int(bottom), int(left) : int(right)]).astype(np.uint8)
    return values | {
        "image_size": [header.width, header.height],
        "box": list(box),
        "heat_map": base64.b64encode(encode_png(heat)).decode(),
    }
