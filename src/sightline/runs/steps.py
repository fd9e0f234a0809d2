"""The choices that complete a configuration, one step each, in the order in which they depend on each other.

A step is a function of the configuration so far, the facts about the images and the machine. It fills in what is
``auto`` or unset and returns everything else unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from sightline.config import ModelConfig, RunConfig
from sightline.config.stage_epochs import count_epochs
from sightline.errors import plural, suggest_install
from sightline.models import registry
from sightline.models.entry import ModelEntry
from sightline.models.pretrained import WEIGHT_CHOICES
from sightline.runs.facts import DataFacts, Machine
from sightline.tasks.protocol import find_task
from sightline.training import linear_head

MAX_VIEWS, MAX_VIEW_ROWS = 4, 16_000  # limits on the views that a stage trains on: per image, and in total
DEPTH, BEST_DEPTH = 46, 90  # layers that fine-tuning unfreezes, the second for effort best
REFERENCE_MODEL, REFERENCE_LAYERS = "efficientnet-lite0", 140  # network of these measurements, and its number of layers
SMALL_SIDE = 64  # maximum longer side, in pixels, of images for networks for small images
MAX_SMALL_TRANSFER = 20_000  # small color images up to this number are classified better by a pretrained backbone
MAX_MASK_SIDE = 512  # maximum longer side of images with masks, in pixels
STRIDE = 32  # input pixels per pixel of a pretrained network's last features
MAX_ASPECT_RATIO = 2.0  # width to height, or height to width; more extreme images are squeezed
DEFAULT_MODEL = "cifar10-deep"
OPEN_PRECISIONS = ("auto", "device")  # values of train.precision that `choose_precision` replaces


@dataclass(frozen=True, slots=True)
class RecipeChoice:
    """The recipe that ``auto`` chose.

    Attributes:
        recipe: Its name.
        reason: Why it was chosen.
        settings: Settings that override it.
    """

    recipe: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)


class StepResult(NamedTuple):
    """The configuration after a step, and a note on what was chosen; "" if there is nothing to report."""

    config: RunConfig
    note: str = ""


Step = Callable[[RunConfig, DataFacts, Machine], StepResult]


def choose_recipe(facts: DataFacts, machine: Machine, model: ModelConfig | None) -> RecipeChoice:
    """Choose a recipe by image size, number of images, locally available weights, device, and the requested `model`."""
    classes = plural(facts.num_classes, "class", "classes")
    if facts.mask_size is not None:
        return _choose_mask_recipe(facts, facts.mask_size, machine)
    data_summary = f"{plural(facts.num_images, 'image')} of about {facts.median_side} pixels in {classes}"
    if is_for_small_network(facts) and facts.all_grayscale:  # probably characters, which flips would change
        reason = f"{data_summary}, all gray: a small network from scratch, without flips"
        return RecipeChoice("quick", reason, {"augment": {"horizontal_flip": False}})
    if is_for_small_network(facts) or (model is not None and _starts_at_random(model)):
        cause = ": small and many, so a small" if is_for_small_network(facts) else ", by the settings: a"
        return RecipeChoice("quick", f"{data_summary}{cause} network from scratch")
    device_name = "a GPU" if machine.has_accelerator() else "no GPU"
    if machine.has_weights(registry.get_entry("efficientnet-lite0")):
        start = _describe_start(model, "EfficientNet-Lite0", "the installed ImageNet weights")
        return RecipeChoice("transfer", f"{data_summary}, {device_name}: {start}")
    entry = registry.get_entry("mobilenetv2")
    alpha = machine.find_cached_alpha(entry, entry.input_size)
    if alpha is not None:
        start = _describe_start(model, f"MobileNetV2 (alpha {alpha})", "the local ImageNet weights")
        return RecipeChoice("transfer-mobilenetv2", f"{data_summary}, {device_name}: {start}")
    return RecipeChoice(
        "quick",
        f"{data_summary}, no local ImageNet weights: a small network from scratch (for those of --recipe "
        f"transfer, {suggest_install('train')})",
    )


def _describe_start(model: ModelConfig | None, network: str, weights: str) -> str:
    """Describe the start of training: `network` and `weights` of the recipe, or those that `model` names."""
    if model is not None and model.name != "auto":
        network, weights = model.name, "ImageNet weights"
    if model is not None and model.weights not in WEIGHT_CHOICES:
        weights = f"the weights in {model.weights}"
    return f"{network} with {weights}"


def _starts_at_random(model: ModelConfig) -> bool:
    is_pretrained = model.name == "auto" or registry.get_entry(model.name).pretrained is not None
    return model.weights == "none" or (not is_pretrained and model.weights in WEIGHT_CHOICES)


def is_for_small_network(facts: DataFacts) -> bool:
    """Whether `auto` trains a small network from scratch because of the images: small ones that are gray or many."""
    return facts.median_side <= SMALL_SIDE and (facts.all_grayscale or facts.num_images > MAX_SMALL_TRANSFER)


def _choose_mask_recipe(facts: DataFacts, size: tuple[int, int], machine: Machine) -> RecipeChoice:
    height, width = size
    summary = (
        f"{plural(facts.num_images, 'image')} of {height}x{width} pixels with masks of {facts.num_classes} classes"
    )
    if facts.median_side <= SMALL_SIDE:
        return RecipeChoice("fcn", f"{summary}: a small network from scratch")
    if machine.has_weights(registry.get_entry("efficientnet-lite0")):
        return RecipeChoice("segmentation", f"{summary}: EfficientNet-Lite0 with the installed ImageNet weights")
    return RecipeChoice("fcn", f"{summary}, no local ImageNet weights: a small network from scratch")


def choose_model(config: RunConfig, _facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the network."""
    if config.model.name != "auto":
        return StepResult(config)
    return StepResult(replace(config, model=replace(config.model, name=DEFAULT_MODEL)))


