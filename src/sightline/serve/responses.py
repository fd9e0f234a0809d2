"""Responses of the server: JSON, and errors as ``{"error": message}``."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sightline import jsonio
from sightline.inference.masks import MaskPrediction
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.results import Prediction

RETRY = {"Retry-After": "1"}


class JSONResponse(Response):
    """Strict JSON of any value; Starlette's fails for lone surrogates, which clients may send."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return jsonio.encode_text(jsonio.dumps(content, separators=(",", ":")))


def make_error_response(error: HTTPException) -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def check_query(request: Request, *names: str) -> None:
    """Raise 400 if the address of a request has a parameter that looks like a misspelling of one of `names`.

    Other unknown parameters are ignored: a gateway may pass on its own, such as a key.
    """
    for name in set(request.query_params) - set(names):
        if near := get_close_matches(name[:80].lower(), names, n=1):
            raise HTTPException(400, f"There is no query parameter {name[:80]!r} here. Did you mean {near[0]!r}?")


def refuse_busy() -> HTTPException:
    """Return the error for a request that must wait until others have ended."""
    return HTTPException(503, "Too many images are waiting: try again in a moment.", RETRY)


def check_prediction(prediction: Prediction | MaskPrediction, image: str = "the image", advice: str = "") -> None:
    """Raise 500 if the model produced no prediction, and 400 with `advice` if `image` cannot be read."""
    if prediction.error == NOT_FINITE_REASON:
        raise HTTPException(500, f"There is no prediction for {image}: {prediction.error}.")
    if prediction.error is not None:
        raise HTTPException(400, f"{image.capitalize()} cannot be read: {prediction.error}.{advice}")
