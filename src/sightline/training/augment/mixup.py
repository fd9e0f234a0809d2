"""Mixup and CutMix: mix pairs of images and their labels.

Mixup: Zhang et al., 2017, arXiv:1710.09412; CutMix: Yun et al., 2019, arXiv:1905.04899. An image's partner is the
previous one in its batch; the first image's is the last one. In the last step of an epoch, partners may be padding
rows, which are training images too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.training.augment.augmentation import Augmentation, register_augmentation
from sightline.training.augment.random_erasing import compute_box_mask

_LABEL_WEIGHT, _PIXEL_WEIGHT, _BOX = 0, 1, slice(2, 6)
MIN_UNITED = 0.1  # fraction of the mix: an image below it is hardly visible, so its labels would be wrong


def is_mixing(config: AugmentConfig) -> bool:
    """Return whether mixup or CutMix is enabled."""
    return bool(config.mixup or config.cutmix)


def mix_labels(soft_labels: NDArray[np.float32], params: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the soft labels [N, K] for a batch that `Mixing` mixes with the same parameters."""
    label_weight = params[:, _LABEL_WEIGHT, None]
    return label_weight * soft_labels + (1 - label_weight) * np.roll(soft_labels, 1, axis=0)


def unite_labels(targets: NDArray[np.float32], params: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the union of the targets [N, K] of both images, for a batch that `Mixing` mixes.

    An image that makes up less than `MIN_UNITED` of the mix contributes none.
    """
    label_weight = params[:, _LABEL_WEIGHT, None]
    own, other = targets, np.roll(targets, 1, axis=0)
    united = np.where(label_weight > 1 - MIN_UNITED, own, np.where(label_weight < MIN_UNITED, other, 0))
    both = (label_weight >= MIN_UNITED) & (label_weight <= 1 - MIN_UNITED)
    return np.where(both, np.maximum(own, other), united).astype(np.float32)


def mix_masks(masks: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the masks [N, H, W] for a batch mixed by CutMix: a box has the partner's classes."""
    mixed = masks.copy()
    for i, (top, left, bottom, right) in enumerate(params[:, _BOX].astype(np.int64)):
        mixed[i, top:bottom, left:right] = masks[i - 1, top:bottom, left:right]  # the first image's partner is the last
    return mixed


@register_augmentation("mixing")
class Mixing(Augmentation):
    """Mixup and CutMix; the labels, or for CutMix the masks, are mixed with the same parameters."""

    position = 900
    values = "uint8"

    def is_enabled(self, config: AugmentConfig) -> bool:
        """See `is_mixing`."""
        return is_mixing(config)

    def count_columns(self, config: AugmentConfig) -> int:
        """Return 6: two weights and a box."""
        del config
        return 6

    def sample(
        self, config: AugmentConfig, num_images: int, size: tuple[int, int], seed: int, epoch: int
    ) -> NDArray[np.float64]:
        """Return the parameters of `num_images` images of `size` (height, width): float64 [num_images, 6].

        Columns: the weight of the image's own label; the weight of its own pixels; the box (top, left, bottom, right)
        that its partner covers. Each image has its own weight from Beta(alpha, alpha); for CutMix, the label's weight
        is the fraction of the area outside the box, after clipping it to the border and rounding it to whole pixels.
        """
        from scipy.special import betaincinv  # comes with scikit-learn

        height, width = size
        u = self.make_uniforms(num_images, 4, seed, epoch)
        cutmix_probability = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
        use_cutmix = u[:, 0] < cutmix_probability
        alpha = np.where(use_cutmix, config.cutmix, config.mixup)
        weight = betaincinv(alpha, alpha, u[:, 1])
        half_size = np.stack([height, width], -1) * np.sqrt(1 - weight)[:, None] / 2
        center = u[:, 2:] * [height, width]
        low = np.clip(np.round(center - half_size), 0, size)
        high = np.clip(np.round(center + half_size), 0, size)
        box = np.where(use_cutmix[:, None], np.concatenate([low, high], 1), 0.0)
        label_weight = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (height * width)
        return np.stack([np.where(use_cutmix, label_weight, weight), np.where(use_cutmix, 1.0, weight), *box.T], 1)

    def apply(self, config: AugmentConfig, pixels: Any, params: Any) -> Any:
        """Return uint8 `pixels` [N, H, W, C] mixed with their partners' pixels by `params` float32 [N, 6]."""
        ops = backend.keras().ops
        partner = ops.roll(pixels, 1, axis=0)
        if config.mixup:
            x, other = ops.cast(pixels, "float32"), ops.cast(partner, "float32")
            blend = ops.reshape(params[:, _PIXEL_WEIGHT], (-1, 1, 1, 1))
            pixels = ops.cast(ops.round(other + (x - other) * blend), "uint8")
        if config.cutmix:
            pixels = ops.where(compute_box_mask(params[:, _BOX], *pixels.shape[1:3]), partner, pixels)
        return pixels
