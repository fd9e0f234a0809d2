"""Color augmentations: brightness, contrast, saturation and hue."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.preprocessing import LUMA
from sightline.training.augment.augmentation import Augmentation, per_image, register_augmentation


class ColorAugmentation(Augmentation):
    """A change by a parameter: `neutral` plus a uniform number within ±(the setting of the same name) times `scale`."""

    neutral = 0.0
    scale = 1.0

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether the setting is above zero."""
        return self._reach(config) > 0

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return the parameter of each image: float64 [num_images, 1]."""
        del size
        signed_uniforms = 2 * self.make_uniforms(num_images, 1, seed, epoch) - 1
        return self.neutral + self.scale * self._reach(config) * signed_uniforms

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return float32 `pixels` [N, H, W, C] changed by their parameters."""
        del config
        return self.change(pixels, per_image(params))

    @abstractmethod
    def change(self, x: Any, amount: Any) -> Any:
        """Return float32 `x` [N, H, W, C] in [0, 255] changed by `amount` [N, 1, 1, 1]."""

    def _reach(self, config: AugmentConfig) -> float:
        return float(getattr(config, self.name))


@register_augmentation("hue")
class Hue(ColorAugmentation):
    """Rotate the HSV hue; a shift of 1 is a full circle. Grayscale images do not change."""

    position = 300

    def change(self, x: Any, amount: Any) -> Any:
        """Return `x` with its hue shifted by `amount`."""
        ops = backend.keras().ops
        if x.shape[-1] != 3:
            return x
        hsv = ops.image.rgb_to_hsv(x / 255)
        return 255 * ops.image.hsv_to_rgb(ops.concatenate([(hsv[..., :1] + amount) % 1.0, hsv[..., 1:]], axis=-1))


@register_augmentation("saturation")
class Saturation(ColorAugmentation):
    """Scale each pixel's difference from its gray value. Grayscale images do not change."""

    position = 310
    neutral = 1.0

    def change(self, x: Any, amount: Any) -> Any:
        """Return `x` with its saturation multiplied by `amount`."""
        if x.shape[-1] != 3:
            return x
        gray = to_grayscale(x)
        return gray + (x - gray) * amount


@register_augmentation("contrast")
class Contrast(ColorAugmentation):
    """Scale each value's difference from the mean of its image."""

    position = 320
    neutral = 1.0

    def change(self, x: Any, amount: Any) -> Any:
        """Return `x` with its contrast multiplied by `amount`."""
        mean = backend.keras().ops.mean(x, axis=(1, 2, 3), keepdims=True)
        return mean + (x - mean) * amount


@register_augmentation("brightness")
class Brightness(ColorAugmentation):
    """Add the same amount to all values of an image."""

    position = 330
    scale = 255.0

    def change(self, x: Any, amount: Any) -> Any:
        """Return `x` plus `amount`."""
        return x + amount


def to_grayscale(x: Any) -> Any:
    """Return the ITU-R 601-2 luma of each pixel of `x` [N, H, W, C]: [N, H, W, 1]."""
    ops = backend.keras().ops
    return x if x.shape[-1] == 1 else ops.sum(x * ops.convert_to_tensor(LUMA, "float32"), axis=-1, keepdims=True)
