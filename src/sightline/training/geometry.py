"""Geometric augmentation: affine maps, sampled on the host and applied in the compiled step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.randomness import generator

Matrices = NDArray[np.float64]


def moves(config: AugmentConfig) -> bool:
    """Return whether any geometric augmentation other than the horizontal flip is enabled."""
    return bool(config.rotation or config.shift or config.zoom or config.shear or config.crop or config.flip_vertical)


def matrices(
    config: AugmentConfig,
    signed: NDArray[np.float64],
    mirrored: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    cut: NDArray[np.float64],
    size: tuple[int, int],
) -> Matrices:
    """Return the affine maps from output to input pixels, 2x3 matrices over (x, y, 1) in row order: float64 [N, 6].

    As in Keras' `ImageDataGenerator`: rotation, shift, shear and zoom about the center, each axis zoomed independently,
    then the flips. The crop, `cut` in pixels (x, y), is applied between zoom and flips.

    `signed` holds uniform numbers in [-1, 1), in the columns that `augment.draw` assigns; `mirrored` are the masks of
    images flipped left to right and top to bottom; `size` is (height, width).
    """
    height, width = size
    zero, one = np.zeros(len(signed)), np.ones(len(signed))

    def matrix(rows: list[list[NDArray[np.float64]]]) -> Matrices:
        return np.stack([np.stack(row, -1) for row in rows], -2)  # [N, 3, 3] over (x, y, 1), as in Keras

    angle, shear = np.deg2rad(config.rotation) * signed[:, 1], np.deg2rad(config.shear) * signed[:, 2]
    shift_y, shift_x = config.shift * height * signed[:, 3], config.shift * width * signed[:, 4]
    zoom_y, zoom_x = 1 + config.zoom * signed[:, 5], 1 + config.zoom * signed[:, 6]
    cos, sin = np.cos(angle), np.sin(angle)
    rotate = matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])
    move = matrix([[one, zero, shift_x], [zero, one, shift_y], [zero, zero, one]])
    slant = matrix([[one, -np.sin(shear), zero], [zero, np.cos(shear), zero], [zero, zero, one]])
    scale = matrix([[zoom_x, zero, zero], [zero, zoom_y, zero], [zero, zero, one]])
    crop = matrix([[one, zero, cut[:, 0]], [zero, one, cut[:, 1]], [zero, zero, one]])
    left_right, top_bottom = (np.where(which, -1.0, 1.0) for which in mirrored)
    mirror = matrix([[left_right, zero, zero], [zero, top_bottom, zero], [zero, zero, one]])
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    there = np.array([[1, 0, centre_x], [0, 1, centre_y], [0, 0, 1]])
    back = np.array([[1, 0, -centre_x], [0, 1, -centre_y], [0, 0, 1]])
    whole = there @ (rotate @ move @ slant @ scale @ crop @ mirror) @ back
    return np.asarray(whole[:, :2].reshape(len(signed), 6))


def cuts(config: AugmentConfig, count: int, size: tuple[int, int], seed: int, epoch: int) -> NDArray[np.float64]:
    """Sample the offset of each crop from the center, in whole pixels (x, y): float64 [count, 2].

    Padding an image by ``p = round(crop * side)`` pixels and cropping it to its size (He et al., 2015,
    arXiv:1512.03385, section 4.2, with p = 4 of 32) is the same as shifting it by -p to p pixels.
    """
    reach = np.round(config.crop * np.array(size[::-1]))
    u = generator(seed, "augment", "crop", epoch).random((count, 2))
    return np.asarray(np.floor(u * (2 * reach + 1)) - reach)


def resample(x: Any, matrix: Any, fill: str) -> Any:
    """Resample float32 `x` [N, H, W, C] bilinearly by `matrix` [N, 6], the map from output to input pixels."""
    ops = backend.keras().ops
    whole = ops.concatenate([matrix, ops.zeros_like(matrix[:, :2])], axis=1)
    return ops.image.affine_transform(x, whole, interpolation="bilinear", fill_mode=fill)
