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
from sightline.randomness import generator
from sightline.training import colour, geometry, mixing, patches, randaugment
from sightline.training.geometry import moves

MATRIX = slice(0, 6)
FLIP, BRIGHTNESS, CONTRAST, SATURATION, HUE = 6, 7, 8, 9, 10
ERASED = slice(11, 16)
MIXED = slice(16, 16 + mixing.COLUMNS)
CHAIN = slice(MIXED.stop, None)
_CHANCES = 12  # uniform numbers sampled per image, used or not, so that settings do not affect one another


def columns(config: AugmentConfig) -> int:
    """Return the number of columns that `draw` returns."""
    return int(CHAIN.start) + 2 * config.randaugment


def changes(config: AugmentConfig) -> bool:
    """Return whether any augmentation is enabled."""
    return bool(moves(config) or config.flip or _colours(config) or config.erasing or mixing.mixes(config))


def unmixed(config: AugmentConfig) -> AugmentConfig:
    """Return `config` without mixup and CutMix."""
    return replace(config, mixup=0.0, cutmix=0.0)


def _colours(config: AugmentConfig) -> bool:
    return bool(config.brightness or config.contrast or config.saturation or config.hue or config.randaugment)


def draw(config: AugmentConfig, count: int, size: tuple[int, ...], seed: int, epoch: int) -> NDArray[np.float32]:
    """Sample parameters for `count` images of `size` (height, width, ...) in one epoch: float32 [count, columns].

    Columns: the affine map from output to input pixels (see `geometry`), whether to flip (0 or 1; the map includes the
    flip where one is applied), brightness offset (0 to 255 scale), contrast and saturation factors, hue shift, the box
    to erase and its fill value, the mixing parameters, then the operations of `randaugment`.
    """
    u = generator(seed, "augment", epoch).random((count, _CHANCES))
    signed = 2 * u - 1
    place = (size[0], size[1])
    mirrored, upside = _mirrored(config, u[:, 0], seed, epoch), config.flip_vertical & (u[:, 10] < 0.5)
    out = np.zeros((count, columns(config)), np.float32)
    out[:, [0, 4]] = 1
    if moves(config):
        cut = geometry.cuts(config, count, place, seed, epoch)
        out[:, MATRIX] = geometry.matrices(config, signed, (mirrored, upside), cut, place)
    out[:, FLIP] = mirrored
    out[:, BRIGHTNESS] = 255 * config.brightness * signed[:, 7]
    out[:, CONTRAST] = 1 + config.contrast * signed[:, 8]
    out[:, SATURATION] = 1 + config.saturation * signed[:, 9]
    out[:, HUE] = config.hue * signed[:, 11]
    if config.erasing:
        out[:, ERASED] = patches.erased(config, count, place, seed, epoch)
    out[:, MIXED] = [1, 1, 0, 0, 0, 0]
    if mixing.mixes(config):
        out[:, MIXED] = mixing.mixtures(config, count, place, seed, epoch)
    out[:, CHAIN] = randaugment.chains(config, count, seed, epoch) if config.randaugment else 0
    return out


def _mirrored(config: AugmentConfig, chance: NDArray[np.float64], seed: int, epoch: int) -> NDArray[np.bool_]:
    """Return which images are flipped left to right; `chance` is uniform in [0, 1), float64 [N].

    With alternating flips, any two consecutive epochs show an image both ways (Jordan, 2024, arXiv:2404.00498).
    """
    if config.flip and config.flip_alternate:
        first = generator(seed, "augment", "flip").random(len(chance)) < 0.5
        return np.asarray(first ^ bool(epoch % 2))
    return np.asarray(config.flip & (chance < 0.5))


def apply(config: AugmentConfig, pixels: Any, drawn: Any) -> Any:
    """Apply the parameters `drawn` to uint8 `pixels` [N, H, W, C] (symbolic or not); returns uint8 of the same shape.

    The order is: geometry, color, RandAugment, erasing, mixing.
    """
    ops = backend.keras().ops
    if config.flip and not moves(config):
        mirrored = ops.flip(pixels, axis=2)
        pixels = ops.where(ops.reshape(drawn[:, FLIP], (-1, 1, 1, 1)) > 0, mirrored, pixels)
    if moves(config) or _colours(config):
        pixels = _levels(config, ops.cast(pixels, "float32"), drawn)
    if config.erasing:
        pixels = patches.erase(pixels, drawn[:, ERASED])
    if mixing.mixes(config):
        pixels = mixing.mix(config, pixels, drawn[:, MIXED])
    return pixels


def _levels(config: AugmentConfig, x: Any, drawn: Any) -> Any:
    """Apply geometry, color and RandAugment to float32 `x` [N, H, W, C] in [0, 255]; returns uint8."""
    ops = backend.keras().ops
    if moves(config):
        x = geometry.resample(x, drawn[:, MATRIX], config.fill)
    if config.hue:
        x = colour.turn_hue(x, _column(drawn, HUE))
    if config.saturation and x.shape[-1] == 3:
        x = colour.saturate(x, _column(drawn, SATURATION))
    if config.contrast:
        x = colour.contrast(x, _column(drawn, CONTRAST))
    if config.brightness:
        x = x + _column(drawn, BRIGHTNESS)
    if config.randaugment:
        x = randaugment.operate(config, x, drawn[:, CHAIN])
    return ops.cast(ops.clip(ops.round(x), 0, 255), "uint8")


def mix_labels(shares: NDArray[np.float32], drawn: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the soft labels [N, K] of a batch that is augmented with the parameters `drawn`."""
    return mixing.mix_labels(shares, drawn[:, MIXED])


def _column(drawn: Any, index: int) -> Any:
    return backend.keras().ops.reshape(drawn[:, index], (-1, 1, 1, 1))
