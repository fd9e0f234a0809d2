"""``POST /predict``, here and below the path of each model: the predictions for one or more images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.results import Prediction
from sightline.serve.masks import respond_with_masks
from sightline.serve.responses import JSONResponse, check_prediction, check_query
from sightline.serve.running_models import MODEL_ADDRESSES, RunningModel, RunningModels
from sightline.serve.uploads import read_upload

DEFAULT_TOP = 5


def make_routes(models: RunningModels) -> list[Route]:
    """Return the routes for a single model and for each of several."""

    async def predict(request: Request) -> Response:
        check_query(request, "top", "overlay")
        with models.find_requested(request).use() as running:
            if running.served.classifier.task.targets.are_masks:
                return await respond_with_masks(request, running)
            return await _predict(request, running)

    return [Route(f"{address}/predict", predict, methods=["POST"]) for address in ("", *MODEL_ADDRESSES)]


async def _predict(request: Request, running: RunningModel) -> JSONResponse:
    served, batcher = running.served, running.batcher
    top = _parse_top(request, len(served.classifier.classes))
    running.check_free()
    upload = await read_upload(request)
    if not upload.is_list:
        prediction = await batcher.predict(upload.files[0], top)
        check_prediction(prediction, advice=upload.advice)
        return JSONResponse(_describe(prediction, top) | {"model": served.identity})
    predictions = await batcher.predict_all(upload.files, top)
    return await asyncio.to_thread(_respond, predictions, upload.names, top, served.identity)


def _respond(
    predictions: Sequence[Prediction], names: Sequence[str] | None, top: int, identity: dict[str, Any]
) -> JSONResponse:
    """Return the response for a list of images; in a thread, as 1,024 images of 1,000 classes take seconds."""
    described = []
    for number, prediction in enumerate(predictions):
        if prediction.error == NOT_FINITE_REASON:
            check_prediction(prediction, f"image {number}")
        path = {} if names is None else {"path": names[number]}
        described.append(path | _describe(prediction, top))
    return JSONResponse({"predictions": described, "model": identity})


def _describe(prediction: Prediction, top: int) -> dict[str, Any]:
    """Return the fields of a prediction; its path is its id in the feature log, "" without one."""
    content = replace(prediction, top=prediction.top[:top]).to_dict()  # avoids a dictionary for each of 1,000 classes
    log_id = content.pop("path")
    return content | ({"log_id": log_id} if log_id else {})


def _parse_top(request: Request, classes: int) -> int:
    text = request.query_params.get("top", str(DEFAULT_TOP))
    digits = text.lstrip("0")
    if not (text.isascii() and text.isdecimal() and digits):
        raise HTTPException(400, f"top is {text[:20]!r}: expected the number of classes to return, 1 to {classes}.")
    return min(int(digits[: len(str(classes)) + 1]), classes)  # cut: Python refuses to convert very many digits
