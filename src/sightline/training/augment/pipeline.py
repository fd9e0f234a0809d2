"""Data augmentation: parameters are sampled on the host and applied inside the compiled training step.

The parameters of an image depend only on (seed, epoch, its position in the split), not on the order of the batches or
the number of threads. Only the image that it is mixed with depends on its batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.config import AugmentConfig
from sightline.seeding import make_generator
from sightline.training.augment import color, geometry, mixup, randaugment, random_erasing
from sightline.training.augment.geometry import is_geometric

MATRIX = slice(0, 6)
FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE = 6, 7, 8, 9, 10
ERASING = slice(11, 16)
MIXING = slice(16, 16 + mixup.NUM_COLUMNS)
RANDAUGMENT = slice(MIXING.stop, None)
_NUM_UNIFORMS = 12  # uniform numbers sampled per image, used or not, so that settings do not affect one another


def count_columns(config: AugmentConfig) -> int:
    """Return the number of columns that `sample_params` returns."""
    return int(RANDAUGMENT.start) + 2 * config.randaugment


def is_enabled(config: AugmentConfig) -> bool:
    """Return whether any augmentation is enabled."""
    return bool(
        is_geometric(config)
        or config.horizontal_flip
        or _uses_color(config)
        or config.erasing_probability
        or mixup.is_mixing(config)
    )


def without_mixing(config: AugmentConfig) -> AugmentConfig:
    """Return `config` without mixup and CutMix."""
    return replace(config, mixup=0.0, cutmix=0.0)


def _uses_color(config: AugmentConfig) -> bool:
    return bool(config.brightness or config.contrast or config.saturation or config.hue or config.randaugment)


def sample_params(
    config: AugmentConfig, num_images: int, size: tuple[int, ...], seed: int, epoch: int
) -> NDArray[np.float32]:
    """Sample parameters for `num_images` images of `size` (height, width, ...) in one epoch: float32 [count, columns].

    Columns: the affine map from output to input pixels (see `geometry`), whether to flip (0 or 1; the map includes the
    flip where one is applied), brightness offset (0 to 255 scale), contrast and saturation factors, hue shift, the box
    to erase and its fill value, the mixing parameters, then the operations of `randaugment`.
    """
    u = make_generator(seed, "augment", epoch).random((num_images, _NUM_UNIFORMS))
    signed_uniforms = 2 * u - 1
    image_size = (size[0], size[1])
    flipped, flipped_vertically = _sample_flips(config, u[:, 0], seed, epoch), config.vertical_flip & (u[:, 10] < 0.5)
    params = np.zeros((num_images, count_columns(config)), np.float32)
    params[:, [0, 4]] = 1
    if is_geometric(config):
        crop_offsets = geometry.sample_crops(config, num_images, image_size, seed, epoch)
        params[:, MATRIX] = geometry.build_matrices(
            config, signed_uniforms, (flipped, flipped_vertically), crop_offsets, image_size
        )
    params[:, FLIP] = flipped
    params[:, BRIGHTNESS] = 255 * config.brightness * signed_uniforms[:, 7]
    params[:, CONTRAST] = 1 + config.contrast * signed_uniforms[:, 8]
    params[:, SATURATION] = 1 + config.saturation * signed_uniforms[:, 9]
    params[:, HUE] = config.hue * signed_uniforms[:, 11]
    if config.erasing_probability:
        params[:, ERASING] = random_erasing.sample_boxes(config, num_images, image_size, seed, epoch)
    params[:, MIXING] = [1, 1, 0, 0, 0, 0]
    if mixup.is_mixing(config):
        params[:, MIXING] = mixup.sample_mixing(config, num_images, image_size, seed, epoch)
    params[:, RANDAUGMENT] = randaugment.sample_operations(config, num_images, seed, epoch) if config.randaugment else 0
    return params


def _sample_flips(config: AugmentConfig, uniforms: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.bool_]:
    """Return which images are flipped left to right; `uniforms` is uniform in [0, 1), float64 [N].

    With alternating flips, any two consecutive epochs show an image both ways (Jordan, 2024, arXiv:2404.00498).
    """
    if config.horizontal_flip and config.alternating_flip:
        first = make_generator(seed, "augment", "flip").random(len(uniforms)) < 0.5
        return np.asarray(first ^ bool(epoch % 2))
    return np.asarray(config.horizontal_flip & (uniforms < 0.5))


def apply(config: AugmentConfig, pixels: Any, params: Any) -> Any:
    """Apply the parameters `params` to uint8 `pixels` [N, H, W, C] (symbolic or not); returns uint8 of the same shape.

    The order is: geometry, color, RandAugment, erasing, mixing.
    """
    ops = backend.keras().ops
    if config.horizontal_flip and not is_geometric(config):
        flipped = ops.flip(pixels, axis=2)
        pixels = ops.where(ops.reshape(params[:, FLIP], (-1, 1, 1, 1)) > 0, flipped, pixels)
    if is_geometric(config) or _uses_color(config):
        pixels = _apply_float_ops(config, ops.cast(pixels, "float32"), params)
    if config.erasing_probability:
        pixels = random_erasing.erase_boxes(pixels, params[:, ERASING])
    if mixup.is_mixing(config):
        pixels = mixup.mix_images(config, pixels, params[:, MIXING])
    return pixels


def _apply_float_ops(config: AugmentConfig, x: Any, params: Any) -> Any:
    """Apply geometry, color and RandAugment to float32 `x` [N, H, W, C] in [0, 255]; returns uint8."""
    ops = backend.keras().ops
    if is_geometric(config):
        x = geometry.resample(x, params[:, MATRIX], config.fill_mode)
    if config.hue:
        x = color.shift_hue(x, _broadcast_column(params, HUE))
    if config.saturation and x.shape[-1] == 3:
        x = color.adjust_saturation(x, _broadcast_column(params, SATURATION))
    if config.contrast:
        x = color.adjust_contrast(x, _broadcast_column(params, CONTRAST))
    if config.brightness:
        x = x + _broadcast_column(params, BRIGHTNESS)
    if config.randaugment:
        x = randaugment.apply_operations(config, x, params[:, RANDAUGMENT])
    return ops.cast(ops.clip(ops.round(x), 0, 255), "uint8")


def mix_labels(soft_labels: NDArray[np.float32], params: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the soft labels [N, K] of a batch that is augmented with the parameters `params`."""
    return mixup.mix_labels(soft_labels, params[:, MIXING])


def _broadcast_column(params: Any, index: int) -> Any:
    return backend.keras().ops.reshape(params[:, index], (-1, 1, 1, 1))
