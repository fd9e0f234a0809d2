"""Advice on arrays that are not uint8 pixels: fractions, wide integers, channels first, lists, text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = (1, 3, 4)  # grayscale, RGB, RGBA


def suggest_conversion(array: Any) -> str:
    """Return ``": "`` and how to convert `array` to uint8 pixels, channels last; "" if there is no suggestion.

    >>> suggest_conversion(np.full((2, 8, 8, 3), 0.5))
    ": its values are fractions, so use (255 * x).round().astype('uint8')"
    >>> suggest_conversion(np.zeros((3, 8, 8), np.uint8))
    ': the channels come first, so use x.transpose(1, 2, 0)'
    >>> suggest_conversion(np.zeros((8, 8, 3), np.uint8))
    ''
    >>> suggest_conversion(np.zeros((4, 4, 2), np.uint8))
    ': it has 2 channels, so choose one of them, as in x[..., 0]'
    """
    if isinstance(array, list | tuple):
        return ": for nested lists, use np.array(x, 'uint8')"
    if not isinstance(array, np.ndarray):
        return ""
    hint = _suggest_dtype(array) or _suggest_layout(array.shape)
    return f": {hint}" if hint else ""


def _suggest_dtype(array: NDArray[Any]) -> str:
    if array.dtype == np.uint8 or not array.size:
        return ""
    if array.dtype.kind not in "biuf":
        return "it does not hold numbers"
    if array.dtype == np.bool_:
        return "use 255 * x.astype('uint8')"
    low, high = array.min(), array.max()
    if low < 0 or not high <= 255:
        extent = f"its values run from {low:.4g} to {high:.4g}, so scale them to 0 to 255 and use .astype('uint8')"
        return "it holds NaN, which is not a brightness: find out where it comes from" if np.isnan(high) else extent
    if array.dtype.kind == "f" and high <= 1:
        return "its values are fractions, so use (255 * x).round().astype('uint8')"
    return "use x.round().astype('uint8')" if array.dtype.kind == "f" else "use x.astype('uint8')"


def _suggest_layout(shape: tuple[int, ...]) -> str:
    if len(shape) not in (3, 4) or shape[-1] in CHANNELS:
        return ""
    if 1 < shape[-1] < min(16, *shape[-3:-1]):  # as in scientific images
        choice = "one of them, as in x[..., 0]" if shape[-1] == 2 else "three of them, as in x[..., :3]"
        return f"it has {shape[-1]} channels, so choose {choice}"
    if shape[-3] not in CHANNELS:
        return ""
    axes = "1, 2, 0" if len(shape) == 3 else "0, 2, 3, 1"
    return f"the channels come first, so use x.transpose({axes})"
