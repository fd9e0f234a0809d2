"""``POST /predict`` of a segmentation model: run lengths as JSON, or a mask or an overlay as a PNG file."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sightline import jsonio
from sightline.errors import ImageError
from sightline.inference.mask_colors import list_colors
from sightline.inference.mask_quality import decide_mask
from sightline.inference.masks import (
    MaskPrediction,
    PixelPrediction,
    describe_mask,
    encode_mask,
    encode_runs,
    overlay_mask,
    resize_mask,
    restore_size,
    shrink_mask,
)
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.results import Prediction
from sightline.inference.stream import SizedImage
from sightline.inference.tiling import TiledMask, scale_spec
from sightline.preprocessing import encode_png, inspect_image
from sightline.serve.access import DETAILS
from sightline.serve.batcher import gather_limited
from sightline.serve.limits import MAX_MASKS
from sightline.serve.responses import JSONResponse, check_prediction
from sightline.serve.running_models import RunningModel
from sightline.serve.uploads import read_upload

PNG = "image/png"


async def respond_with_masks(request: Request, running: RunningModel) -> Response:
    """Return the masks of the images in a request, in the requested format."""
    classifier, identity = running.served.classifier, {"model": running.served.identity}
    has_overlay = _read_overlay(request)
    running.check_free()
    upload = await read_upload(request)
    if has_overlay or _accepts_png(request):
        content = upload.get_single()
        prediction = await predict_mask(running, content)
        check_prediction(prediction, advice=upload.advice)
        image = await _encode(running, content, prediction, has_overlay=has_overlay)
        return Response(image, headers={DETAILS: _describe_briefly(prediction, identity)}, media_type=PNG)
    if len(upload.files) > MAX_MASKS:
        raise HTTPException(400, f"The request has {len(upload.files)} images, but may have at most {MAX_MASKS}.")

    async def describe(number: int) -> dict[str, Any]:
        prediction = await predict_mask(running, upload.files[number])
        if prediction.error == NOT_FINITE_REASON or not upload.is_list:
            check_prediction(prediction, f"image {number}" if upload.is_list else "the image", upload.advice)
        path = {} if upload.names is None else {"path": upload.names[number]}
        return path | await asyncio.to_thread(_describe, prediction, classifier.classes)

    described = await gather_limited(describe, range(len(upload.files)), running.batcher.capacity)
    answer = ({"predictions": described} if upload.is_list else described[0]) | identity
    return await asyncio.to_thread(JSONResponse, answer)  # run lengths may be millions of numbers


async def predict_mask(running: RunningModel, content: bytes | bytearray) -> MaskPrediction:
    """Return the mask of an encoded image, as `inference.masks.predict_masks` does, or the error if there is none."""
    async with running.tiling if running.served.classifier.tile else nullcontext():
        return await _predict_mask(running, content)


async def _predict_mask(running: RunningModel, content: bytes | bytearray) -> MaskPrediction:
    classifier, batcher = running.served.classifier, running.batcher
    preprocess, scale = classifier.preprocess, classifier.tile
    try:
        pixels = await batcher.decode(content)
        header = inspect_image(content, preprocess.page, preprocess.max_megapixels)  # harmless: decoded before
        if scale:
            with batcher.count_unreadable():
                spec = scale_spec(preprocess, header.width, header.height, scale)
            pixels = await batcher.decode(content, spec)
    except ImageError as error:
        return MaskPrediction("", error=str(error))
    size = header.width, header.height
    if scale:
        prediction = await _predict_tiles(running, pixels)
    else:
        prediction = await batcher.predict_pixels(SizedImage(pixels, *size))
    log_id, quality = prediction.path, prediction.quality
    if not isinstance(prediction, PixelPrediction) or (mask := prediction.mask) is None or quality is None:
        return MaskPrediction("", error=prediction.error)

    def complete() -> MaskPrediction:
        full = resize_mask(mask, *size) if scale else restore_size(preprocess, mask, *size)
        return describe_mask(log_id, full, quality, classifier.classes, classifier.thresholds)

    return await asyncio.to_thread(complete)


async def _predict_tiles(running: RunningModel, pixels: NDArray[np.uint8]) -> Prediction:
    """Return the mask of all `pixels` as a `PixelPrediction`, or its error; the tiles are counted as one image."""
    classifier, batcher = running.served.classifier, running.batcher
    tiled = await asyncio.to_thread(TiledMask, pixels, classifier.preprocess, len(classifier.classes))
    failure = Prediction("", error=NOT_FINITE_REASON)
    try:
        for row in tiled.rows:
            tiles = await gather_limited(batcher.predict_tile, tiled.cut_row(row), batcher.capacity)
            probabilities = [tile for tile in tiles if tile is not None]
            if len(probabilities) < len(tiles):
                batcher.count_tiled(failure)
                return failure
            await asyncio.to_thread(tiled.add_row, row, probabilities)
    except Exception:
        batcher.count_tiled(failure)
        raise
    decision = decide_mask(tiled.quality, classifier.thresholds)
    prediction = PixelPrediction("", decision=decision, quality=tiled.quality, mask=tiled.mask)
    batcher.count_tiled(prediction)
    return prediction


def _describe_briefly(prediction: MaskPrediction, identity: dict[str, Any]) -> str:
    """Return the results that a PNG file cannot contain, as JSON in ASCII for a header."""
    optional = {"log_id": prediction.path or None, "quality": prediction.quality, "decision": prediction.decision}
    fields = {name: value for name, value in optional.items() if value is not None}
    return jsonio.dumps(fields | identity, ensure_ascii=True, separators=(",", ":"))


def _describe(prediction: MaskPrediction, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON that ``predict --masks`` prints and the run lengths of each class, or only the error if any.

    The path of a prediction is its id in the feature log, "" without one.

    `rle` is COCO's uncompressed encoding, as returned by `inference.masks.encode_runs`, at the size of the image.
    """
    content = prediction.to_dict()
    log_id = content.pop("path")
    content |= {"log_id": log_id} if log_id else {}
    if prediction.mask is None:
        return content
    runs, colors = encode_runs(prediction.mask), list_colors(len(classes))
    masks = [
        {
            "label": label,
            "value": (value := classes.index(label)),
            "color": colors[value],
            "rle": {"size": list(prediction.mask.shape), "counts": runs[value]},
        }
        for label, _ in prediction.areas
    ]
    return content | {"masks": masks}


async def _encode(
    running: RunningModel, content: bytes | bytearray, prediction: MaskPrediction, *, has_overlay: bool
) -> bytes:
    classifier, mask = running.served.classifier, prediction.mask
    count = len(classifier.classes)
    assert mask is not None
    if not has_overlay:
        return await asyncio.to_thread(encode_mask, mask, count)
    small = await asyncio.to_thread(shrink_mask, mask)
    pixels = await running.batcher.decode(content, classifier.preprocess.with_size(*small.shape))
    return await asyncio.to_thread(lambda: encode_png(overlay_mask(pixels, small, count)))


def _accepts_png(request: Request) -> bool:
    """Return whether the client explicitly accepts PNG; ``*/*`` means JSON."""
    return any(kind.partition(";")[0].strip() == PNG for kind in request.headers.get("accept", "").lower().split(","))


def _read_overlay(request: Request) -> bool:
    text = request.query_params.get("overlay", "false")
    if text not in {"true", "false"}:
        raise HTTPException(400, f"overlay is {text[:80]!r}: expected true or false.")
    return text == "true"
