"""Predictions for one batch of decoded images, as in a server, and its log of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sightline.inference.decisions import Interpreter, predict_class
from sightline.inference.feature_log import AddImage
from sightline.inference.inputs import InputItem
from sightline.inference.mask_quality import estimate_iou
from sightline.inference.masks import PixelPrediction
from sightline.inference.predictor import Predictor
from sightline.inference.results import Prediction, Thresholds
from sightline.inference.runner import ImageOutputs, predict_decoded
from sightline.inference.stream import DecodedItem, SizedImage, get_pixels, make_predictions
from sightline.preprocessing import PreprocessingSpec


def predict_pixels(
    predictor: Predictor,
    images: Sequence[DecodedItem],
    *,
    top: int,
    thresholds: Thresholds | None,
    interpret: Interpreter = predict_class,
    log: AddImage | None = None,
) -> list[Prediction]:
    """Return the predictions for one batch of images decoded with `predictor.preprocess`; their paths are empty.

    A mask is a `PixelPrediction`. With a `log`, the features and probabilities of each image are logged, and its path
    is the id of its log entry. The classes and the quality of a mask exclude the padding of the image if its size is
    known.
    """
    decoded: list[ImageOutputs[InputItem, DecodedItem]] = [
        ImageOutputs(InputItem("", partial(get_pixels, pixels)), pixels) for pixels in images
    ]
    all_outputs = thresholds is not None or log is not None
    batch = predict_decoded(predictor, decoded, get_pixels, all_outputs=all_outputs, size=len(images))
    if log is not None:
        batch = [_log_image(predictor.preprocess, log, image) for image in batch]
    predictions = make_predictions(predictor, batch, top, thresholds, interpret)
    return [
        PixelPrediction.from_prediction(prediction, image.probabilities)
        if image.probabilities is not None and image.probabilities.ndim == 3
        else prediction
        for prediction, image in zip(predictions, batch, strict=True)
    ]


def _log_image(
    preprocess: PreprocessingSpec, log: AddImage, image: ImageOutputs[InputItem, DecodedItem]
) -> ImageOutputs[InputItem, DecodedItem]:
    """Log the outputs for an image, unless it failed, and return them with the log id as their path."""
    rows, quality = image.probabilities, None
    if image.features is None or rows is None or not np.isfinite(image.features).all():
        return image
    if rows.ndim == 3:  # per pixel
        if isinstance(image.decoded, SizedImage):
            rows = preprocess.cut_padding(rows, image.decoded.width, image.decoded.height)
        elif preprocess.resize == "pad":  # an unknown part of the input is padding
            return image
        quality, rows = estimate_iou(rows), rows.mean((0, 1), dtype=np.float64).astype(np.float32)
    return replace(image, item=replace(image.item, path=log(image.features, rows, quality)))
