"""Random changes of training pictures: drawn on the host by name, applied inside the compiled step.

What happens to a picture depends on (seed, epoch, its position in the part) alone: neither the order of the batches
nor the number of threads changes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.models.build import LUMA
from sightline.randomness import generator

MATRIX = slice(0, 6)
FLIP, BRIGHTNESS, CONTRAST, SATURATION = 6, 7, 8, 9
COLUMNS = 10
_CHANCES = 12  # uniform numbers drawn for each picture, whether used or not: settings do not move one another's


def moves(config: AugmentConfig) -> bool:
    """Tell whether pixels change their places, other than by mirroring left to right."""
    return bool(config.rotation or config.shift or config.zoom or config.shear or config.flip_vertical)


def changes(config: AugmentConfig) -> bool:
    """Tell whether anything is changed at all."""
    return bool(moves(config) or config.flip or config.brightness or config.contrast or config.saturation)


def draw(config: AugmentConfig, count: int, size: tuple[int, ...], seed: int, epoch: int) -> NDArray[np.float32]:
    """Draw the changes of `count` pictures of `size` (height, width, ...) for one epoch: float32 [count, 10].

    Columns: the affine map from output to input pixels (rows of a 2x3 matrix over x, y, 1), whether to mirror (0 or
    1), brightness added (grey levels), contrast and saturation factors. The geometry is that of Keras'
    `ImageDataGenerator`: rotation, shift, shear, zoom in this order about the centre, each axis zoomed by itself.
    """
    u = generator(seed, "augment", epoch).random((count, _CHANCES))
    signed = 2 * u - 1
    out = np.zeros((count, COLUMNS), np.float32)
    out[:, MATRIX] = _matrices(config, signed, u[:, 10] < 0.5, *size[:2])  # half of the time
    out[:, FLIP] = config.flip & (u[:, 0] < 0.5)
    out[:, BRIGHTNESS] = 255 * config.brightness * signed[:, 7]
    out[:, CONTRAST] = 1 + config.contrast * signed[:, 8]
    out[:, SATURATION] = 1 + config.saturation * signed[:, 9]
    return out


def _matrices(
    config: AugmentConfig, signed: NDArray[np.float64], upside: NDArray[np.bool_], height: int, width: int
) -> NDArray[np.float64]:
    n = len(signed)
    angle = np.deg2rad(config.rotation) * signed[:, 1]
    shear = np.deg2rad(config.shear) * signed[:, 2]
    shift_y, shift_x = config.shift * height * signed[:, 3], config.shift * width * signed[:, 4]
    zoom_y, zoom_x = 1 + config.zoom * signed[:, 5], 1 + config.zoom * signed[:, 6]
    zero, one = np.zeros(n), np.ones(n)

    def matrix(rows: list[list[NDArray[np.float64]]]) -> NDArray[np.float64]:
        return np.stack([np.stack(row, -1) for row in rows], -2)  # [n, 3, 3] over (x, y, 1), as Keras has it

    cos, sin = np.cos(angle), np.sin(angle)
    rotate = matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])
    move = matrix([[one, zero, shift_x], [zero, one, shift_y], [zero, zero, one]])
    slant = matrix([[one, -np.sin(shear), zero], [zero, np.cos(shear), zero], [zero, zero, one]])
    mirror = np.where(upside & config.flip_vertical, -1.0, 1.0)
    scale = matrix([[zoom_x, zero, zero], [zero, zoom_y * mirror, zero], [zero, zero, one]])
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    there = np.array([[1, 0, centre_x], [0, 1, centre_y], [0, 0, 1]])
    back = np.array([[1, 0, -centre_x], [0, 1, -centre_y], [0, 0, 1]])
    whole: NDArray[np.float64] = there @ (rotate @ move @ slant @ scale) @ back
    return whole[:, :2].reshape(n, 6)


def apply(config: AugmentConfig, pixels: Any, drawn: Any) -> Any:
    """Apply drawn changes to uint8 `pixels` [N, H, W, C] (symbolic or not); returns uint8 of the same shape."""
    ops = backend.keras().ops
    if config.flip:
        mirrored = ops.flip(pixels, axis=2)
        pixels = ops.where(ops.reshape(drawn[:, FLIP], (-1, 1, 1, 1)) > 0, mirrored, pixels)
    if not (moves(config) or config.brightness or config.contrast or config.saturation):
        return pixels
    x = ops.cast(pixels, "float32")
    if moves(config):
        matrix = ops.concatenate([drawn[:, MATRIX], ops.zeros_like(drawn[:, :2])], axis=1)
        x = ops.image.affine_transform(x, matrix, interpolation="bilinear", fill_mode=config.fill)
    if config.saturation and pixels.shape[-1] == 3:
        grey = ops.sum(x * ops.convert_to_tensor(LUMA, "float32"), axis=-1, keepdims=True)
        x = grey + (x - grey) * _column(drawn, SATURATION)
    if config.contrast:
        mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
        x = mean + (x - mean) * _column(drawn, CONTRAST)
    if config.brightness:
        x = x + _column(drawn, BRIGHTNESS)
    return ops.cast(ops.clip(ops.round(x), 0, 255), "uint8")


def _column(drawn: Any, index: int) -> Any:
    return backend.keras().ops.reshape(drawn[:, index], (-1, 1, 1, 1))
