"""``POST /predict``: the predictions for one or more images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.results import Prediction
from sightline.serve.admission import MAX_DIGITS
from sightline.serve.batcher import Batcher
from sightline.serve.responses import JSONResponse, check_prediction
from sightline.serve.served_model import ServedModel
from sightline.serve.uploads import read_upload

DEFAULT_TOP = 5


def make_routes(served: ServedModel, batcher: Batcher, check_free: Callable[[], None]) -> list[Route]:
    """Return the route; `check_free` raises the error of a request that must wait until others have ended."""

    async def predict(request: Request) -> JSONResponse:
        top = _parse_top(request, len(served.classifier.classes))
        check_free()
        upload = await read_upload(request)
        if not upload.is_list:
            prediction = await batcher.predict(upload.files[0])
            check_prediction(prediction)
            return JSONResponse(_describe(prediction, top) | {"model": served.identity})
        described = []
        for number, prediction in enumerate(await batcher.predict_all(upload.files)):
            if prediction.error == NOT_FINITE_REASON:
                check_prediction(prediction, f"image {number}")
            path = {} if upload.names is None else {"path": upload.names[number]}
            described.append(path | _describe(prediction, top))
        return JSONResponse({"predictions": described, "model": served.identity})

    return [Route("/predict", predict, methods=["POST"])]


def _describe(prediction: Prediction, top: int) -> dict[str, Any]:
    """Return the fields of a prediction; its path is its id in the log of features, "" without one."""
    content = prediction.to_dict()
    log_id = content.pop("path")
    content |= {"log_id": log_id} if log_id else {}
    return content if prediction.error is not None else content | {"top": content["top"][:top]}


def _parse_top(request: Request, classes: int) -> int:
    text = request.query_params.get("top", str(DEFAULT_TOP))
    if not text.isdecimal() or len(text) > MAX_DIGITS or not int(text):
        raise HTTPException(
            400, f"top is {text[:MAX_DIGITS]!r}: expected the number of classes to return, 1 to {classes}."
        )
    return int(text)
