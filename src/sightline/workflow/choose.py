"""Choices that depend on the images: the recipe, the width multiplier, the input size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sightline import backend
from sightline.config import PictureConfig, RunConfig, recipes, resolve
from sightline.config.groups import group_rule
from sightline.data.grouping import groups
from sightline.data.sample_range import SampleRange, resolve_range
from sightline.data.split import split
from sightline.errors import plural
from sightline.models import registry, weights
from sightline.models.registry import Entry
from sightline.preprocess import Preprocess
from sightline.records import Index, Progress, no_progress
from sightline.watch import Watcher

SMALL = 64  # images up to this side gain nothing from a backbone trained at 224
FEW = 20  # images per class below which a warning is due


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe, the reason for choosing it, and settings that override it."""

    recipe: str
    why: str
    settings: dict[str, Any] = field(default_factory=dict)


def recipe(index: Index) -> Choice:
    """Choose ``quick`` or ``transfer`` by image size, number of images, locally available weights and device."""
    side = median_side(index)
    count = len(index.pictures)
    classes = len({p.label for p in index.pictures})
    what = f"{plural(count, 'image')} of about {side} pixels in {plural(classes, 'class', 'classes')}"
    if side <= SMALL:
        why = f"{what}: too small for a pretrained backbone, so training a small network from scratch"
        if all(p.grey for p in index.pictures):  # probably characters, which flipping changes
            return Choice("quick", f"{why}, without flips", {"augment": {"flip": False}})
        return Choice("quick", why)
    entry = registry.find("mobilenetv2")
    alpha = weights.local_alpha(entry, entry.size)
    if alpha is None:
        why = f"{what}, no local ImageNet weights: a small network from scratch (--recipe transfer downloads weights)"
        return Choice("quick", why)
    where = "a GPU" if backend.accelerated() else "no GPU"
    return Choice("transfer", f"{what}, {where}: MobileNetV2 (alpha {alpha}) with the local ImageNet weights")


def laid_on(choice: Choice, layers: Sequence[dict[str, Any]], assignments: Sequence[str]) -> RunConfig:
    """Merge the user's settings over the chosen recipe; ``recipe`` stays ``auto``."""
    return resolve(recipes.load(choice.recipe), choice.settings, *layers, {"recipe": "auto"}, assignments=assignments)


def median_side(index: Index) -> int:
    """Return the median over the images of the shorter side in pixels."""
    return int(statistics.median(min(p.width, p.height) for p in index.pictures))


def settle(config: RunConfig, index: Index) -> RunConfig:
    """Return `config` with the input size, the channels and the width multiplier resolved."""
    if config.model.name == "auto":
        config = replace(config, model=replace(config.model, name="cifar10-deep"))
    entry = registry.find(config.model.name)
    pretrained = config.model.weights != "none" and entry.pretrained is not None
    height = config.picture.height or config.picture.width
    if height is None:
        height = _side(entry, median_side(index), pretrained=pretrained)
    width = config.picture.width or height
    alpha = config.model.alpha
    if alpha is None and entry.alpha is not None:
        local = weights.local_alpha(entry, height) if config.model.weights in ("auto", "imagenet") else None
        alpha = local or entry.alpha
    channels = config.picture.channels
    if channels is None:
        channels = 1 if all(p.grey for p in index.pictures) and not pretrained else 3
    return replace(
        config,
        picture=replace(config.picture, height=height, width=width, channels=channels),
        model=replace(config.model, alpha=alpha),
    )


def _side(entry: Entry, pictures: int, *, pretrained: bool) -> int:
    if entry.size <= SMALL:
        return min(max(pictures, entry.size), SMALL)
    if pretrained and entry.sharp is not None and pictures >= entry.sharp:
        return entry.sharp
    return entry.size


def with_range(config: RunConfig, index: Index, watcher: Watcher) -> RunConfig:
    """Return `config` with the range of sample values resolved from the training images; see `resolve_range`.

    Images are split as in `data.split`, except that near duplicates are not grouped: detecting them takes decoded
    pixels, which depend on the range.
    """
    picture = config.picture
    if picture.range != "auto":
        return config
    training: list[int] = []
    if any(p.deep for p in index.pictures):
        rule = group_rule(config.split.group)
        together = None if rule.kind == "near" else groups(index.pictures, rule)
        parts = split(index.pictures, config.split, config.seed, together).parts
        training = [i for i, part in enumerate(parts) if part == "train"]
    threads = config.device.threads or None
    found = resolve_range(index, training, picture.range, _reading(picture), watcher.progress, threads)
    if training:
        many = plural(sum(p.deep for p in index.pictures), "image has", "images have")
        watcher.say(f"{many} more than 8 bits per sample, {found.text}")
    return replace(config, picture=replace(picture, range=found.limits or "full"))


def for_a_look(
    picture: PictureConfig, index: Index, progress: Progress = no_progress, threads: int | None = None
) -> tuple[Preprocess, SampleRange]:
    """Return a preprocessing spec for inspecting images without training; all possible training images set its range.

    Its size is the default; replace it with `Preprocess.sized`.
    """
    training = [i for i, p in enumerate(index.pictures) if p.part in (None, "train")]
    found = resolve_range(index, training, picture.range, _reading(picture), progress, threads)
    return replace(_reading(picture), range=found.limits), found


def _reading(picture: PictureConfig) -> Preprocess:
    return Preprocess(page=picture.page, max_megapixels=picture.max_megapixels)


def preprocess(config: RunConfig) -> Preprocess:
    """Return the preprocessing spec of a resolved configuration; without a range if that is not resolved yet."""
    picture = config.picture
    assert picture.height is not None
    assert picture.width is not None
    assert picture.channels is not None
    limits = None if isinstance(picture.range, str) else picture.range
    return Preprocess(
        picture.height, picture.width, picture.channels, picture.resize, picture.filter, limits, picture.page,
        picture.max_megapixels,
    )  # fmt: skip
