"""Geometric augmentation: affine maps, sampled on the host and applied in the compiled step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.seeding import make_generator

Matrices = NDArray[np.float64]


def is_geometric(config: AugmentConfig) -> bool:
    """Return whether any geometric augmentation other than the horizontal flip is enabled."""
    return bool(
        config.rotation or config.translation or config.zoom or config.shear or config.crop or config.vertical_flip
    )


def build_matrices(
    config: AugmentConfig,
    signed_uniforms: NDArray[np.float64],
    flipped: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    crop_offsets: NDArray[np.float64],
    size: tuple[int, int],
) -> Matrices:
    """Return the affine maps from output to input pixels, 2x3 matrices over (x, y, 1) in row order: float64 [N, 6].

    As in Keras' `ImageDataGenerator`: rotation, shift, shear and zoom about the center, each axis zoomed independently,
    then the flips. The crop, `crop_offsets` in pixels (x, y), is applied between zoom and flips.

    `signed_uniforms` holds uniform numbers in [-1, 1), in the columns that `augmentation.sample_params` assigns;
    `flipped` are the masks of images flipped left to right and top to bottom; `size` is (height, width).
    """
    height, width = size
    zero, one = np.zeros(len(signed_uniforms)), np.ones(len(signed_uniforms))

    def matrix(rows: list[list[NDArray[np.float64]]]) -> Matrices:
        return np.stack([np.stack(row, -1) for row in rows], -2)  # [N, 3, 3] over (x, y, 1), as in Keras

    angle, shear = np.deg2rad(config.rotation) * signed_uniforms[:, 1], np.deg2rad(config.shear) * signed_uniforms[:, 2]
    shift_y, shift_x = (
        config.translation * height * signed_uniforms[:, 3],
        config.translation * width * signed_uniforms[:, 4],
    )
    zoom_y, zoom_x = 1 + config.zoom * signed_uniforms[:, 5], 1 + config.zoom * signed_uniforms[:, 6]
    cos, sin = np.cos(angle), np.sin(angle)
    rotate = matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])
    translate = matrix([[one, zero, shift_x], [zero, one, shift_y], [zero, zero, one]])
    shear_matrix = matrix([[one, -np.sin(shear), zero], [zero, np.cos(shear), zero], [zero, zero, one]])
    scale = matrix([[zoom_x, zero, zero], [zero, zoom_y, zero], [zero, zero, one]])
    crop = matrix([[one, zero, crop_offsets[:, 0]], [zero, one, crop_offsets[:, 1]], [zero, zero, one]])
    left_right, top_bottom = (np.where(mask, -1.0, 1.0) for mask in flipped)
    flip = matrix([[left_right, zero, zero], [zero, top_bottom, zero], [zero, zero, one]])
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    from_center = np.array([[1, 0, center_x], [0, 1, center_y], [0, 0, 1]])
    to_center = np.array([[1, 0, -center_x], [0, 1, -center_y], [0, 0, 1]])
    combined = from_center @ (rotate @ translate @ shear_matrix @ scale @ crop @ flip) @ to_center
    return np.asarray(combined[:, :2].reshape(len(signed_uniforms), 6))


def sample_crops(
    config: AugmentConfig, count: int, size: tuple[int, int], seed: int, epoch: int
) -> NDArray[np.float64]:
    """Sample the offset of each crop from the center, in whole pixels (x, y): float64 [count, 2].

    Padding an image by ``p = round(crop * side)`` pixels and cropping it to its size (He et al., 2015,
    arXiv:1512.03385, section 4.2, with p = 4 of 32) is the same as shifting it by -p to p pixels.
    """
    max_offset = np.round(config.crop * np.array(size[::-1]))
    u = make_generator(seed, "augment", "crop", epoch).random((count, 2))
    return np.asarray(np.floor(u * (2 * max_offset + 1)) - max_offset)


def resample(x: Any, matrix: Any, fill: str) -> Any:
    """Resample float32 `x` [N, H, W, C] bilinearly by `matrix` [N, 6], the map from output to input pixels."""
    ops = backend.keras().ops
    transform = ops.concatenate([matrix, ops.zeros_like(matrix[:, :2])], axis=1)
    return ops.image.affine_transform(x, transform, interpolation="bilinear", fill_mode=fill)
