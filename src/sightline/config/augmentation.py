"""The settings of data augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sightline.config.parse import setting


@dataclass(frozen=True, slots=True)
class CustomAugmentConfig:
    """An augmentation registered by another package; see docs/extending.md."""

    name: str = setting("", "name under which it is registered")
    strength: float = setting(1.0, "its strength; 0: off", 0)


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Data augmentation: random transformations of the training images, new for every image and epoch."""

    horizontal_flip: bool = setting(False, "random horizontal flip")
    alternating_flip: bool = setting(False, "with horizontal_flip: flip each image in every other epoch, not at random")
    vertical_flip: bool = setting(False, "random vertical flip")
    rotation: float = setting(0.0, "maximum rotation in degrees, in both directions", 0, 180)
    translation: float = setting(0.0, "maximum translation as a fraction of height and width, in both directions", 0, 1)
    zoom: float = setting(0.0, "maximum zoom, per axis; 0.2: a factor from 0.8 to 1.2", 0, 0.9)
    shear: float = setting(0.0, "maximum shear in degrees, in both directions", 0, 60)
    crop: float = setting(0.0, "random crop: pad each side by this fraction, then crop to the original size", 0, 0.5)
    brightness: float = setting(0.0, "maximum change in brightness, as a fraction of the value range", 0, 1)
    contrast: float = setting(
        0.0, "maximum change in contrast, around the image's mean; 0.2: a factor from 0.8 to 1.2", 0, 1
    )
    saturation: float = setting(0.0, "maximum change in saturation; 0.2: a factor from 0.8 to 1.2", 0, 1)
    hue: float = setting(0.0, "maximum hue shift as a fraction of the color wheel, in both directions", 0, 0.5)
    fill_mode: Literal["nearest", "reflect", "constant"] = setting("nearest", "how pixels outside the image are filled")
    erasing_probability: float = setting(0.0, "random erasing: probability of replacing a rectangle with noise", 0, 1)
    erasing_min_area: float = setting(0.02, "random erasing: minimum fraction of the area", 0, 1)
    erasing_max_area: float = setting(0.4, "random erasing: maximum fraction of the area", 0, 1)
    randaugment: int = setting(0, "RandAugment: number of operations per image; 0: off", 0, 8)
    randaugment_magnitude: float = setting(9.0, "RandAugment: magnitude of the operations; 10 is the maximum", 0, 10)
    mixup: float = setting(
        0.0,
        "mixup alpha: blend pairs of images and their labels; 0: off; not applied to features of frozen layers",
        0,
        100,
    )
    cutmix: float = setting(
        0.0,
        "CutMix alpha: paste a rectangle of another image; 0: off; with mixup, one is chosen at random per image",
        0,
        100,
    )
    label_mixing: Literal["proportional", "union"] = setting(
        "proportional",
        "labels of an image that mixup or CutMix blends from two; proportional: those of both, weighted by their "
        "contributions; union, for several labels per image: all, except those of an image that contributes below 10%",
    )
    custom: tuple[CustomAugmentConfig, ...] = setting((), "augmentations registered by other packages")
