"""Masking of pixels with the mean color, and the class scores of masked images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sightline.prediction.base import Outputs, Predictor, filled, suitable_batch_size


def hidden(pixels: NDArray[np.uint8], masks: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return uint8 [M, H, W, C]: the image [H, W, C] where a mask [M, H, W] is 1, its mean color where it is 0."""
    mean = pixels.mean((0, 1), dtype=np.float32)
    shown = masks[..., None].astype(np.float32)
    mixed: NDArray[np.float32] = mean + shown * (pixels - mean)
    return np.rint(mixed).astype(np.uint8)


def scores(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    masks: Iterable[NDArray[np.floating]],
    score: Callable[[Outputs], NDArray[np.floating]],
    advance: Callable[[int], None] = lambda _count: None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Yield batches of (masks [M, H, W], scores [M]) for an iterable of masks [H, W].

    The predictor gets batches of constant size. `advance` is called with the number of masks in each.
    """
    source, size = iter(masks), suitable_batch_size(predictor.preprocess)
    while batch := list(islice(source, size)):
        stacked = np.stack(batch).astype(np.float32)
        found = filled(lambda rows: score(predictor.outputs(rows)), hidden(pixels, stacked), size)
        advance(len(batch))
        yield stacked, np.asarray(found, np.float64)


def log_odds(number: int) -> Callable[[Outputs], NDArray[np.float64]]:
    """Return the score ``log(p / (1 - p))`` of class `number`, from the logits: p near 1 in float32 saturates."""

    def score(found: Outputs) -> NDArray[np.float64]:
        logits = found.logits.astype(np.float64)
        others = np.delete(logits, number, axis=1)
        if not others.shape[1]:
            return np.zeros(len(logits))
        greatest = others.max(1, keepdims=True)
        return np.asarray(logits[:, number] - greatest[:, 0] - np.log(np.exp(others - greatest).sum(1)))

    return score


def probability(number: int) -> Callable[[Outputs], NDArray[np.float32]]:
    """Return a score function: the probability of class `number`."""
    return lambda found: found.probabilities[:, number]
