"""Check a loaded model: reference examples must give the recorded outputs, and a random image finite numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ImageError, ModelError
from sightline.inference.manifest import IMAGE_TASKS, MASK_TASK, Manifest, ReferenceExample
from sightline.inference.predictor import Predictor, check_finite
from sightline.inference.runner import choose_batch_size

REFERENCE_TOLERANCE = {"float32": 1e-3, "float16": 1e-3, "bfloat16": 1e-3, "int8": 0.1}
"""Largest difference of a reference probability: processors sum in different orders, and int8 rounds differently."""


def hash_pixels(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 of a decoded image uint8 [H, W, C], rows from the top."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def check_reference_examples(manifest: Manifest, files: Mapping[str, bytes], predictor: Predictor) -> None:
    """Raise `ModelError` if a reference example among `files` does not give its recorded pixels and probabilities.

    They are compared in batches of the size for which `check_limits` has computed the memory.
    """
    examples = [example for example in manifest.reference_examples if example.file in files]
    size = choose_batch_size(manifest.preprocess.shape)
    for start in range(0, len(examples), size):
        _check_batch(manifest, files, predictor, examples[start : start + size])


def _check_batch(
    manifest: Manifest, files: Mapping[str, bytes], predictor: Predictor, examples: Sequence[ReferenceExample]
) -> None:
    pixels = []
    for example in examples:
        try:
            pixels.append(manifest.preprocess.decode(files[example.file]))
        except ImageError as error:
            raise ModelError(f"the reference example {example.file} cannot be read: {error}") from error
        if hash_pixels(pixels[-1]) != example.pixels_sha256:
            raise ModelError(
                f"{example.file} decodes to different pixels here than where the model was made: its preprocessing was "
                "changed, or this version of Pillow decodes differently"
            )
    probabilities = average_pixels(predictor.probabilities(np.stack(pixels)))
    if not np.isfinite(probabilities).all():
        raise ModelError("its reference examples give probabilities that are NaN or infinite: its weights are damaged")
    difference = np.abs(probabilities - np.array([example.probabilities for example in examples])).max()
    if not difference <= REFERENCE_TOLERANCE.get(manifest.precision, 1e-3):  # also catches a recorded NaN
        raise ModelError(
            f"its reference examples give probabilities that differ by {difference:.2g} from the recorded ones"
        )


def check_random_image(manifest: Manifest, predictor: Predictor) -> None:
    """Raise `ModelError` if a random image gives NaN or infinity, or outputs that do not match the task."""
    has_masks = check_finite(predictor.outputs, predictor.preprocess).probabilities.ndim == 4
    if manifest.task in ({*IMAGE_TASKS} if has_masks else {MASK_TASK}):
        raise ModelError(
            f"its task is {manifest.task}, but its outputs are those of {'a pixel' if has_masks else 'an image'}"
        )


def average_pixels(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities [N, K]; those of a segmentation model are averaged over the pixels of each image."""
    if probabilities.ndim == 2:
        return probabilities
    means: NDArray[np.float32] = probabilities.mean((1, 2), dtype=np.float64).astype(np.float32)
    return means
