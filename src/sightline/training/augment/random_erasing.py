"""Random erasing (Zhong et al., 2017, arXiv:1708.04896), and masks of boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.seeding import make_generator
from sightline.training.augment.augmentation import Augmentation, register_augmentation

ASPECT = 0.3  # a box's height is between 0.3 and 1 / 0.3 times its width, as in the paper


def compute_box_mask(boxes: Any, height: int, width: int) -> Any:
    """Return the mask of the pixels inside each image's box: bool [N, height, width, 1]."""
    ops = backend.keras().ops
    y, x = np.arange(height, dtype=np.float32)[None], np.arange(width, dtype=np.float32)[None]
    rows = ops.logical_and(ops.less_equal(boxes[:, 0:1], y), ops.greater(boxes[:, 2:3], y))
    columns = ops.logical_and(ops.less_equal(boxes[:, 1:2], x), ops.greater(boxes[:, 3:4], x))
    return ops.logical_and(rows[:, :, None, None], columns[:, None, :, None])


@register_augmentation("erasing")
class RandomErasing(Augmentation):
    """Replace a random box with noise."""

    position = 800
    values = "uint8"

    def is_enabled(self, config: AugmentConfig) -> bool:
        """Return whether the probability is above zero."""
        return config.erasing_probability > 0

    def count_columns(self, config: AugmentConfig) -> int:
        """Return 5: a box and its fill value."""
        del config
        return 5

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return a box to erase and a fill value for each image of `size` (height, width): float64 [num_images, 5].

        The box is empty for images that are not erased. Its area is uniform between the two fractions, its aspect ratio
        log-uniform within what fits the image (the paper samples again instead), its position uniform.
        """
        height, width = size
        u = self.make_uniforms(num_images, 6, seed, epoch)
        least, most = config.erasing_min_area, config.erasing_max_area
        area = np.clip(height * width * (least + (most - least) * u[:, 1]), 1, height * width)
        low = np.clip(np.maximum(ASPECT, area / width**2), None, height**2 / area)
        high = np.maximum(np.minimum(1 / ASPECT, height**2 / area), low)
        aspect = low * (high / low) ** u[:, 2]
        box_height = np.clip(np.round(np.sqrt(area * aspect)), 1, height)
        box_width = np.clip(np.round(area / box_height), 1, width)
        top, left = np.floor(u[:, 3] * (height - box_height + 1)), np.floor(u[:, 4] * (width - box_width + 1))
        boxes = np.stack([top, left, top + box_height, left + box_width, np.floor(256 * u[:, 5])], 1)
        return np.where(u[:, :1] < config.erasing_probability, boxes, 0.0)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return uint8 `pixels` [N, H, W, C] with noise in each image's box; `params` are float32 [N, 5].

        The noise is a constant field plus the image's own fill value (modulo 256): it is uniform and varies by image
        and epoch, and the compiled step needs no random numbers.
        """
        del config
        ops = backend.keras().ops
        height, width, channels = pixels.shape[1:]
        field = make_generator(0, "noise").integers(0, 256, (1, height, width, channels), np.int32)
        fill_value = ops.reshape(ops.cast(params[:, 4], "int32"), (-1, 1, 1, 1))
        noise = ops.cast(ops.add(fill_value, field) % 256, "uint8")
        return ops.where(compute_box_mask(params[:, :4], height, width), noise, pixels)
