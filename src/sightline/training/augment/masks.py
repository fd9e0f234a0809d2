"""Augment masks as their images are: geometry alone, and by the nearest pixel, since classes cannot be mixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.config import AugmentConfig
from sightline.training.augment import pipeline
from sightline.training.augment.geometry import Affine, HorizontalFlip, is_geometric


def transform_masks(
    config: AugmentConfig, masks: NDArray[np.uint8], params: NDArray[np.float32], outside: int
) -> NDArray[np.uint8]:
    """Return `masks` [N, H, W] moved as images are that are augmented with the parameters `params` [N, D].

    Pixels that come from beyond the image become `outside`, whatever fills the image there.
    """
    columns = pipeline.get_columns(config)
    if is_geometric(config):
        matrices = params[:, columns[Affine.name]].astype(np.float64)
        return np.stack([_resample(mask, m, outside) for mask, m in zip(masks, matrices, strict=True)])
    if HorizontalFlip.name in columns:
        flipped = params[:, columns[HorizontalFlip.name]] > 0
        return np.where(flipped[:, :, None], masks[:, :, ::-1], masks)
    return masks


def _resample(mask: NDArray[np.uint8], matrix: NDArray[np.float64], outside: int) -> NDArray[np.uint8]:
    """Resample a mask [H, W] by `matrix` [6], the map from output to input pixels over (x, y, 1) in row order."""
    height, width = mask.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    columns = np.rint(matrix[0] * x + matrix[1] * y + matrix[2]).astype(np.int64)
    rows = np.rint(matrix[3] * x + matrix[4] * y + matrix[5]).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    values = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside, values, np.uint8(outside))
