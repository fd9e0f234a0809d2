"""What a run's settings may depend on: facts about its images and the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sightline import backend, process
from sightline.callbacks import Progress, no_progress
from sightline.config import DeviceConfig, InputConfig, RunConfig
from sightline.config.split_groups import parse_group_rule
from sightline.data.grouping import assign_groups
from sightline.data.sample_range import SampleRange, resolve_range
from sightline.data.split import assign_splits
from sightline.data.targets import list_leaf_classes
from sightline.data.types import Index
from sightline.distributed import devices
from sightline.models import pretrained, registry
from sightline.models.build import ModelSpec, build_shapes_only, choose_decoder
from sightline.models.entry import ModelEntry
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import environment
from sightline.tasks.protocol import Task, find_task
from sightline.training import precision
from sightline.training.precision import PrecisionChoice


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts about the images that settings depend on.

    `median_side` is the median of the shorter side in pixels. `aspect_ratio` is the geometric mean of width / height:
    1 for as many upright images as wide ones. `mask_size` is the median height and width for tasks with masks, None for
    other tasks. `measure_range` decodes images of more than 8 bits from the training split of a configuration, and
    returns the range of their sample values.
    """

    num_images: int
    num_classes: int
    median_side: int
    all_grayscale: bool
    num_high_bit_depth: int
    measure_range: Callable[[RunConfig], SampleRange]
    aspect_ratio: float = 1.0
    mask_size: tuple[int, int] | None = None

    @classmethod
    def from_index(cls, index: Index, task: Task, progress: Progress = no_progress) -> DataFacts:
        """Collect the facts about the images of `index`, whose labels are those of `task`."""
        classes = chain.from_iterable(list_leaf_classes(task.targets, [image.label for image in index.images]))
        return cls(
            num_images=len(index.images),
            num_classes=len(set(classes)),
            median_side=int(statistics.median(min(image.width, image.height) for image in index.images)),
            all_grayscale=all(image.grayscale for image in index.images),
            num_high_bit_depth=sum(image.high_bit_depth for image in index.images),
            measure_range=lambda config: _measure_training_range(index, config, progress),
            aspect_ratio=statistics.geometric_mean(image.width / image.height for image in index.images),
            mask_size=_find_median_size(index) if task.targets.are_masks else None,
        )


def _find_median_size(index: Index) -> tuple[int, int]:
    heights, widths = ([getattr(image, name) for image in index.images] for name in ("height", "width"))
    return int(statistics.median(heights)), int(statistics.median(widths))


def _measure_training_range(index: Index, config: RunConfig, progress: Progress) -> SampleRange:
    """Return the range of sample values of the training split.

    Images are split as in `data.split`, except that near duplicates are not grouped: detecting them takes decoded
    pixels, which depend on the range.
    """
    rule = parse_group_rule(config.split.group)
    groups = None if rule.kind == "near_duplicates" else assign_groups(index.images, rule)
    splits = assign_splits(index.images, config.split, config.seed, groups, find_task(config.model.task).targets).splits
    training = [i for i, split in enumerate(splits) if split == "train"]
    spec = build_decoding_spec(config.input)
    return resolve_range(index, training, config.input.value_range, spec, progress, config.device.threads or None)


def build_decoding_spec(input_config: InputConfig) -> PreprocessingSpec:
    """Return the settings that determine how a file is decoded, with a default size and no range."""
    return PreprocessingSpec(page=input_config.page, max_megapixels=input_config.max_megapixels)


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts about this process's machine that settings depend on; `num_hosts` machines train together."""

    num_hosts: int = 1

    def start_backend(self, device: DeviceConfig) -> None:
        """Choose the backend and the devices of the settings; later calls have no effect."""
        environment.start_backend(device)

    def has_accelerator(self) -> bool:
        """Return whether the started backend sees a GPU or TPU."""
        return backend.has_accelerator()

    def has_weights(self, entry: ModelEntry) -> bool:
        """Return whether the ImageNet weights of a network are available locally."""
        return pretrained.find_cached_file(entry, None, entry.input_size) is not None

    def find_cached_alpha(self, entry: ModelEntry, side: int) -> float | None:
        """Return the width multiplier whose ImageNet weights are available locally, None without any."""
        return pretrained.find_cached_alpha(entry, side)

    def find_initial_weights(self, config: RunConfig) -> Path | None:
        """Return the file with the initial weights, None for random ones; raises `ModelError` if it is missing."""
        entry, size = registry.get_entry(config.model.name), (config.input.height or 0, config.input.width or 0)
        return pretrained.find_weights(entry, config.model.weights, config.model.alpha, *size)

    def count_layers(self, config: RunConfig, facts: DataFacts) -> int:
        """Return the number of layers of the backbone; raises `UsageError` for settings that it does not support."""
        self.start_backend(config.device)
        return len(build_shapes_only(_specify_network(config, facts)).backbone)

    def resolve_device(self, device: DeviceConfig) -> DeviceConfig:
        """Return `device` with the started backend, its threads, devices and hosts; raises `UsageError`."""
        return devices.resolve_devices(environment.resolve_device(device), self.num_hosts)

    def prefers_int8(self) -> bool:
        """Return whether layers run faster in int8: the processor supports it, and there is memory to quantize them."""
        return process.has_int8_instructions() and not process.is_memory_short()

    def choose_precision(self, config: RunConfig, facts: DataFacts) -> PrecisionChoice:
        """Return the precision of the device, or the faster one, measured with the network of `config`."""
        return precision.choose_precision(_specify_network(config, facts), config, facts.num_images)


def _specify_network(config: RunConfig, facts: DataFacts) -> ModelSpec:
    size = config.input
    assert size.height is not None
    assert size.width is not None
    assert size.channels is not None
    return specify_graph(config, size.height, size.width, size.channels, facts.num_classes)


def specify_graph(config: RunConfig, height: int, width: int, channels: int, num_classes: int) -> ModelSpec:
    """Return the network of `config` with random weights, where only its graph and its speed matter."""
    task = find_task(config.model.task)
    return ModelSpec(
        config.model, height, width, channels, num_classes, pixel_stats=(127.5, 64.0),  # mean and standard deviation
        activation=task.activation, decoder=choose_decoder(config.model, is_for_masks=task.targets.are_masks),
    )  # fmt: skip


THIS_MACHINE = Machine()
