"""Color augmentations inside the compiled step: `x` is float32 [N, H, W, C] in [0, 255], parameters [N, 1, 1, 1]."""

from __future__ import annotations

from typing import Any

from sightline import backend
from sightline.models.build import LUMA


def to_grayscale(x: Any) -> Any:
    """Return the ITU-R 601-2 luma of each pixel: [N, H, W, 1]."""
    ops = backend.keras().ops
    return x if x.shape[-1] == 1 else ops.sum(x * ops.convert_to_tensor(LUMA, "float32"), axis=-1, keepdims=True)


def shift_hue(x: Any, shift: Any) -> Any:
    """Rotate the HSV hue by `shift` (1 is a full circle); grayscale images do not change."""
    ops = backend.keras().ops
    if x.shape[-1] != 3:
        return x
    hsv = ops.image.rgb_to_hsv(x / 255)
    return 255 * ops.image.hsv_to_rgb(ops.concatenate([(hsv[..., :1] + shift) % 1.0, hsv[..., 1:]], axis=-1))


def adjust_saturation(x: Any, factor: Any) -> Any:
    """Scale each pixel's difference from its grayscale value by `factor`."""
    gray = to_grayscale(x)
    return gray + (x - gray) * factor


def adjust_contrast(x: Any, factor: Any) -> Any:
    """Scale each value's difference from the image mean by `factor`."""
    mean = backend.keras().ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return mean + (x - mean) * factor
