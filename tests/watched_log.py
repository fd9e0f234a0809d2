"""Write a feature log like the server's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sightline as sl
from sightline.inference.decoded_batch import predict_pixels
from sightline.inference.feature_log import FeatureLog


def write_log(classifier: sl.Classifier, path: Path, pixels: NDArray[np.uint8]) -> list[str]:
    """Log images like the server, and return their ids."""
    log = FeatureLog(path, classifier.feature_model_id, classifier.classes, 1 << 26)
    ids = [
        prediction.path
        for start in range(0, len(pixels), 32)
        for prediction in predict_pixels(
            classifier.predictor,
            list(pixels[start : start + 32]),
            top=1,
            thresholds=None,
            interpret=classifier.task.interpret,
            log=log.add,
        )
    ]
    log.close()
    return ids
