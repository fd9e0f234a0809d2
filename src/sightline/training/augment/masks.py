"""Augment masks as their images are: by geometry, to the nearest pixel, and by the boxes of CutMix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sightline.config import AugmentConfig
from sightline.data.masks import VOID
from sightline.training.augment import pipeline
from sightline.training.augment.geometry import Affine, HorizontalFlip, is_geometric
from sightline.training.augment.mixup import Mixing, mix_masks


def transform_masks(config: AugmentConfig, masks: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return `masks` [N, H, W] moved as images are that are augmented with the parameters `params` [N, D].

    Pixels that come from beyond the image become `VOID`, whatever fills the image there. The boxes of CutMix come
    from the previous mask of the batch, as those of its images do.
    """
    columns = pipeline.get_columns(config)
    moved = _move_masks(config, masks, params, columns)
    return mix_masks(moved, params[:, columns[Mixing.name]]) if Mixing.name in columns else moved


def _move_masks(
    config: AugmentConfig,
    masks: NDArray[np.uint8],
    params: NDArray[np.float32],
    columns: Mapping[str, slice],
) -> NDArray[np.uint8]:
    if is_geometric(config):
        matrices = params[:, columns[Affine.name]].astype(np.float64)
        return np.stack([_resample(mask, m) for mask, m in zip(masks, matrices, strict=True)])
    if HorizontalFlip.name in columns:
        flipped = params[:, columns[HorizontalFlip.name]] > 0
        return np.where(flipped[:, :, None], masks[:, :, ::-1], masks)
    return masks


def _resample(mask: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resample a mask [H, W] by `matrix` [6], the map from output to input pixels over (x, y, 1) in row order."""
    height, width = mask.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    columns = np.rint(matrix[0] * x + matrix[1] * y + matrix[2]).astype(np.int64)
    rows = np.rint(matrix[3] * x + matrix[4] * y + matrix[5]).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    values = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside, values, np.uint8(VOID))
