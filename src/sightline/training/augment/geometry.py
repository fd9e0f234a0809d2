"""Geometric augmentation: flips, and affine maps sampled on the host and applied in the compiled step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.seeding import make_generator
from sightline.training.augment.augmentation import Augmentation, per_image, register_augmentation

Matrices = NDArray[np.float64]


def is_geometric(config: AugmentConfig) -> bool:
    """Return whether any geometric augmentation other than the horizontal flip is enabled."""
    return bool(
        config.rotation or config.translation or config.zoom or config.shear or config.crop or config.vertical_flip
    )


@register_augmentation("affine")
class Affine(Augmentation):
    """Rotation, translation, zoom, shear, crop and flips as one affine map, so that an image is resampled only once."""

    position = 200

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether any of these except the horizontal flip is enabled."""
        return is_geometric(config)

    def count_columns(self, config: AugmentConfig) -> int:
        """Return 6, the values of a 2x3 matrix."""
        del config
        return 6

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return the maps from output to input pixels, 2x3 matrices over (x, y, 1), row by row: float64 [N, 6]."""
        flips = sample_flips(config, num_images, seed, epoch)
        uniforms = self.make_uniforms(num_images, 7, seed, epoch)
        vertical_flips = config.vertical_flip & (uniforms[:, 6] < 0.5)
        crops = sample_crops(config, num_images, size, seed, epoch)
        return build_matrices(config, 2 * uniforms[:, :6] - 1, (flips, vertical_flips), crops, size)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return float32 `pixels` [N, H, W, C] resampled bilinearly by their matrices `params` [N, 6]."""
        return resample(pixels, params, config.fill_mode)


@register_augmentation("horizontal_flip")
class HorizontalFlip(Augmentation):
    """Flip left to right, exactly; the parameter is 0 or 1. With other geometry, the affine map contains the flip."""

    position = 100
    values = "uint8"

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether the flip is enabled."""
        return config.horizontal_flip

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return 1 for each image that is flipped, else 0: float64 [num_images, 1]."""
        del size
        return sample_flips(config, num_images, seed, epoch)[:, None].astype(np.float64)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return uint8 `pixels` [N, H, W, C], flipped where the parameter is 1."""
        if is_geometric(config):
            return pixels
        ops = backend.keras().ops
        return ops.where(per_image(params) > 0, ops.flip(pixels, axis=2), pixels)


def sample_flips(config: AugmentConfig, num_images: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Return which images are flipped left to right: bool [num_images].

    With alternating flips, two consecutive epochs show an image in both orientations (Jordan, 2024, arXiv:2404.00498).
    """
    if config.horizontal_flip and config.alternating_flip:
        first = make_generator(seed, "augment", "horizontal_flip").random(num_images) < 0.5
        return np.asarray(first ^ bool(epoch % 2))
    uniforms = make_generator(seed, "augment", "horizontal_flip", epoch).random(num_images)
    return np.asarray(config.horizontal_flip & (uniforms < 0.5))


def build_matrices(
    config: AugmentConfig,
    signed_uniforms: NDArray[np.float64],
    flipped: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    crop_offsets: NDArray[np.float64],
    size: tuple[int, int],
) -> Matrices:
    """Return the affine maps from output to input pixels, 2x3 matrices over (x, y, 1), row by row: float64 [N, 6].

    As in Keras' `ImageDataGenerator`: rotation, shift, shear and zoom about the center, each axis zoomed independently,
    then the flips. The crop, `crop_offsets` in pixels (x, y), is applied between zoom and flips.

    `signed_uniforms` are in [-1, 1), float64 [N, 6]: for the angle, the shear, the shifts and the zooms (y, x);
    `flipped` are the masks of images flipped left to right and top to bottom; `size` is (height, width).
    """
    height, width = size
    zero, one = np.zeros(len(signed_uniforms)), np.ones(len(signed_uniforms))

    def matrix(rows: list[list[NDArray[np.float64]]]) -> Matrices:
        return np.stack([np.stack(row, -1) for row in rows], -2)  # [N, 3, 3] over (x, y, 1), as in Keras

    angle, shear = np.deg2rad(config.rotation) * signed_uniforms[:, 0], np.deg2rad(config.shear) * signed_uniforms[:, 1]
    shift_y, shift_x = (
        config.translation * height * signed_uniforms[:, 2],
        config.translation * width * signed_uniforms[:, 3],
    )
    zoom_y, zoom_x = 1 + config.zoom * signed_uniforms[:, 4], 1 + config.zoom * signed_uniforms[:, 5]
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
    if backend.name() == "torch":
        return resample_at_once(x, matrix, fill)
    ops = backend.keras().ops
    transform = ops.concatenate([matrix, ops.zeros_like(matrix[:, :2])], axis=1)
    return ops.image.affine_transform(x, transform, interpolation="bilinear", fill_mode=fill)


def resample_at_once(x: Any, matrix: Any, fill: str) -> Any:
    """Resample as `resample` does, with one operation for all images; `fill` is a mode of ``augment.fill_mode``.

    On PyTorch, Keras resamples one image after the other, with hundreds of operations each: `fast-small` trained at
    only 665 images/s on an H200.
    """
    ops = backend.keras().ops
    height, width, channels = x.shape[1:]
    rows, columns = map(ops.convert_to_tensor, np.mgrid[:height, :width].astype(np.float32))
    m = [ops.reshape(matrix[:, column], (-1, 1, 1)) for column in range(6)]
    corners = [
        _find_neighbors(m[0] * columns + m[1] * rows + m[2], width, fill),
        _find_neighbors(m[3] * columns + m[4] * rows + m[5], height, fill),
    ]
    flat, values = ops.reshape(x, (-1, height * width, channels)), 0.0
    for column, column_weight in corners[0]:
        for row, row_weight in corners[1]:
            positions = ops.reshape(row * width + column, (-1, height * width, 1))
            weights = ops.reshape(row_weight * column_weight, (-1, height * width, 1))
            values += weights * ops.take_along_axis(flat, ops.repeat(positions, channels, axis=2), axis=1)
    return ops.reshape(values, (-1, height, width, channels))


def _find_neighbors(position: Any, size: int, fill: str) -> list[tuple[Any, Any]]:
    """Return the pixels below and above `position` on an axis of `size` pixels, each with its weight."""
    ops = backend.keras().ops
    below = ops.floor(position)
    neighbors = []
    for pixel, weight in ((below, 1 - (position - below)), (below + 1, position - below)):
        inside = weight
        if fill == "constant":
            inside = weight * ops.cast(ops.logical_and(pixel >= 0, pixel <= size - 1), "float32")
        if fill == "reflect":  # repeats the border pixel: 1 0 | 0 1 2
            period = ops.mod(pixel, 2 * size)
            index = ops.minimum(period, 2 * size - 1 - period)
        else:
            index = ops.clip(pixel, 0, size - 1)
        neighbors.append((ops.cast(index, "int32"), inside))
    return neighbors