def choose_input_size(config: RunConfig, facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the height and width: of the images for networks for small images, else of the network.

    A pretrained network uses its `pretrained_input_size` if the images are that large. Masks are learned at the size of
    the images, up to `MAX_MASK_SIDE`. If a pretrained network sees whole images with several labels, they keep their
    aspect ratio, with the same area.
    """
    size = config.input
    if facts.mask_size is not None and size.height is None and size.width is None:
        scale = min(1.0, MAX_MASK_SIDE / max(facts.mask_size))
        own_height, own_width = (max(1, round(scale * side)) for side in facts.mask_size)
        return StepResult(replace(config, input=replace(size, height=own_height, width=own_width)))
    height = width = size.height or size.width or _choose_side(config, facts.median_side)
    is_open = size.height is None and size.width is None and size.resize == "auto"
    if is_open and _sees_whole_images(config) and _uses_pretrained(config, registry.get_entry(config.model.name)):
        height, width = _fit_aspect_ratio(height, facts.aspect_ratio)
    return StepResult(replace(config, input=replace(size, height=size.height or height, width=size.width or width)))


def _fit_aspect_ratio(side: int, aspect_ratio: float) -> tuple[int, int]:
    """Return a height and width of about this width / height, in multiples of `STRIDE`, with the area of a square.

    An aspect ratio within a tenth of 1 becomes a square, since the network was trained on squares.
    """
    ratio = min(max(aspect_ratio, 1 / MAX_ASPECT_RATIO), MAX_ASPECT_RATIO)
    if 1 / 1.1 < ratio < 1.1:
        return side, side
    height, width = (max(1, round(side * ratio**power / STRIDE)) * STRIDE for power in (-0.5, 0.5))
    return height, width


def _sees_whole_images(config: RunConfig) -> bool:
    """Whether ``input.resize=auto`` keeps the whole image, since any of several labels may be at an edge."""
    return find_task(config.model.task).targets.allows_several


def _choose_side(config: RunConfig, image_side: int) -> int:
    entry = registry.get_entry(config.model.name)
    if entry.input_size <= SMALL_SIDE:
        return min(max(image_side, entry.input_size), SMALL_SIDE)
    sharp_side = entry.pretrained_input_size if _uses_pretrained(config, entry) else None
    return sharp_side if sharp_side is not None and image_side >= sharp_side else entry.input_size


def _uses_pretrained(config: RunConfig, entry: ModelEntry) -> bool:
    return config.model.weights != "none" and entry.pretrained is not None


def choose_resize(config: RunConfig, _facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in how images are resized: whole if they have several labels, else a center crop."""
    if config.input.resize != "auto":
        return StepResult(config)
    resize: Literal["stretch", "crop"] = "stretch" if _sees_whole_images(config) else "crop"
    return StepResult(replace(config, input=replace(config.input, resize=resize)))


def choose_monitor(config: RunConfig, _facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the metric that selects the best epoch: the loss, after temperature scaling if the task has it.

    It uses more of each image than the accuracy does: with 100 images, chance alone moves the accuracy by five points.
    """
    early_stopping = config.train.early_stopping
    if early_stopping.monitor != "auto":
        return StepResult(config)
    calibrated = find_task(config.model.task).has_calibrated_loss
    monitor: Literal["val_loss", "val_calibrated_loss"] = "val_calibrated_loss" if calibrated else "val_loss"
    train = replace(config.train, early_stopping=replace(early_stopping, monitor=monitor))
    return StepResult(replace(config, train=train))


def choose_views(config: RunConfig, facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in how many views of each image the stages train on; they help most with few images.

    With several labels they did not help: a mean average precision of 0.941 on street scenes, and 0.943 without them.
    """
    more = 2 if config.train.effort == "best" else 1
    views = min(more * MAX_VIEWS, max(1, more * MAX_VIEW_ROWS // max(facts.num_images, 1)))
    if find_task(config.model.task).targets.allows_several:
        views = 1
    stages = tuple(replace(stage, views=stage.views or views) for stage in config.train.stages)
    return StepResult(replace(config, train=replace(config.train, stages=stages)))


def choose_depths(config: RunConfig, facts: DataFacts, machine: Machine) -> StepResult:
    """Fill in how many layers stages unfreeze: as many as in `REFERENCE_MODEL`, or the same fraction of fewer layers.

    The number was measured with that network; a deeper network has more frozen layers.
    """
    train, open_stages = config.train, [stage.name for stage in config.train.stages if stage.unfreeze == "auto"]
    if not open_stages:
        return StepResult(config)
    depth, note = BEST_DEPTH if train.effort == "best" else DEPTH, ""
    if config.model.name != REFERENCE_MODEL and (count := machine.count_layers(config, facts)) < REFERENCE_LAYERS:
        depth = max(1, round(depth * count / REFERENCE_LAYERS))
        note = f"{', '.join(open_stages)}: the last {depth} of {plural(count, 'layer')} of {config.model.name}"
    stages = tuple(replace(stage, unfreeze=depth) if stage.unfreeze == "auto" else stage for stage in train.stages)
    return StepResult(replace(config, train=replace(train, stages=stages)), note)


def choose_alpha(config: RunConfig, _facts: DataFacts, machine: Machine) -> StepResult:
    """Fill in the width multiplier: one whose weights are available locally, else the network's default."""
    entry, model = registry.get_entry(config.model.name), config.model
    if model.alpha is not None or entry.alpha is None:
        return StepResult(config)
    assert config.input.height is not None
    side = config.input.height if config.input.height == config.input.width else 0
    cached = machine.find_cached_alpha(entry, side) if model.weights in ("auto", "imagenet") else None
    return StepResult(replace(config, model=replace(model, alpha=cached or entry.alpha)))


def choose_channels(config: RunConfig, facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the number of channels: 1 if all images are grayscale and no pretrained weights expect 3."""
    if config.input.channels is not None:
        return StepResult(config)
    entry = registry.get_entry(config.model.name)
    channels: Literal[1, 3] = 1 if facts.all_grayscale and not _uses_pretrained(config, entry) else 3
    return StepResult(replace(config, input=replace(config.input, channels=channels)))


def list_unsolved(config: RunConfig) -> tuple[int, ...]:
    """Return the indices of the stages that `choose_solvers` changes from ``auto`` to steps of the optimizer."""
    obstacles = _list_obstacles(config)
    return tuple(
        at for at, stage in enumerate(config.train.stages) if stage.solver == "auto" and (stage.unfreeze or obstacles)
    )


def _list_obstacles(config: RunConfig) -> list[str]:
    model = config.model
    entry = registry.get_entry(DEFAULT_MODEL if model.name == "auto" else model.name)
    hidden = entry.head.hidden if model.hidden_units is None else model.hidden_units
    return linear_head.list_obstacles(config, has_hidden_layers=bool(hidden))


def choose_solvers(config: RunConfig, _facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in how the stages of a frozen backbone train the head: as a logistic regression if it is one."""
    train, unsolved, reason = config.train, list_unsolved(config), " and ".join(_list_obstacles(config))
    stages = tuple(
        replace(stage, solver="gradient" if at in unsolved else "logistic") if stage.solver == "auto" else stage
        for at, stage in enumerate(train.stages)
    )
    note = "; ".join(
        f"{stages[at].name}: trained for {plural(count_epochs(train, stages[at]), 'epoch')}, not solved: {reason}"
        for at in unsolved
        if not stages[at].unfreeze
    )
    return StepResult(replace(config, train=replace(train, stages=stages)), note)


def choose_device(config: RunConfig, _facts: DataFacts, machine: Machine) -> StepResult:
    """Fill in the backend, its threads, the devices and hosts, and the runtime of frozen layers."""
    device = machine.resolve_device(config.device)
    is_chosen = config.device.feature_runtime == "auto" and device.feature_runtime == "onnxruntime"
    entry = registry.get_entry(DEFAULT_MODEL if config.model.name == "auto" else config.model.name)
    are_masks = find_task(config.model.task).targets.are_masks
    if is_chosen and entry.has_int8_features and not are_masks and machine.prefers_int8():
        device = replace(device, feature_runtime="onnxruntime-int8")
    return StepResult(replace(config, device=device))


def choose_weights(config: RunConfig, _facts: DataFacts, machine: Machine) -> StepResult:
    """Fill in whether training starts from ImageNet weights; raises `ModelError` for a missing file of weights."""
    weights_file = machine.find_initial_weights(config)
    if config.model.weights != "auto":
        return StepResult(config)
    return StepResult(
        replace(config, model=replace(config.model, weights="none" if weights_file is None else "imagenet"))
    )


def choose_value_range(config: RunConfig, facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the sample values that become black and white, from the training images; see `resolve_range`."""
    if config.input.value_range != "auto":
        return StepResult(config)
    if not facts.num_high_bit_depth:
        return StepResult(replace(config, input=replace(config.input, value_range="full")))
    sample_range = facts.measure_range(config)
    count_text = plural(facts.num_high_bit_depth, "image has", "images have")
    return StepResult(
        replace(config, input=replace(config.input, value_range=sample_range.limits or "full")),
        f"{count_text} more than 8 bits per sample, {sample_range.description}",
    )


def choose_precision(config: RunConfig, facts: DataFacts, machine: Machine) -> StepResult:
    """Fill in the precision of training steps: that of the device, or the faster one."""
    if config.train.precision not in OPEN_PRECISIONS:
        return StepResult(config)
    if facts.mask_size is not None:  # the measurement would use the loss of labels
        return StepResult(replace(config, train=replace(config.train, precision="float32")))
    choice = machine.choose_precision(config, facts)
    return StepResult(
        replace(config, train=replace(config.train, precision=choice.precision)),
        f"precision {choice.precision}: {choice.reason}" if choice.reason else "",
    )


def keep_features_exact(config: RunConfig, _facts: DataFacts, _machine: Machine) -> StepResult:
    """Fill in the precision of a network that is not trained: float32, without asking the device or measuring time."""
    if config.train.precision not in OPEN_PRECISIONS:
        return StepResult(config)
    return StepResult(replace(config, train=replace(config.train, precision="float32")))


IMMEDIATE_STEPS: tuple[Step, ...] = (
    choose_model, choose_input_size, choose_resize, choose_monitor, choose_views, choose_alpha, choose_channels,
    choose_depths, choose_solvers,
)  # fmt: skip
"""Steps that follow from the headers of the images and the files of this machine."""

MEASURED_STEPS: tuple[Step, ...] = (choose_device, choose_weights, choose_value_range, choose_precision)
"""Steps that need the backend and take time: a download, decoding, a benchmark."""


def list_unresolved(config: RunConfig) -> Iterator[str]:
    """Yield the settings that the steps fill in and that are still open; none after all steps."""
    if config.model.name == "auto":
        yield "model.name"
    elif config.model.alpha is None and registry.get_entry(config.model.name).alpha is not None:
        yield "model.alpha"
    if config.model.weights == "auto":
        yield "model.weights"
    yield from (f"input.{name}" for name in ("height", "width", "channels") if getattr(config.input, name) is None)
    if config.input.resize == "auto":
        yield "input.resize"
    if config.input.value_range == "auto":
        yield "input.value_range"
    if config.train.early_stopping.monitor == "auto":
        yield "train.early_stopping.monitor"
    if config.train.precision in OPEN_PRECISIONS:
        yield "train.precision"
    yield from (
        f"train.stages.{at}.unfreeze" for at, stage in enumerate(config.train.stages) if stage.unfreeze == "auto"
    )
    yield from (f"train.stages.{at}.views" for at, stage in enumerate(config.train.stages) if not stage.views)
    yield from (f"train.stages.{at}.solver" for at, stage in enumerate(config.train.stages) if stage.solver == "auto")
    yield from (f"device.{name}" for name in ("backend", "feature_runtime") if getattr(config.device, name) == "auto")
    yield from (f"device.{name}" for name in ("num_devices", "threads") if not getattr(config.device, name))
