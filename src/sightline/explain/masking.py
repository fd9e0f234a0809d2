"""Occlusion and RISE: heat maps from the class scores of images with pixels masked by the mean color.

Occlusion (Zeiler and Fergus, 2014, arXiv:1311.2901): the drop of the class score while a rectangle slides over the
image. The score is the log-odds of the class, which does not saturate when the probability is 1.0000.

RISE (Petsiuk, Das and Saenko, 2018, arXiv:1806.07421): for each pixel, the mean probability of the class over the
random masks that leave it visible. Masked pixels have the mean color of the image, not black. The mean probability over
all masks is subtracted, which halves the noise: 0 is a pixel that makes no difference.

For segmentation, the score of a class is the mean over a region: the pixels, bool [H, W], predicted as this class in
the unmasked image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sightline.explain.localization import resize_heat
from sightline.inference.predictor import Outputs, Predictor
from sightline.inference.runner import call_padded, choose_batch_size
from sightline.models.entry import Activation
from sightline.seeding import make_generator

RECTANGLE_FRACTION = 1 / 6  # side of the rectangle, as a fraction of the image's side
POSITIONS = 11  # positions of the rectangle along each side; neighbors overlap by half
MASKS = 1000  # number of random masks
CELLS = 7  # cells of a random mask along each side
VISIBLE = 0.5  # fraction of visible cells


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

    The predictor receives batches of constant size. `advance` is called with the number of masks in each.
    """
    source, size = iter(masks), choose_batch_size(pixels.shape)
    batches = (np.stack(batch).astype(np.float32) for batch in iter(lambda: list(islice(source, size)), []))

    def score_batch(batch: NDArray[np.float32]) -> NDArray[np.floating]:
        return score(predictor.outputs(mask_images(pixels, batch)))

    for batch in batches:
        scores = call_padded(score_batch, batch, size)
        advance(len(batch))
        yield batch, np.asarray(scores, np.float64)


def log_odds_score(
    class_index: int, activation: Activation, region: NDArray[np.bool_] | None
) -> Callable[[Outputs], NDArray[np.float64]]:
    """Return the score ``log(p / (1 - p))`` of class `class_index`, from the logits: p near 1 in float32 saturates.

    `activation` is that of the model: with a sigmoid, the logits are the score.
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


def rise_map(
    predictor: Predictor, pixels: NDArray[np.uint8], class_index: int, seed: int, advance: Callable[[int], None]
) -> NDArray[np.float64]:
    """Return [H, W]: how much higher the probability of class `class_index` is where a pixel is visible."""
    height, width = pixels.shape[:2]
    weighted, visible = np.zeros((height, width)), np.zeros((height, width))
    total = 0.0
    for batch_masks, batch_scores in score_masks(
        predictor, pixels, random_masks(height, width, seed), probability_score(class_index), advance
    ):
        weighted += np.tensordot(batch_scores, batch_masks, 1)
        visible += batch_masks.sum(0, dtype=np.float64)
        total += float(batch_scores.sum())
    return weighted / np.maximum(visible, 1e-9) - total / MASKS


def random_masks(height: int, width: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield smooth random masks [height, width] in [0, 1], the same for every image of this size.

    A coarse binary grid is upsampled bilinearly to one cell more than the image and cropped at a random offset, as in
    the paper.
    """
    rng = make_generator(seed, "rise")
    cell_h, cell_w = -(-height // CELLS), -(-width // CELLS)
    for _ in range(MASKS):
        grid = rng.random((CELLS + 1, CELLS + 1)) < VISIBLE
        top, left = rng.integers(cell_h), rng.integers(cell_w)
        smooth = resize_heat(grid.astype(np.float32), (CELLS + 1) * cell_h, (CELLS + 1) * cell_w)
        yield smooth[top : top + height, left : left + width]


def count_evaluations(height: int, width: int) -> int:
    """Return the number of model evaluations for one image of this size."""
    return 1 + len(_positions(height)) * len(_positions(width))


def occlusion_map(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    class_index: int,
    advance: Callable[[int], None],
    activation: Activation,
    region: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """Return [H, W]: the mean drop of the score of class `class_index` over the rectangles that cover a pixel.

    A rectangle that raises the score counts as 0. `activation`: that of the model; `region`: as in
    `masking`, not empty.
    """
    height, width = pixels.shape[:2]
    places = [(rows, columns) for rows in _positions(height) for columns in _positions(width)]

    def masks() -> Iterator[NDArray[np.float32]]:
        yield np.ones((height, width), np.float32)  # the whole image
        for place in places:
            mask = np.ones((height, width), np.float32)
            mask[place] = 0
            yield mask

    score = log_odds_score(class_index, activation, region)
    masked_scores = np.concatenate([values for _, values in score_masks(predictor, pixels, masks(), score, advance)])
    total, cover_counts = np.zeros((height, width)), np.zeros((height, width))
    for place, value in zip(places, masked_scores[1:], strict=True):
        total[place] += max(masked_scores[0] - value, 0)
        cover_counts[place] += 1
    return total / cover_counts


def _positions(side: int) -> list[slice]:
    """Return the positions of the rectangle along one side, from its start to its end."""
    length = max(1, -(-side // round(1 / RECTANGLE_FRACTION)))
    starts = sorted({round(start) for start in np.linspace(0, side - length, POSITIONS)})
    return [slice(start, start + length) for start in starts]
