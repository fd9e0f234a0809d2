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
from sightline.randomness import generator
from sightline.training.patches import inside

COLUMNS = 6  # of the array that `mixtures` returns
_SHARE, _BLEND, _BOX = 0, 1, slice(2, 6)


def mixes(config: AugmentConfig) -> bool:
    """Return whether mixup or CutMix is enabled."""
    return bool(config.mixup or config.cutmix)


def mixtures(config: AugmentConfig, count: int, size: tuple[int, int], seed: int, epoch: int) -> NDArray[np.float64]:
    """Sample mixing parameters for `count` images of `size` (height, width): float64 [count, 6].

    Columns: the weight of the image's own label; the weight of its own pixels; the box (top, left, bottom, right) that
    its partner covers. Each image has its own weight from Beta(alpha, alpha); for CutMix, the label's weight is the
    fraction of the area outside the box, after clipping it to the border and rounding it to whole pixels.
    """
    from scipy.special import betaincinv  # comes with scikit-learn

    height, width = size
    u = generator(seed, "augment", "mixing", epoch).random((count, 4))
    chance = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    paste = u[:, 0] < chance
    alpha = np.where(paste, config.cutmix, config.mixup)
    share = betaincinv(alpha, alpha, u[:, 1])
    half = np.stack([height, width], -1) * np.sqrt(1 - share)[:, None] / 2
    middle = u[:, 2:] * [height, width]
    low = np.clip(np.round(middle - half), 0, size)
    high = np.clip(np.round(middle + half), 0, size)
    box = np.where(paste[:, None], np.concatenate([low, high], 1), 0.0)
    kept = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (height * width)
    return np.stack([np.where(paste, kept, share), np.where(paste, 1.0, share), *box.T], 1)


def mix(config: AugmentConfig, pixels: Any, drawn: Any) -> Any:
    """Mix uint8 `pixels` [N, H, W, C] with the parameters `drawn` from `mixtures`, float32 [N, 6]; returns uint8."""
    ops = backend.keras().ops
    partner = ops.roll(pixels, 1, axis=0)
    if config.mixup:
        x, other = ops.cast(pixels, "float32"), ops.cast(partner, "float32")
        blend = ops.reshape(drawn[:, _BLEND], (-1, 1, 1, 1))
        pixels = ops.cast(ops.round(other + (x - other) * blend), "uint8")
    if config.cutmix:
        pixels = ops.where(inside(drawn[:, _BOX], *pixels.shape[1:3]), partner, pixels)
    return pixels


def mix_labels(shares: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the soft labels [N, K] of a batch that `mix` mixes with the same parameters."""
    kept = drawn[:, _SHARE, None]
    return kept * shares + (1 - kept) * np.roll(shares, 1, axis=0)
