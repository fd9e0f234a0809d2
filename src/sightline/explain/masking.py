"""Masking of pixels with the mean color, and the class scores of masked images.

Where each pixel has a class, the score of a class is the mean of its scores over a region: the pixels, bool [H, W],
that are predicted as this class in the image that is not masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sightline.inference.predictor import Outputs, Predictor
from sightline.inference.runner import choose_batch_size, run_batches
from sightline.models.entry import Activation


def mask_images(pixels: NDArray[np.uint8], masks: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return uint8 [M, H, W, C]: the image [H, W, C] where a mask [M, H, W] is 1, its mean color where it is 0."""
    mean = pixels.mean((0, 1), dtype=np.float32)
    visible = masks[..., None].astype(np.float32)
    masked: NDArray[np.float32] = mean + visible * (pixels - mean)
    return np.rint(masked).astype(np.uint8)


def score_masks(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    masks: Iterable[NDArray[np.floating]],
    score: Callable[[Outputs], NDArray[np.floating]],
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Yield batches of (masks [M, H, W], scores [M]) for an iterable of masks [H, W].

    The predictor gets batches of constant size. `advance` is called with the number of masks in each.
    """
    source, size = iter(masks), choose_batch_size(pixels.shape)
    batches = (np.stack(batch).astype(np.float32) for batch in iter(lambda: list(islice(source, size)), []))

    def score_batch(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        return score(predictor.outputs(mask_images(pixels, batch)))

    for batch, scores in run_batches(score_batch, batches, size):
        advance(len(batch))
        yield batch, np.asarray(scores, np.float64)


def log_odds_score(
    class_index: int, activation: Activation, region: NDArray[np.bool_] | None = None
) -> Callable[[Outputs], NDArray[np.float64]]:
    """Return the score ``log(p / (1 - p))`` of class `class_index`, from the logits: p near 1 in float32 saturates.

    `activation` is that of the model: a sigmoid's logits are the score.
    """

    def score(outputs: Outputs) -> NDArray[np.float64]:
        if activation == "sigmoid":
            return outputs.logits[:, class_index].astype(np.float64)
        if region is None:
            return _compute_log_odds(outputs.logits, class_index)
        return np.array([_compute_log_odds(logits[region], class_index).mean() for logits in outputs.logits])

    return score


def _compute_log_odds(logits: NDArray[np.float32], class_index: int) -> NDArray[np.float64]:
    """Return the log-odds of one class, float64 [N], for logits float32 [N, K] whose softmax are the probabilities."""
    others = np.delete(logits.astype(np.float64), class_index, axis=1)
    if not others.shape[1]:
        return np.zeros(len(logits))
    greatest = others.max(1, keepdims=True)
    return np.asarray(logits[:, class_index] - greatest[:, 0] - np.log(np.exp(others - greatest).sum(1)))


def probability_score(
    class_index: int, region: NDArray[np.bool_] | None = None
) -> Callable[[Outputs], NDArray[np.floating]]:
    """Return a score function: the probability of class `class_index`."""
    if region is None:
        return lambda outputs: outputs.probabilities[:, class_index]
    return lambda outputs: outputs.probabilities[:, region, class_index].mean(1, dtype=np.float64)
