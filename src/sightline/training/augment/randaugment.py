"""RandAugment (Cubuk et al., 2019, arXiv:1909.13719): random operations from a list, all with the same magnitude.

It implements thirteen of the paper's fourteen operations with AutoAugment's ranges (at the maximum magnitude, 10):
identity, auto-contrast, rotate (30 degrees), solarize (every level), color, contrast, brightness and sharpness (0.9 in
either direction), posterize (down to 4 bits), shear x and y (0.3), translate x and y (0.45 of the side). Equalize is
left out: it needs a histogram of every channel of every image in every step.

Pixels beyond the border follow `augment.fill_mode` (the paper uses gray), and shears are about the center.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.training.augment.augmentation import Augmentation, register_augmentation
from sightline.training.augment.color import to_grayscale
from sightline.training.augment.geometry import resample

OPERATIONS = (
    "identity", "auto_contrast", "rotate", "solarize", "color", "posterize", "contrast", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
_MAX_OPERATIONS = 8  # operations; numbers are sampled for all of them, so that a longer chain starts like a shorter one
_SMOOTH_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH


def _apply_operation(x: Any, operation: Any, strength: Any, fill: str) -> Any:
    """Compute every operation for every image and select the sampled one, since a compiled step has static shapes."""
    ops = backend.keras().ops
    low, high = ops.min(x, axis=(1, 2), keepdims=True), ops.max(x, axis=(1, 2), keepdims=True)
    stretched = ops.where(high > low, (x - low) * 255 / ops.maximum(high - low, 1.0), x)
    magnitude = ops.abs(strength)
    step = 2.0 ** ops.round(4 * magnitude)
    results = {
        "auto_contrast": stretched,
        "solarize": ops.where(x < 256 * (1 - magnitude), x, 255 - x),
        "posterize": ops.floor(x / step) * step,
        "color": _blend(x, to_grayscale(x), strength),
        "contrast": _blend(x, ops.round(ops.mean(to_grayscale(x), axis=(1, 2, 3), keepdims=True)), strength),
        "brightness": x * (1 + 0.9 * strength),
        "sharpness": _blend(x, _smooth_image(x), strength),
    }
    result = resample(x, _build_matrices(operation[:, 0, 0, 0], strength[:, 0, 0, 0], x.shape[1], x.shape[2]), fill)
    for name, values in results.items():
        result = ops.where(ops.equal(operation, OPERATIONS.index(name)), values, result)
    return result


def _blend(x: Any, reference: Any, strength: Any) -> Any:
    return reference + (x - reference) * (1 + 0.9 * strength)


def _smooth_image(x: Any) -> Any:
    """Return `x` smoothed like Pillow's SMOOTH, which does not change the border."""
    ops = backend.keras().ops
    height, width, channels = x.shape[1:]
    kernel = ops.convert_to_tensor(np.tile(_SMOOTH_KERNEL[:, :, None, None], (1, 1, channels, 1)))
    interior = np.zeros((1, height, width, 1), bool)
    interior[:, 1:-1, 1:-1] = True
    smooth = ops.depthwise_conv(x, kernel, padding="same", data_format="channels_last")
    return ops.where(ops.convert_to_tensor(interior), smooth, x)


def _build_matrices(operation: Any, strength: Any, height: int, width: int) -> Any:
    """Return the affine maps [N, 6] from output to input pixels; the identity for non-geometric operations."""
    ops = backend.keras().ops

    def amount(name: str, maximum: float) -> Any:
        return ops.where(ops.equal(operation, OPERATIONS.index(name)), maximum * strength, ops.zeros_like(strength))

    angle = amount("rotate", math.radians(30))
    cos, sin = ops.cos(angle), ops.sin(angle)
    along_x, along_y = amount("shear_x", 0.3) - sin, amount("shear_y", 0.3) + sin
    x, y = (width - 1) / 2, (height - 1) / 2
    from_x = amount("translate_x", 0.45 * width) + x - cos * x - along_x * y
    from_y = amount("translate_y", 0.45 * height) + y - along_y * x - cos * y
    return ops.stack([cos, along_x, from_x, along_y, cos, from_y], axis=1)


@register_augmentation("randaugment")
class RandAugment(Augmentation):
    """A chain of random operations; a longer chain starts like a shorter one."""

    position = 400

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether there are any operations."""
        return config.randaugment > 0

    def count_columns(self, config: AugmentConfig) -> int:
        """Return two per operation: its index and its signed strength."""
        return 2 * config.randaugment

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return n pairs (operation index, signed strength in [-1, 1]) for each image: float64 [num_images, 2 * n]."""
        del size
        u = self.make_uniforms(num_images, 2 * _MAX_OPERATIONS, seed, epoch)
        u = u.reshape(num_images, _MAX_OPERATIONS, 2)[:, : config.randaugment]
        strength = config.randaugment_magnitude / 10 * np.where(u[..., 1] < 0.5, -1, 1)
        return np.stack([np.floor(len(OPERATIONS) * u[..., 0]), strength], -1).reshape(num_images, -1)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return float32 `pixels` [N, H, W, C] after the operations in `params`: integral values in [0, 255]."""
        ops = backend.keras().ops
        for number in range(config.randaugment):
            operation, strength = (ops.reshape(params[:, 2 * number + i], (-1, 1, 1, 1)) for i in (0, 1))
            pixels = _apply_operation(ops.clip(ops.round(pixels), 0, 255), operation, strength, config.fill_mode)
        return ops.clip(ops.round(pixels), 0, 255)
