"""Choices that depend on the images: the recipe, the width multiplier, the input size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sightline import backend
from sightline.callbacks import Callback, Progress, no_progress
from sightline.config import InputConfig, RunConfig, recipes, resolve_config
from sightline.config.split_groups import parse_group_rule
from sightline.data.grouping import assign_groups
from sightline.data.sample_range import SampleRange, resolve_range
from sightline.data.split import assign_splits
from sightline.data.types import Index
from sightline.errors import plural
from sightline.models import pretrained, registry
from sightline.models.registry import ModelEntry
from sightline.preprocessing import PreprocessingSpec

SMALL_SIDE = 64  # images up to this side gain nothing from a backbone trained at 224
FEW_IMAGES = 20  # images per class below which a warning is due


@dataclass(frozen=True, slots=True)
class RecipeChoice:
    """A recipe, the reason for choosing it, and settings that override it."""

    recipe: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)


def choose_recipe(index: Index) -> RecipeChoice:
    """Choose ``quick`` or ``transfer`` by image size, number of images, locally available weights and device."""
    median = median_side(index)
    count = len(index.images)
    classes = len({p.label for p in index.images})
    data_summary = f"{plural(count, 'image')} of about {median} pixels in {plural(classes, 'class', 'classes')}"
    if median <= SMALL_SIDE:
        reason = f"{data_summary}: too small for a pretrained backbone, so training a small network from scratch"
        if all(p.grayscale for p in index.images):  # probably characters, which flipping changes
            return RecipeChoice("quick", f"{reason}, without flips", {"augment": {"horizontal_flip": False}})
        return RecipeChoice("quick", reason)
    entry = registry.get_entry("mobilenetv2")
    alpha = pretrained.find_cached_alpha(entry, entry.input_size)
    if alpha is None:
        reason = (
            f"{data_summary}, no local ImageNet weights: a small network from scratch (--recipe "
            "transfer downloads weights)"
        )
        return RecipeChoice("quick", reason)
    device_name = "a GPU" if backend.has_accelerator() else "no GPU"
    return RecipeChoice(
        "transfer", f"{data_summary}, {device_name}: MobileNetV2 (alpha {alpha}) with the local ImageNet weights"
    )


def apply_recipe(choice: RecipeChoice, layers: Sequence[dict[str, Any]], assignments: Sequence[str]) -> RunConfig:
    """Merge the user's settings over the chosen recipe; ``choose_recipe`` stays ``auto``."""
    return resolve_config(
        recipes.load(choice.recipe), choice.settings, *layers, {"recipe": "auto"}, assignments=assignments
    )


def median_side(index: Index) -> int:
    """Return the median over the images of the shorter side in pixels."""
    return int(statistics.median(min(p.width, p.height) for p in index.images))


def resolve_input_settings(config: RunConfig, index: Index) -> RunConfig:
    """Return `config` with the input size, the channels and the width multiplier resolved."""
    if config.model.name == "auto":
        config = replace(config, model=replace(config.model, name="cifar10-deep"))
    entry = registry.get_entry(config.model.name)
    use_pretrained = config.model.weights != "none" and entry.pretrained is not None
    height = config.input.height or config.input.width
    if height is None:
        height = _input_side(entry, median_side(index), use_pretrained=use_pretrained)
    width = config.input.width or height
    alpha = config.model.alpha
    if alpha is None and entry.alpha is not None:
        local = pretrained.find_cached_alpha(entry, height) if config.model.weights in ("auto", "imagenet") else None
        alpha = local or entry.alpha
    channels = config.input.channels
    if channels is None:
        channels = 1 if all(p.grayscale for p in index.images) and not use_pretrained else 3
    return replace(
        config,
        input=replace(config.input, height=height, width=width, channels=channels),
        model=replace(config.model, alpha=alpha),
    )


def _input_side(entry: ModelEntry, image_side: int, *, use_pretrained: bool) -> int:
    if entry.input_size <= SMALL_SIDE:
        return min(max(image_side, entry.input_size), SMALL_SIDE)
    if use_pretrained and entry.pretrained_input_size is not None and image_side >= entry.pretrained_input_size:
        return entry.pretrained_input_size
    return entry.input_size


def resolve_value_range(config: RunConfig, index: Index, callback: Callback) -> RunConfig:
    """Return `config` with the range of sample values resolved from the training images; see `resolve_range`.

    Images are split as in `data.split`, except that near duplicates are not grouped: detecting them takes decoded
    pixels, which depend on the range.
    """
    input_config = config.input
    if input_config.value_range != "auto":
        return config
    training: list[int] = []
    if any(p.high_bit_depth for p in index.images):
        rule = parse_group_rule(config.split.group)
        groups_by_image = None if rule.kind == "near" else assign_groups(index.images, rule)
        splits = assign_splits(index.images, config.split, config.seed, groups_by_image).splits
        training = [i for i, split_name in enumerate(splits) if split_name == "train"]
    threads = config.device.threads or None
    sample_range = resolve_range(
        index, training, input_config.value_range, _decoding_spec(input_config), callback.on_progress, threads
    )
    if training:
        count_text = plural(sum(p.high_bit_depth for p in index.images), "image has", "images have")
        callback.on_message(f"{count_text} more than 8 bits per sample, {sample_range.description}")
    return replace(config, input=replace(input_config, value_range=sample_range.limits or "full"))


def inspection_preprocess(
    input_config: InputConfig, index: Index, progress: Progress = no_progress, threads: int | None = None
) -> tuple[PreprocessingSpec, SampleRange]:
    """Return a preprocessing spec for inspecting images without training; all possible training images set its range.

    Its size is the default; replace it with `Preprocess.sized`.
    """
    training = [i for i, p in enumerate(index.images) if p.split in (None, "train")]
    sample_range = resolve_range(
        index, training, input_config.value_range, _decoding_spec(input_config), progress, threads
    )
    return replace(_decoding_spec(input_config), range=sample_range.limits), sample_range


def _decoding_spec(input_config: InputConfig) -> PreprocessingSpec:
    return PreprocessingSpec(page=input_config.page, max_megapixels=input_config.max_megapixels)


def build_preprocess(config: RunConfig) -> PreprocessingSpec:
    """Return the preprocessing spec of a resolved configuration; without a range if that is not resolved yet."""
    input_config = config.input
    assert input_config.height is not None
    assert input_config.width is not None
    assert input_config.channels is not None
    value_range = None if isinstance(input_config.value_range, str) else input_config.value_range
    return PreprocessingSpec(
        input_config.height, input_config.width, input_config.channels, input_config.resize, input_config.interpolation,
        value_range, input_config.page,
        input_config.max_megapixels,
    )  # fmt: skip
