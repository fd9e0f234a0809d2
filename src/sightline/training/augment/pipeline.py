"""Data augmentation: parameters are sampled on the host and applied inside the compiled training step.

An image's parameters depend only on the seed, the epoch and its position in the split, not on batch order or the number
of threads. Only the image that it is mixed with depends on its batch. `Augmentation` is the base of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.data.masks import VOID
from sightline.training.augment import color, geometry, mixup, randaugment, random_erasing
from sightline.training.augment.augmentation import AUGMENTATIONS, Augmentation

FAMILIES = (color, geometry, mixup, randaugment, random_erasing)
"""The modules that register our own augmentations when they are imported."""


def list_enabled(config: AugmentConfig) -> list[Augmentation]:
    """Return the enabled augmentations in the order in which they are applied.

    Raises `UsageError` for an unknown name in ``augment.custom``.
    """
    names = dict.fromkeys((*AUGMENTATIONS.registered_names, *(entry.name for entry in config.custom)))
    augmentations = [AUGMENTATIONS.find(name) for name in names]
    enabled = [augmentation for augmentation in augmentations if augmentation.is_enabled(config)]
    return sorted(enabled, key=lambda augmentation: augmentation.position)


def is_enabled(config: AugmentConfig) -> bool:
    """Return whether any augmentation is enabled."""
    return bool(list_enabled(config))


def without_mixing(config: AugmentConfig) -> AugmentConfig:
    """Return `config` without mixup and CutMix."""
    return replace(config, mixup=0.0, cutmix=0.0)


def get_columns(config: AugmentConfig) -> dict[str, slice]:
    """Return the columns of `sample_params` that belong to each enabled augmentation, by name."""
    columns, start = {}, 0
    for augmentation in list_enabled(config):
        stop = start + augmentation.count_columns(config)
        columns[augmentation.name], start = slice(start, stop), stop
    return columns


def count_columns(config: AugmentConfig) -> int:
    """Return the number of columns that `sample_params` returns."""
    return max((columns.stop for columns in get_columns(config).values()), default=0)


def sample_params(
    config: AugmentConfig, num_images: int, size: tuple[int, ...], seed: int, epoch: int
) -> NDArray[np.float32]:
    """Sample parameters for `num_images` images of `size` (height, width, ...) in one epoch.

    Returns float32 [num_images, columns]; see `get_columns` for the columns.
    """
    params = np.zeros((num_images, count_columns(config)), np.float32)
    columns = get_columns(config)
    for augmentation in list_enabled(config):
        sampled = augmentation.sample(config, num_images, (size[0], size[1]), seed, epoch)
        params[:, columns[augmentation.name]] = sampled
    return params


def apply(config: AugmentConfig, pixels: Any, params: Any) -> Any:
    """Apply the parameters `params` to uint8 `pixels` [N, H, W, C] (symbolic or not); returns uint8 of the same shape.

    Values are rounded and clipped to [0, 255] once, after all augmentations that compute in float32.
    """
    columns, values = get_columns(config), "uint8"
    for augmentation in list_enabled(config):
        pixels, values = _convert(pixels, values, augmentation.values), augmentation.values
        pixels = augmentation.apply(config, pixels, params[:, columns[augmentation.name]])
    return _convert(pixels, values, "uint8")


def _convert(pixels: Any, values: str, dtype: str) -> Any:
    if values == dtype:
        return pixels
    ops = backend.keras().ops
    if dtype == "float32":
        return ops.cast(pixels, "float32")
    return ops.cast(ops.clip(ops.round(pixels), 0, 255), "uint8")


def mix_labels(
    config: AugmentConfig, soft_labels: NDArray[np.float32], params: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the soft labels [N, K] for a batch that is augmented with the parameters `params`."""
    columns = get_columns(config).get(mixup.Mixing.name)
    if columns is None:
        return soft_labels
    mix = mixup.unite_labels if config.label_mixing == "union" else mixup.mix_labels
    return mix(soft_labels, params[:, columns])


def transform_masks(config: AugmentConfig, masks: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Move `masks` [N, H, W] like images that are augmented with the parameters `params` [N, D].

    Pixels from outside the image become `VOID`, whatever fills the image there. The boxes of CutMix come from the
    previous mask of the batch, as in the images.
    """
    columns = get_columns(config)
    moved = _move_masks(config, masks, params, columns)
    return mixup.mix_masks(moved, params[:, columns[mixup.Mixing.name]]) if mixup.Mixing.name in columns else moved


def _move_masks(
    config: AugmentConfig,
    masks: NDArray[np.uint8],
    params: NDArray[np.float32],
    columns: Mapping[str, slice],
) -> NDArray[np.uint8]:
    if geometry.is_geometric(config):
        matrices = params[:, columns[geometry.Affine.name]].astype(np.float64)
        return np.stack([_resample(mask, m) for mask, m in zip(masks, matrices, strict=True)])
    if geometry.HorizontalFlip.name in columns:
        flipped = params[:, columns[geometry.HorizontalFlip.name]] > 0
        return np.where(flipped[:, :, None], masks[:, :, ::-1], masks)
    return masks


def _resample(mask: NDArray[np.uint8], matrix: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Resample a mask [H, W] by `matrix` [6], the map from output to input pixels over (x, y, 1), row by row."""
    height, width = mask.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    columns = np.rint(matrix[0] * x + matrix[1] * y + matrix[2]).astype(np.int64)
    rows = np.rint(matrix[3] * x + matrix[4] * y + matrix[5]).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    values = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return np.where(inside, values, np.uint8(VOID))
