"""Backbones of `keras.applications`, laid flat into our graph so that each layer can be seen, frozen or cut."""

from __future__ import annotations

from typing import Any

from sightline import backend


def mobilenetv2(x: Any, alpha: float) -> Any:
    """MobileNetV2 without its top; `alpha` scales the width of each layer (0.35: 410,208 parameters)."""
    applications = backend.keras().applications
    return applications.MobileNetV2(input_tensor=x, alpha=alpha, include_top=False, weights=None).output
