"""What a `Classifier` takes and returns: images in any form, their labels, predictions as rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline.errors import DataError, suggest
from sightline.inference.results import Prediction
from sightline.inference.stream import InputItem

ImageLike = str | Path | bytes | NDArray[np.uint8] | Image.Image


def split_images(images: ImageLike | Iterable[ImageLike | InputItem]) -> Iterable[ImageLike | InputItem]:
    """Return one or several images as several; an array is several if it is [N, H, W, C], or [N, H, W] with W > 4."""
    if isinstance(images, np.ndarray):
        one = images.ndim < 3 or (images.ndim == 3 and images.shape[-1] <= 4)
        return [images] if one else list(images)
    return [images] if isinstance(images, str | Path | bytes | Image.Image) else images


def to_class_index(label: Any, classes: Sequence[str]) -> int:
    """Return the index of the class that a label of `Classifier.score` names."""
    if isinstance(label, int):
        numbers = {int(name): k for k, name in enumerate(classes) if name.isdecimal()}
        if label in numbers:
            return numbers[label]
        if not numbers:
            raise DataError(
                f"y holds the number {label}, but the classes are {', '.join(classes[:8])}: give their names, as in "
                "np.array(classes)[y]."
            )
    if str(label) not in classes:
        raise DataError(f"y holds {label!r}, which is no class of the model.{suggest(str(label), classes)}")
    return classes.index(str(label))


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """Return the cells of a prediction in a table."""
    decision = prediction.decision
    return {
        "path": prediction.path,
        "label": prediction.label,
        "probability": prediction.probability,
        "decision": None if decision is None else decision.decision,
        **({} if prediction.error is None else {"error": prediction.error}),  # a column only where there is one
    }
