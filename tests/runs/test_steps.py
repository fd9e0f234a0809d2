"""Each step of the resolver: from a configuration, facts about the images and a machine to a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from recording import RecordingCallback
from sightline import backend
from sightline.callbacks import Callback
from sightline.config import DeviceConfig, RunConfig, StageConfig, TrainConfig, parse, recipes, resolve_config
from sightline.config.stage_epochs import count_epochs
from sightline.data.sample_range import SampleRange
from sightline.errors import ConfigError
from sightline.models.entry import ModelEntry
from sightline.runs import steps
from sightline.runs.facts import THIS_MACHINE, DataFacts, Machine
from sightline.runs.resolve import apply_steps, merge_recipe
from sightline.runs.train_request import TrainRequest
from sightline.training.precision import PrecisionChoice


def measure_twelve_bits(config: RunConfig) -> SampleRange:
    assert config.device.threads, "decoding uses the threads of the machine"
    return SampleRange((0.0, 4095.0), "from their tags")


PHOTOS = DataFacts(600, 3, 300, all_grayscale=False, num_high_bit_depth=0, measure_range=measure_twelve_bits)
DIGITS = replace(PHOTOS, median_side=28, all_grayscale=True)
ICONS = replace(DIGITS, all_grayscale=False)
SCENES = replace(PHOTOS, mask_size=(360, 480))
SCANS = replace(PHOTOS, all_grayscale=True, num_high_bit_depth=5)


@dataclass(frozen=True)
class FakeMachine(Machine):
    """A machine with two CPU devices, and files of ImageNet weights or none."""

    alpha: float | None = None
    installed: bool = False
    accelerator: bool = False
    int8: bool = True

    def start_backend(self, device: DeviceConfig) -> None:
        assert device.backend in {"auto", "tensorflow"}

    def has_accelerator(self) -> bool:
        return self.accelerator

    def has_weights(self, entry: ModelEntry) -> bool:
        assert entry.name == "efficientnet-lite0"
        return self.installed

    def find_cached_alpha(self, entry: ModelEntry, side: int) -> float | None:
        return self.alpha if entry.alpha is not None and side in {224, 288} else None

    def find_initial_weights(self, config: RunConfig) -> Path | None:
        known = config.model.weights == "imagenet" or (config.model.weights == "auto" and self.alpha is not None)
        return Path("weights.h5") if known else None

    def count_layers(self, config: RunConfig, facts: DataFacts) -> int:
        raise AssertionError("only a network other than that of the recipe is counted")

    def resolve_device(self, device: DeviceConfig) -> DeviceConfig:
        runtime: Any = "keras" if self.accelerator else "onnxruntime"
        return replace(
            device, backend="tensorflow", threads=device.threads or 2, num_devices=device.num_devices or 2,
            feature_runtime=runtime if device.feature_runtime == "auto" else device.feature_runtime,
        )  # fmt: skip

    def prefers_int8(self) -> bool:
        return self.int8

    def choose_precision(self, config: RunConfig, facts: DataFacts) -> PrecisionChoice:
        return PrecisionChoice("mixed_bfloat16", f"measured for {facts.num_images} images of {config.input.height}")


INSTALLED = FakeMachine(installed=True)
OLD = FakeMachine(int8=False)
EMPTY, CACHED, GPU = FakeMachine(), FakeMachine(alpha=0.35), FakeMachine(alpha=0.35, installed=True, accelerator=True)
MOBILENET = ("model.name=mobilenetv2",)
LITE = ("model.name=efficientnet-lite0",)
SIZED = (*MOBILENET, "input.height=288", "input.width=288")
LABELS = (*LITE, "model.task=multi_label", "input.resize=auto")
WIDE = replace(PHOTOS, aspect_ratio=4 / 3)

Row = tuple[steps.Step, tuple[str, ...], DataFacts, FakeMachine, dict[str, Any]]
TABLE: list[Row] = [
    (steps.choose_model, (), PHOTOS, EMPTY, {"model.name": "cifar10-deep"}),
    (steps.choose_model, MOBILENET, PHOTOS, EMPTY, {}),
    # A network for large images: its own size, or the size at which its pretrained weights see more.
    (steps.choose_input_size, MOBILENET, PHOTOS, EMPTY, {"input.height": 288, "input.width": 288}),
    (steps.choose_input_size, LITE, PHOTOS, EMPTY, {"input.height": 256, "input.width": 256}),
    (steps.choose_input_size, LITE, replace(PHOTOS, median_side=128), EMPTY,
     {"input.height": 224, "input.width": 224}),
    # Images with several labels are seen whole: they keep their aspect ratio, in the area of a square.
    (steps.choose_input_size, LABELS, WIDE, EMPTY, {"input.height": 224, "input.width": 288}),
    (steps.choose_input_size, LABELS, replace(WIDE, median_side=180), EMPTY, {"input.height": 192, "input.width": 256}),
    (steps.choose_input_size, LABELS, replace(WIDE, aspect_ratio=3 / 4), EMPTY,
     {"input.height": 288, "input.width": 224}),
    (steps.choose_input_size, LABELS, replace(WIDE, aspect_ratio=10.0), EMPTY,
     {"input.height": 192, "input.width": 352}),
    (steps.choose_input_size, LABELS, replace(WIDE, aspect_ratio=1.09), EMPTY,
     {"input.height": 256, "input.width": 256}),
    (steps.choose_input_size, (*LABELS, "input.height=256"), WIDE, EMPTY, {"input.width": 256}),
    (steps.choose_input_size, (*LABELS, "input.resize=crop"), WIDE, EMPTY, {"input.height": 256, "input.width": 256}),
    (steps.choose_input_size, (*LABELS, "model.weights=none"), WIDE, EMPTY, {"input.height": 224, "input.width": 224}),
    (steps.choose_input_size, (*LITE, "input.resize=auto"), WIDE, EMPTY, {"input.height": 256, "input.width": 256}),
    (steps.choose_resize, (*LITE, "input.resize=auto"), PHOTOS, EMPTY, {"input.resize": "crop"}),
    (steps.choose_resize, (*LITE, "input.resize=auto", "model.task=multi_label"), PHOTOS, EMPTY,
     {"input.resize": "stretch"}),
    (steps.choose_resize, (*LITE, "input.resize=pad", "model.task=multi_label"), PHOTOS, EMPTY, {}),
    (steps.choose_monitor, (*LITE, "train.early_stopping.monitor=auto"), PHOTOS, EMPTY,
     {"train.early_stopping.monitor": "val_calibrated_loss"}),
    (steps.choose_monitor, (*LITE, "train.early_stopping.monitor=auto", "model.task=multi_label"), PHOTOS, EMPTY,
     {"train.early_stopping.monitor": "val_loss"}),
    (steps.choose_input_size, MOBILENET, DIGITS, EMPTY, {"input.height": 224, "input.width": 224}),
    (steps.choose_input_size, (*MOBILENET, "model.weights=none"), PHOTOS, EMPTY,
     {"input.height": 224, "input.width": 224}),
    # A network for small images: the images' size, from the network's up to SMALL_SIDE.
    (steps.choose_input_size, ("model.name=cifar10-deep",), DIGITS, EMPTY, {"input.height": 32, "input.width": 32}),
    (steps.choose_input_size, ("model.name=cifar10-deep",), PHOTOS, EMPTY, {"input.height": 64, "input.width": 64}),
    (steps.choose_input_size, (*MOBILENET, "input.height=96"), PHOTOS, EMPTY, {"input.width": 96}),
    (steps.choose_input_size, (*MOBILENET, "input.width=96"), PHOTOS, EMPTY, {"input.height": 96}),
    (steps.choose_input_size, (*MOBILENET, "input.height=64", "input.width=96"), PHOTOS, EMPTY, {}),
    (steps.choose_alpha, SIZED, PHOTOS, EMPTY, {"model.alpha": 1.0}),
    (steps.choose_alpha, SIZED, PHOTOS, CACHED, {"model.alpha": 0.35}),
    (steps.choose_alpha, (*SIZED, "input.height=224"), PHOTOS, CACHED, {"model.alpha": 1.0}),
    (steps.choose_alpha, (*SIZED, "model.weights=none"), PHOTOS, CACHED, {"model.alpha": 1.0}),
    (steps.choose_alpha, (*SIZED, "model.alpha=0.5"), PHOTOS, CACHED, {}),
    (steps.choose_alpha, ("model.name=vgg16", "input.height=224"), PHOTOS, CACHED, {}),
    (steps.choose_channels, ("model.name=cifar10-deep",), PHOTOS, EMPTY, {"input.channels": 3}),
    (steps.choose_channels, ("model.name=cifar10-deep",), DIGITS, EMPTY, {"input.channels": 1}),
    (steps.choose_channels, MOBILENET, DIGITS, EMPTY, {"input.channels": 3}),
    (steps.choose_channels, (*MOBILENET, "model.weights=none"), DIGITS, EMPTY, {"input.channels": 1}),
    (steps.choose_channels, ("input.channels=3",), DIGITS, EMPTY, {}),
    (steps.choose_solvers, LITE, PHOTOS, EMPTY, {}),
    (steps.choose_device, (), PHOTOS, EMPTY,
     {"device.backend": "tensorflow", "device.threads": 2, "device.feature_runtime": "onnxruntime"}),
    (steps.choose_device, LITE, PHOTOS, EMPTY,
     {"device.backend": "tensorflow", "device.threads": 2, "device.feature_runtime": "onnxruntime-int8"}),
    (steps.choose_device, ("model.name=efficientnet-lite1",), PHOTOS, EMPTY,
     {"device.backend": "tensorflow", "device.threads": 2, "device.feature_runtime": "onnxruntime"}),
    (steps.choose_device, LITE, PHOTOS, OLD,
     {"device.backend": "tensorflow", "device.threads": 2, "device.feature_runtime": "onnxruntime"}),
    (steps.choose_device, (*LITE, "device.feature_runtime=onnxruntime"), PHOTOS, EMPTY,
     {"device.backend": "tensorflow", "device.threads": 2}),
    (steps.choose_device, ("device.num_devices=0",), PHOTOS, GPU,
     {"device.backend": "tensorflow", "device.threads": 2, "device.feature_runtime": "keras", "device.num_devices": 2}),
    (steps.choose_weights, MOBILENET, PHOTOS, EMPTY, {"model.weights": "none"}),
    (steps.choose_weights, MOBILENET, PHOTOS, CACHED, {"model.weights": "imagenet"}),
    (steps.choose_weights, (*MOBILENET, "model.weights=none"), PHOTOS, CACHED, {}),
    (steps.choose_weights, (*MOBILENET, "model.weights=mine.keras"), PHOTOS, EMPTY, {}),
    (steps.choose_value_range, (), PHOTOS, EMPTY, {"input.value_range": "full"}),
    (steps.choose_value_range, ("device.threads=2",), SCANS, EMPTY, {"input.value_range": [0.0, 4095.0]}),
    (steps.choose_value_range, ("input.value_range=full",), SCANS, EMPTY, {}),
    (steps.choose_precision, (), PHOTOS, EMPTY, {}),
    (steps.choose_precision, ("train.precision=auto",), PHOTOS, EMPTY, {"train.precision": "mixed_bfloat16"}),
    (steps.choose_precision, ("train.precision=device",), PHOTOS, GPU, {"train.precision": "mixed_bfloat16"}),
]  # fmt: skip


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@pytest.mark.parametrize("row", TABLE, ids=[f"{number}-{row[0].__name__}" for number, row in enumerate(TABLE)])
def test_a_step_fills_in_its_settings_and_no_other(row: Row) -> None:
    step, assignments, facts, machine, expected = row
    config = resolve_config(assignments=assignments)
    before, after = flatten(parse.to_dict(config)), flatten(parse.to_dict(step(config, facts, machine).config))
    assert {key: after[key] for key in after if after[key] != before.get(key)} == expected


@pytest.mark.parametrize(
    ("facts", "machine", "recipe", "words"),
    [
        (PHOTOS, EMPTY, "quick", "no local ImageNet weights"),
        (PHOTOS, INSTALLED, "transfer", "600 images of about 300 pixels in 3 classes, no GPU: EfficientNet-Lite0 with"),
        (PHOTOS, GPU, "transfer", "a GPU: EfficientNet-Lite0"),
        (PHOTOS, CACHED, "transfer-mobilenetv2", "no GPU: MobileNetV2 (alpha 0.35)"),
        (DIGITS, INSTALLED, "quick", "without flips"),
        (DIGITS, CACHED, "quick", "without flips"),
        (ICONS, INSTALLED, "transfer", "600 images of about 28 pixels in 3 classes, no GPU: EfficientNet-Lite0 with"),
        (ICONS, EMPTY, "quick", "no local ImageNet weights"),
        (replace(ICONS, num_images=20_000), INSTALLED, "transfer", "EfficientNet-Lite0"),
        (replace(ICONS, num_images=20_001), INSTALLED, "quick", "small and many, so a small network from scratch"),
        (replace(DIGITS, num_images=20_001), INSTALLED, "quick", "all gray: a small network from scratch"),
        (SCENES, INSTALLED, "segmentation", "of 360x480 pixels with masks of 3 classes: EfficientNet-Lite0 with the"),
        (SCENES, GPU, "segmentation", "the installed ImageNet weights"),
        (SCENES, EMPTY, "fcn", "no local ImageNet weights: a small network from scratch"),
        (replace(SCENES, median_side=65), INSTALLED, "segmentation", "EfficientNet-Lite0"),
        (replace(SCENES, median_side=64, mask_size=(64, 96)), INSTALLED, "fcn", "of 64x96 pixels with masks of 3"),
    ],
)
def test_a_recipe_is_chosen_by_images_weights_and_device(
    facts: DataFacts, machine: FakeMachine, recipe: str, words: str
) -> None:
    choice = steps.choose_recipe(facts, machine, None)
    assert choice.recipe == recipe
    assert words in choice.reason


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (("model.name=resnet50",), "resnet50 with ImageNet weights"),
        (("model.name=cifar10-simple", "model.weights=mine.keras"), "cifar10-simple with the weights in mine.keras"),
        (("model.weights=mine.keras",), "EfficientNet-Lite0 with the weights in mine.keras"),
    ],
)
def test_a_network_or_weights_of_the_user_are_those_that_the_reason_names(
    assignments: tuple[str, ...], words: str
) -> None:
    choice = steps.choose_recipe(PHOTOS, INSTALLED, resolve_config(assignments=assignments).model)
    assert choice.recipe == "transfer"
    assert choice.reason == f"600 images of about 300 pixels in 3 classes, no GPU: {words}"


@pytest.mark.parametrize("assignments", [("model.name=cifar10-simple",), (*LITE, "model.weights=none")])
@pytest.mark.parametrize("facts", [PHOTOS, ICONS])
def test_a_network_without_pretrained_weights_is_trained_from_scratch(
    facts: DataFacts, assignments: tuple[str, ...]
) -> None:
    choice = steps.choose_recipe(facts, INSTALLED, resolve_config(assignments=assignments).model)
    assert choice.recipe == "quick"
    assert choice.reason.endswith(", by the settings: a network from scratch")


@pytest.mark.parametrize(
    ("assignments", "solver", "note"),
    [
        ((), "logistic", ""),
        (("model.name=vgg16",), "gradient", "head: trained for 12 epochs, not solved: the head has several layers"),
        (("model.name=vgg16", "model.hidden_units=[]"), "logistic", ""),
        (("model.hidden_units=[8]",), "gradient", "head: trained for 12 epochs, not solved: the head has several"),
        (("model.head=sigmoid",), "gradient", "head: trained for 12 epochs, not solved: model.head is sigmoid"),
        (("train.loss=focal",), "gradient", "head: trained for 12 epochs, not solved: train.loss is focal"),
        (
            ("train.label_smoothing=0.1",),
            "gradient",
            "head: trained for 12 epochs, not solved: train.label_smoothing is",
        ),
        (("train.l2=0.001",), "gradient", "head: trained for 12 epochs, not solved: train.l2 is 0.001"),
        (("train.stages.0.unfreeze=3",), "gradient", ""),
        (("train.stages.0.solver=gradient",), "gradient", ""),
        (("train.stages.0.solver=logistic", "train.loss=focal"), "logistic", ""),
    ],
)
def test_a_head_is_solved_where_it_is_a_logistic_regression(
    assignments: tuple[str, ...], solver: str, note: str
) -> None:
    config = resolve_config(recipes.load("transfer"), assignments=assignments)
    result = steps.choose_solvers(config, PHOTOS, EMPTY)
    assert result.config.train.stages[0].solver == solver
    assert result.config.train.stages[1] == config.train.stages[1]
    assert result.note.startswith(note)
    assert bool(result.note) == bool(note)


def test_the_note_tells_stages_apart_and_omits_those_that_no_solver_trains() -> None:
    config = resolve_config(recipes.load("transfer"), assignments=["model.head=sigmoid"])
    head, fine_tune = config.train.stages
    stages = (head, replace(head, name="head again"), replace(fine_tune, solver="auto"))
    result = steps.choose_solvers(replace(config, train=replace(config.train, stages=stages)), PHOTOS, EMPTY)
    assert [stage.solver for stage in result.config.train.stages] == ["gradient"] * 3
    assert result.note == (
        "head: trained for 12 epochs, not solved: model.head is sigmoid; "
        "head again: trained for 12 epochs, not solved: model.head is sigmoid"
    )


def test_this_machine_has_weights_without_a_home_or_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    choice = steps.choose_recipe(PHOTOS, THIS_MACHINE, None)
    assert choice.recipe == "transfer"
    assert "EfficientNet-Lite0 with the installed ImageNet weights" in choice.reason


@pytest.mark.parametrize(
    ("views", "images", "expected"), [(0, 0, 4), (0, 4000, 4), (0, 5000, 3), (0, 10**6, 1), (1, 9, 1), (7, 10**6, 7)]
)
def test_there_are_fewer_views_of_many_images(views: int, images: int, expected: int) -> None:
    config = RunConfig(train=TrainConfig(stages=(StageConfig("head", unfreeze=0), StageConfig("deep", views=views))))
    chosen = steps.choose_views(config, replace(PHOTOS, num_images=images), EMPTY).config
    assert [stage.views for stage in chosen.train.stages] == [1, expected]
    best = replace(config, train=replace(config.train, effort="best"))
    chosen = steps.choose_views(best, replace(PHOTOS, num_images=images), EMPTY).config
    assert chosen.train.stages[1].views == {4: 8, 3: 6}.get(expected, expected)
    several = replace(config, model=replace(config.model, task="multi_label"))
    assert steps.choose_views(several, PHOTOS, EMPTY).config.train.stages[1].views == (views or 1)
    assert bool(set(steps.list_unresolved(config)) - set(steps.list_unresolved(chosen))) == (not views)


@pytest.mark.parametrize(
    ("recipe", "assignments", "expected"),
    [
        ("transfer", (), [1, 4]),
        ("transfer", ("model.name=vgg16",), [4, 1]),
        ("transfer", ("model.name=vgg16", "train.stages.0.solver=logistic"), [1, 4]),
        ("transfer", ("model.name=vgg16", "train.stages.0.epochs=2"), [2, 3]),
        ("transfer", ("train.l2=0.001",), [4, 1]),
        ("auto", (), [1, 4]),
        ("auto", ("model.name=vgg16",), [4, 1]),
        ("auto", ("train.l2=0.001",), [4, 1]),
    ],
)
def test_stages_have_the_epochs_that_were_asked_for(
    recipe: str, assignments: tuple[str, ...], expected: list[int]
) -> None:
    request = TrainRequest.create("somewhere", recipe, None, ["train.epochs=5", *assignments])
    config, _ = merge_recipe(request, PHOTOS, INSTALLED)
    solved = steps.choose_solvers(config, PHOTOS, INSTALLED).config.train
    assert [count_epochs(solved, stage) for stage in solved.stages] == expected


def test_an_effort_holds_for_the_recipe_that_auto_chooses() -> None:
    request = TrainRequest.create("somewhere", "auto", None, ["train.effort=fast"])
    config, choice = merge_recipe(request, PHOTOS, INSTALLED)
    assert ([stage.name for stage in config.train.stages], config.train.effort) == (["head"], "fast")
    config, choice = merge_recipe(request, DIGITS, INSTALLED)
    assert config.train.effort is None
    assert choice is not None
    assert choice.reason.endswith("; it trains in one way only, so the effort has no effect")
    assert merge_recipe(replace(request, assignments=()), DIGITS, INSTALLED)[0] == config


def test_a_recipe_without_efforts_refuses_one() -> None:
    with pytest.raises(ConfigError, match="effort is best, but the recipe quick trains in one way only: leave it out"):
        TrainRequest.create("somewhere", "quick", None, ["train.effort=best"]).merge_layers()


def test_settings_of_the_user_stand_over_the_chosen_recipe() -> None:
    request = TrainRequest.create("somewhere", "auto", None, ["train.batch_size=7"])
    config, choice = merge_recipe(request, DIGITS, CACHED)
    assert choice is not None
    assert (config.recipe, choice.recipe, config.train.batch_size) == ("auto", "quick", 7)
    assert not config.augment.horizontal_flip
    named = TrainRequest.create("somewhere", "quick", None, ["train.batch_size=7"])
    assert merge_recipe(named, DIGITS, CACHED) == (named.merge_layers(), None)


@pytest.mark.parametrize("assignments", [(), MOBILENET, ("train.precision=auto", "device.num_devices=0")])
@pytest.mark.parametrize("facts", [PHOTOS, DIGITS, SCANS], ids=["photos", "digits", "scans"])
@pytest.mark.parametrize("machine", [EMPTY, CACHED, GPU], ids=["empty", "cached", "gpu"])
def test_after_all_steps_no_setting_is_open(
    assignments: tuple[str, ...], facts: DataFacts, machine: FakeMachine
) -> None:
    config, callback = resolve_config(assignments=assignments), RecordingCallback()
    assert list(steps.list_unresolved(config))
    config = apply_steps(config, (*steps.IMMEDIATE_STEPS, *steps.MEASURED_STEPS), facts, machine, callback)
    assert list(steps.list_unresolved(config)) == []
    assert any("more than 8 bits" in line for line in callback.lines) == (facts is SCANS)
    assert any(line.startswith("precision mixed_bfloat16") for line in callback.lines) == (
        "train.precision=auto" in assignments
    )


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "mixed_bfloat16"), ((7, 5), "float32"), (None, "float32")]
)
@pytest.mark.parametrize(
    ("facts", "machine", "recipe"),
    [(DIGITS, EMPTY, "quick"), (PHOTOS, INSTALLED, "transfer"), (PHOTOS, CACHED, "transfer-mobilenetv2")],
)
def test_without_options_the_device_decides_the_precision(
    capability: tuple[int, int] | None, expected: str, facts: DataFacts, machine: FakeMachine, recipe: str,
    monkeypatch: pytest.MonkeyPatch, own_cache: Path,
) -> None:  # fmt: skip
    """As `sightline train DATA` resolves it: bfloat16 on a GPU that computes in it, float32 elsewhere, unmeasured."""
    monkeypatch.setattr(backend, "find_compute_capability", lambda: capability)
    config, choice = merge_recipe(TrainRequest.create("somewhere", "auto", None, ()), facts, machine)
    assert choice is not None
    assert choice.recipe == recipe
    config = apply_steps(config, (*steps.IMMEDIATE_STEPS, steps.choose_weights), facts, machine, Callback())
    config, note = steps.choose_precision(config, facts, THIS_MACHINE)
    assert config.train.precision == expected
    assert note.startswith(f"precision {expected}: a GPU of compute capability" if capability else "")
    assert bool(note) is (capability is not None)
    assert not own_cache.exists()


def leave_open(config: RunConfig, keys: dict[str, Any]) -> RunConfig:
    for key, value in keys.items():
        table, name = key.split(".")
        config = replace(config, **{table: replace(getattr(config, table), **{name: value})})
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model.name", "auto"), ("model.alpha", None), ("model.weights", "auto"), ("input.height", None)),
        *(("input.width", None), ("input.channels", None), ("input.value_range", "auto"), ("train.precision", "auto")),
        ("train.precision", "device"),
        *(("device.backend", "auto"), ("device.feature_runtime", "auto"), ("device.num_devices", 0)),
        ("device.threads", 0),
    ],
)
def test_what_is_left_open_is_listed(key: str, value: Any) -> None:
    all_steps: Callable[[RunConfig], RunConfig] = lambda config: apply_steps(  # noqa: E731
        config, (*steps.IMMEDIATE_STEPS, *steps.MEASURED_STEPS), PHOTOS, EMPTY, Callback()
    )
    complete = all_steps(resolve_config(assignments=MOBILENET))
    assert list(steps.list_unresolved(leave_open(complete, {key: value}))) == [key]
