"""The page to try a segmentation model: the class of each pixel as a layer over the image, and the class areas."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.errors import ImageError
from sightline.inference.mask_colors import list_colors
from sightline.inference.masks import MaskPrediction, encode_mask, resize_mask
from sightline.preprocessing import fit_size
from sightline.report.doctor_page import encode_thumbnail
from sightline.studio.features import RunModel
from sightline.studio.library import Library
from sightline.studio.pages import Pages, StrictJSONResponse, read_body
from sightline.studio.thumbnails import LARGE
from sightline.studio.trial import MAX_IMAGE, find_position, make_nearest_routes


def make_routes(model: RunModel, library: Library, name: str, pages: Pages) -> list[Route]:
    """Return the routes of the page, and of the predicted masks of the run's own images.

    ``POST /try`` accepts an image, and ``POST /images/ID/mask`` predicts an image of the run; both return the result of
    `describe_mask`, the first also the image. The other routes are the same as for other tasks.
    """

    def page(request: Request) -> Response:
        return pages.render(request, "mask_trial.html.j2", name=name)

    async def predict(request: Request) -> StrictJSONResponse:
        content = await read_body(request, MAX_IMAGE)
        return StrictJSONResponse(await run_in_threadpool(_predict_new, model, content))

    def predict_own(request: Request) -> StrictJSONResponse:
        try:
            content = model.index.read(find_position(model, request))
        except (ImageError, OSError) as error:
            raise HTTPException(400, f"The image cannot be read: {error}.") from None
        return StrictJSONResponse(_predict(model, content)[0])

    return [
        Route("/try", page),
        Route("/try", predict, methods=["POST"]),
        Route("/images/{id:int}/mask", predict_own, methods=["POST"]),
        *make_nearest_routes(model, library),
    ]


def describe_mask(prediction: MaskPrediction, mask: NDArray[np.uint8], classes: tuple[str, ...]) -> dict[str, Any]:
    """Return a predicted `mask`, uint8 [H, W], as a PNG file in base64, with the areas of its classes and its quality.

    Each area has the class, its color and the fraction of the pixels; the largest comes first.
    """
    colors = dict(zip(classes, list_colors(len(classes)), strict=True))
    return {
        "mask": base64.b64encode(encode_mask(mask, len(classes), is_layer=True)).decode(),
        "areas": [{"label": label, "fraction": area, "color": colors[label]} for label, area in prediction.areas],
        "quality": prediction.quality,
        "decision": prediction.decision,
    }


def _predict(model: RunModel, content: bytes | NDArray[np.uint8]) -> tuple[dict[str, Any], tuple[int, int]]:
    """Return the description of the mask of an image, and the width and the height of the layer."""
    classifier = model.classifier
    (prediction,) = classifier.iter_masks([content])
    if prediction.mask is None:
        raise HTTPException(400, f"The mask of the image cannot be predicted: {prediction.error}.")
    height, width = prediction.mask.shape
    size = fit_size(width, height, LARGE)
    return describe_mask(prediction, resize_mask(prediction.mask, *size), classifier.classes), size


def _predict_new(model: RunModel, content: bytes) -> dict[str, Any]:
    values, (width, height) = _predict(model, content)
    pixels = model.classifier.preprocess.with_size(height, width).decode(content)
    return values | {"image": base64.b64encode(encode_thumbnail(pixels)).decode()}
