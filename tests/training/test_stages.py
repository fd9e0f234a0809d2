"""Stages train only unfrozen layers, and features replace the frozen layers that computed them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import RUNS, build_network, make_plan, random_images
from sightline import backend
from sightline.callbacks import Progress, no_progress
from sightline.config import AugmentConfig, DeviceConfig, RunConfig, SplitConfig, StageConfig
from sightline.data import feature_cache
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.errors import UsageError
from sightline.models.build import Network, build_model
from sightline.models.registry import ENTRIES
from sightline.seeding import derive_seed
from sightline.training import stage_features, stages
from sightline.training.augment import pipeline

Array = NDArray[Any]


def run_model(model: Any, values: Any) -> Array:
    return np.asarray(backend.keras().ops.convert_to_numpy(model(values, training=False)))


def build_model_to(network: Network, tensor: Any) -> Any:
    return backend.keras().Model(network.model.input, tensor)


def build_model_from(network: Network, tensor: Any) -> Any:
    return backend.keras().Model(tensor, network.logits)


def make_subset(count: int, side: int, classes: int = 3, seed: int = 0) -> Subset:
    """Return a subset whose rows are not in order, with pixels of other images between them."""
    rows = np.random.default_rng(seed).permutation(2 * count)[:count]
    labels = (np.arange(count) % classes).astype(np.int32)
    return Subset(random_images(2 * count, side, seed=seed), rows, labels, tuple(f"{seed}-{i}" for i in range(count)))


# The freeze boundary


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", RUNS)
def test_frozen_and_trainable_layers_compose_to_the_model(name: str, fraction: float) -> None:
    built_network = build_network(name)
    tensor = stages.find_freeze_boundary(
        built_network, StageConfig(unfreeze=int(fraction * len(built_network.backbone)))
    )
    assert tensor is not None
    pixels = random_images(2, ENTRIES[name].min_input_size)
    expected = run_model(backend.keras().Model(built_network.model.input, built_network.logits), pixels)
    np.testing.assert_allclose(
        run_model(build_model_from(built_network, tensor), run_model(build_model_to(built_network, tensor), pixels)),
        expected,
        atol=1e-5 * np.abs(expected).max(),
    )


def list_operations(tensor: Any, stop: Any) -> list[Any]:
    """Return the operations that compute `tensor`, going back no further than `stop`."""
    result, pending, visited = [], [tensor], set()
    while pending:
        current = pending.pop()
        if current is stop or id(current) in visited:
            continue
        visited.add(id(current))
        operation = current._keras_history.operation
        result.append(operation)
        pending += operation._inbound_nodes[0].input_tensors
    return result


@pytest.mark.parametrize("name", RUNS)
def test_boundary_includes_all_frozen_layers_and_splits_no_block(name: str) -> None:
    built_network = build_network(name)
    depth = len(built_network.backbone)
    weighted = {layer.name for layer in built_network.model.layers if layer.weights}  # operations are not layers
    num_operations = []
    for unfreeze in range(0, depth, max(1, depth // 25)):
        tensor = stages.find_freeze_boundary(built_network, StageConfig(unfreeze=unfreeze))
        assert tensor is not None
        after_boundary = {operation.name for operation in list_operations(built_network.logits, tensor)}
        assert "pixels" not in after_boundary, "a path bypasses the boundary"
        assert weighted & set(built_network.backbone[depth - unfreeze :]) <= after_boundary
        assert "predictions" in after_boundary
        num_operations.append(len(list_operations(tensor, None)))
        if unfreeze == 0:  # no weights between the end of the backbone and the boundary
            assert not (weighted & after_boundary) - {"fc1", "fc2", "predictions"}
    assert num_operations == sorted(num_operations, reverse=True)
    assert len(set(num_operations)) > 1


def test_boundary_is_before_a_partly_unfrozen_residual_block() -> None:
    built_network = build_network("mobilenetv2")
    index = built_network.backbone.index("block_14_depthwise")
    tensor = stages.find_freeze_boundary(built_network, StageConfig(unfreeze=len(built_network.backbone) - index))
    assert tensor is not None
    before = tensor._keras_history.operation.name
    assert before == "block_13_project_BN", "block 14 adds its input to its output"


def test_boundary_is_after_the_pooling_of_a_frozen_backbone() -> None:
    tensor = stages.find_freeze_boundary(build_network("mobilenetv2"), StageConfig(unfreeze=0))
    assert tensor is not None
    assert tensor.shape == (None, 1280)


@pytest.mark.parametrize("unfreeze", [-1, 1000])
def test_nothing_frozen_no_boundary(unfreeze: int) -> None:
    built_network = build_network("fashion-cnn")
    assert (
        stages.find_freeze_boundary(built_network, StageConfig(unfreeze=min(unfreeze, len(built_network.backbone))))
        is None
    )


def test_unfreezing_too_many_layers_is_rejected() -> None:
    built_network = build_network("fashion-cnn")
    message = r"Stage 'deep' unfreezes 10 layers, but the backbone has only 9\. Set its unfreeze .* such as 3"
    with pytest.raises(UsageError, match=message):
        stages.find_freeze_boundary(built_network, StageConfig("deep", unfreeze=10))
    with pytest.raises(UsageError, match=message):
        stages.freeze_layers(built_network, StageConfig("deep", unfreeze=10))


# Trainable layers


def find_changed_layers(model: Any, inputs: Array, classes: int) -> set[str]:
    """Return the names of the layers that one training step changes."""
    keras = backend.keras()
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}
    model.compile(keras.optimizers.SGD(1.0), keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.train_on_batch(inputs, np.eye(classes, dtype=np.float32)[np.arange(len(inputs)) % classes])
    return {v.path.split("/")[0] for v in model.weights if (keras.ops.convert_to_numpy(v) != before[v.path]).any()}


HEAD = {"fc1", "predictions"}


@pytest.mark.backends
@pytest.mark.parametrize(
    ("unfreeze", "learns"),
    [
        (0, HEAD),
        (1, HEAD),  # a pooling layer has no weights
        (2, HEAD | {"conv3b"}),
        (3, HEAD | {"conv3b", "conv3a"}),
        (9, HEAD | {f"conv{i}{k}" for i in (1, 2, 3) for k in "ab"}),
        (-1, HEAD | {f"conv{i}{k}" for i in (1, 2, 3) for k in "ab"}),
    ],
)
def test_only_unfrozen_layers_are_trained(unfreeze: int, learns: set[str]) -> None:
    built_network = build_model(make_plan("fashion-cnn", classes=3))
    stages.freeze_layers(built_network, StageConfig(unfreeze=unfreeze))
    training_model = backend.keras().Model(built_network.model.input, built_network.logits)
    assert find_changed_layers(training_model, random_images(6, 8), 3) == learns


def test_stages_follow_each_other_whatever_was_frozen_before() -> None:
    built_network = build_model(make_plan("fashion-cnn", classes=3))
    for unfreeze, learns in [(0, HEAD), (2, HEAD | {"conv3b"}), (0, HEAD)]:
        stages.freeze_layers(built_network, StageConfig(unfreeze=unfreeze))
        tensor = stages.find_freeze_boundary(built_network, StageConfig(unfreeze=unfreeze))
        assert (
            find_changed_layers(
                build_model_from(built_network, tensor),
                run_model(build_model_to(built_network, tensor), random_images(6, 8)),
                3,
            )
            == learns
        )


@pytest.fixture(scope="module")
def mobilenet() -> Network:
    return dataclasses.replace(build_model(make_plan("mobilenetv2", classes=3)), pretrained=True)


def list_normalizations(built_network: Network) -> set[str]:
    layer_class = backend.keras().layers.BatchNormalization
    return {layer.name for layer in built_network.model.layers if isinstance(layer, layer_class)}


@pytest.mark.parametrize("unfreeze", [12, -1])
def test_pretrained_batch_normalization_never_changes(mobilenet: Network, unfreeze: int) -> None:
    stage = StageConfig(unfreeze=unfreeze)
    stages.freeze_layers(mobilenet, stage)
    tensor = stages.find_freeze_boundary(mobilenet, stage)
    pixels = random_images(6, 32)
    inputs, training_model = pixels, backend.keras().Model(mobilenet.model.input, mobilenet.logits)
    if tensor is not None:
        inputs, training_model = (
            run_model(build_model_to(mobilenet, tensor), pixels),
            build_model_from(mobilenet, tensor),
        )
    trainable = {v.path.split("/")[0] for v in training_model.trainable_variables}
    unfrozen = set(mobilenet.backbone[-unfreeze:] if unfreeze > 0 else mobilenet.backbone)
    layer_classes = backend.keras().layers.Conv2D, backend.keras().layers.DepthwiseConv2D
    convolutions = {layer.name for layer in mobilenet.model.layers if isinstance(layer, layer_classes)}
    assert trainable == (unfrozen & convolutions) | {"predictions"}
    changed_layers = find_changed_layers(training_model, inputs, 3)
    assert {"Conv_1", "predictions"} <= changed_layers <= trainable
    assert list_normalizations(mobilenet)
    assert not changed_layers & list_normalizations(mobilenet)


@pytest.mark.parametrize("unfreeze", [0, 12, -1])
def test_pretrained_batch_normalization_is_trained_where_that_is_asked_for(unfreeze: int) -> None:
    network = dataclasses.replace(build_model(make_plan("mobilenetv2", classes=3)), pretrained=True)
    stages.freeze_layers(network, StageConfig(unfreeze=unfreeze), freeze_batch_norm=False)
    unfrozen = set(network.backbone[-unfreeze:] if unfreeze > 0 else network.backbone if unfreeze else ())
    trainable = {layer.name for layer in network.model.layers if layer.trainable} & list_normalizations(network)
    assert trainable == unfrozen & list_normalizations(network)
    changed = find_changed_layers(backend.keras().Model(network.model.input, network.logits), random_images(6, 32), 3)
    assert changed & list_normalizations(network) == trainable


@pytest.mark.backends
def test_batch_normalization_from_scratch_is_trained() -> None:
    built_network = build_network("mobilenetv2")
    stages.freeze_layers(built_network, StageConfig(unfreeze=-1))
    assert all(layer.trainable for layer in built_network.model.layers)
    assert list_normalizations(built_network) <= set(built_network.backbone)
    stages.freeze_layers(built_network, StageConfig(unfreeze=0))
    assert not any(built_network.model.get_layer(name).trainable for name in list_normalizations(built_network))
    stages.freeze_layers(built_network, StageConfig(unfreeze=-1))


# Features


AUGMENT_CONFIG = AugmentConfig(horizontal_flip=True, rotation=20)


def extract_features(
    built_network: Network, group: Sequence[StageConfig], train: Subset, config: RunConfig, **options: Any
) -> stage_features.StageFeatures:
    progress = options.get("progress", no_progress)
    return extract_views(built_network, group, train, make_subset(5, 8, seed=1), config, progress)


def extract_views(
    built_network: Network,
    group: Sequence[StageConfig],
    train: Subset,
    validation: Subset,
    config: RunConfig,
    progress: Progress = no_progress,
) -> stage_features.StageFeatures:
    """Return the features of all views that a stage of `group` has."""
    features = stage_features.extract_features(built_network, group, train, validation, config, progress)
    assert features is not None
    assert features.views == 1
    if (views := max(stage_features.count_views(stage, config) for stage in group)) > 1:
        features = stage_features.add_views(features, views, train, validation, config, progress)
    return features


def test_folds_share_the_features_of_all_images(own_cache: Path) -> None:
    """A fold trains on images that another one holds out; the final model trains on all of them."""
    built_network, images = build_network("fashion-cnn"), make_subset(40, 8)
    group = [StageConfig(unfreeze=0, views=2)]
    config = RunConfig(split=SplitConfig(folds=2), augment=AUGMENT_CONFIG)
    first, second = np.arange(20), np.arange(20, 40)
    extracted = []
    for rows, validation_rows in ((first[:16], first[16:]), (second[:16], second[16:]), (np.arange(40), first[:0])):
        train, validation = images.select(rows), images.select(validation_rows)
        features = extract_views(built_network, group, train, validation, config)
        assert len(list(own_cache.iterdir())) == 2, "computed once: those of the images, and those of all views"
        assert features.train.paths == train.paths * 2
        np.testing.assert_array_equal(features.train.labels, np.tile(train.labels, 2))
        np.testing.assert_array_equal(features.validation.labels, validation.labels)
        extracted.append(features)
    everything = extracted[2].train.take(slice(None)).reshape(2, 40, -1)
    expected = run_model(build_model_to(built_network, extracted[2].tensor), images.take(slice(None)))
    np.testing.assert_allclose(everything[0], expected.reshape(40, -1), atol=1e-4)
    for fold, rows in ((extracted[0], first), (extracted[1], second)):
        np.testing.assert_array_equal(fold.train.take(slice(None)).reshape(2, 16, -1), everything[:, rows[:16]])
        np.testing.assert_array_equal(fold.validation.take(slice(None)).reshape(4, -1), everything[0, rows[16:]])


def test_interrupted_feature_extraction_resumes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the third batch of 32: the second attempt computes the last two of four, with the same result."""
    built_network, train = build_network("fashion-cnn"), make_subset(100, 8)
    group, config = [StageConfig(unfreeze=0)], RunConfig()
    batch_sizes: list[int] = []
    plain = stage_features.build_frozen_layers  # type: ignore[attr-defined]  # imported there

    def make_counting_layers(*arguments: Any) -> Any:
        frozen_layers = plain(*arguments)

        def run(rows: Array) -> Array:
            batch_sizes.append(len(rows))
            return frozen_layers.run(rows)

        return dataclasses.replace(frozen_layers, run=run)

    def stop(_task: str, done: int, _total: int) -> None:
        if done == 5 + 2 * 32:  # after the validation split
            raise KeyboardInterrupt

    monkeypatch.setattr(stage_features, "build_frozen_layers", make_counting_layers)
    with pytest.raises(KeyboardInterrupt):
        extract_features(built_network, group, train, config, progress=stop)
    assert batch_sizes[:3] == [5, 32, 32], "those after them may have been computed ahead"
    batch_sizes.clear()
    resumed = extract_features(built_network, group, train, config)
    assert sorted(batch_sizes) == [4, 32], "the validation split must be cached"
    assert not list(own_cache.glob("*.part*"))
    uncached = extract_features(
        built_network, group, train, dataclasses.replace(config, data=dataclasses.replace(config.data, cache=False))
    )
    assert resumed is not None
    assert uncached is not None
    np.testing.assert_array_equal(resumed.train.pixels, uncached.train.pixels)


@pytest.mark.backends
def test_features_are_outputs_of_the_frozen_layers() -> None:
    built_network, train = build_network("cifar10-deep"), make_subset(70, 8)  # more than one batch of 32
    features = extract_features(built_network, [StageConfig(unfreeze=0, views=1)], train, RunConfig())
    frozen = build_model_to(built_network, features.tensor)
    validation = make_subset(5, 8, seed=1)
    for values, subset in ((features.train, train), (features.validation, validation)):
        np.testing.assert_allclose(values.take(slice(None)), run_model(frozen, subset.take(slice(None))), atol=1e-5)
        np.testing.assert_array_equal(values.labels, subset.labels)
        assert values.paths == subset.paths
        assert values.pixels.dtype == np.float32
    assert features.views == 1


def test_views_are_the_image_then_augmented_copies() -> None:
    built_network, train, count = build_network("fashion-cnn"), make_subset(40, 8), 40
    config = RunConfig(seed=7, augment=AUGMENT_CONFIG)
    features = extract_features(built_network, [StageConfig(unfreeze=2, views=3)], train, config)
    assert features.views == 3
    assert len(features.train) == 3 * count
    assert len(features.validation) == 5
    frozen, pixels = build_model_to(built_network, features.tensor), train.take(slice(None))
    for view in range(3):
        view_pixels = pixels
        if view:
            params = pipeline.sample_params(AUGMENT_CONFIG, count, (8, 8), derive_seed(7, "views"), view)
            view_pixels = np.asarray(pipeline.apply(AUGMENT_CONFIG, pixels, params))
        rows = slice(view * count, (view + 1) * count)
        np.testing.assert_allclose(
            features.train.take(rows), run_model(frozen, view_pixels), atol=0.05
        )  # rounding may differ
        np.testing.assert_array_equal(features.train.labels[rows], train.labels)
        assert features.train.paths[rows] == train.paths
    assert np.abs(features.train.take(slice(0, count)) - features.train.take(slice(count, 2 * count))).max() > 0.1


def test_views_are_computed_by_the_layers_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting the layers and comparing them with Keras takes a second of a core."""
    count, build = 0, stage_features.build_frozen_layers  # type: ignore[attr-defined]  # imported there

    def count_layers(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        return build(*arguments)

    monkeypatch.setattr(stage_features, "build_frozen_layers", count_layers)
    config = RunConfig(augment=AUGMENT_CONFIG, device=DeviceConfig(feature_runtime="onnxruntime"))
    train, validation = make_subset(40, 8), make_subset(5, 8, seed=1)
    features = stage_features.extract_features(
        build_network("fashion-cnn"), [StageConfig(unfreeze=0)], train, validation, config, no_progress
    )
    assert features is not None
    stage_features.time_view(features.layers, train, config)
    stage_features.count_cached_views(features, 3, train, validation, config)
    assert stage_features.add_views(features, 3, train, validation, config, no_progress).views == 3
    assert count == 1


def test_the_time_of_a_view_is_also_that_of_its_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    built_network, train = build_network("fashion-cnn"), make_subset(80, 8)
    config = RunConfig(augment=AUGMENT_CONFIG, device=DeviceConfig(feature_runtime="onnxruntime"))
    features = extract_features(built_network, [StageConfig(unfreeze=0, views=1)], train, config)
    augment, seconds = devices.predict_on_batch, 0.0

    def augment_slowly(model: Any, inputs: Any) -> Any:
        nonlocal seconds
        seconds += len(inputs[0])
        return augment(model, inputs)

    monkeypatch.setattr(devices, "predict_on_batch", augment_slowly)
    monkeypatch.setattr(stage_features, "time", SimpleNamespace(perf_counter=lambda: seconds))
    assert stage_features.time_view(features.layers, train, config) == 80, "one second for each image"


def test_copies_without_augmentation_would_be_the_same_and_are_not_made() -> None:
    features = extract_features(
        build_network("fashion-cnn"), [StageConfig(unfreeze=0, views=4)], make_subset(6, 8), RunConfig()
    )
    assert (features.views, len(features.train)) == (1, 6)


def test_nothing_frozen_no_features() -> None:
    built_network = build_network("fashion-cnn")
    subset = make_subset(4, 8)
    assert (
        stage_features.extract_features(
            built_network, [StageConfig(unfreeze=9)], subset, subset, RunConfig(), no_progress
        )
        is None
    )


def test_stages_that_follow_go_on_from_the_same_features() -> None:
    """The group uses the boundary of its deepest stage; the others compute the remaining layers from there."""
    built_network, train = build_network("fashion-cnn"), make_subset(40, 8)
    config = RunConfig(augment=AUGMENT_CONFIG)
    head, deep = StageConfig(unfreeze=0, views=2), StageConfig(unfreeze=5, views=3)
    base = extract_features(built_network, [head, deep], train, config)
    assert base.tensor is stages.find_freeze_boundary(built_network, deep)
    assert base.views == 3
    same = stage_features.advance_features(built_network, base, deep, config, no_progress, lambda _: None)
    assert same.tensor is base.tensor
    assert len(same.train) == 120
    tasks: list[tuple[str, int, int]] = []
    further = stage_features.advance_features(
        built_network, base, head, config, lambda *event: tasks.append(event), lambda _: None
    )
    total = len(further.train) + len(further.validation)
    assert tasks[-1] == ("features of the remaining frozen layers", total, total)
    direct = extract_features(built_network, [head], train, config)
    assert further.tensor is direct.tensor
    assert further.views == direct.views == 2
    for one, other in ((further.train, direct.train), (further.validation, direct.validation)):
        np.testing.assert_allclose(one.take(slice(None)), other.take(slice(None)), atol=1e-4)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.paths == other.paths


def test_large_features_go_to_a_file_that_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built_network, train = build_network("fashion-cnn"), make_subset(6, 8)
    small = extract_features(built_network, [StageConfig(unfreeze=0)], train, RunConfig())
    monkeypatch.setattr(feature_cache, "MAX_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    large = extract_features(built_network, [StageConfig(unfreeze=0)], train, RunConfig())
    assert isinstance(large.train.pixels, np.memmap)
    np.testing.assert_array_equal(large.train.take(slice(None)), small.train.take(slice(None)))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_image_of_every_view() -> None:
    calls: list[tuple[str, int, int]] = []
    extract_features(
        build_network("fashion-cnn"),
        [StageConfig(unfreeze=0, views=2)],
        make_subset(40, 8),
        RunConfig(augment=AUGMENT_CONFIG),
        progress=lambda task, done, total: calls.append((task, done, total)),
    )
    originals, views = ([call[1:] for call in calls if call[2] == total] for total in (45, 80))
    assert (originals[-1], views[-1]) == ((45, 45), (80, 80)), "with 5 validation images; then with another view"
    for done in (originals, views):
        assert done == sorted(done)
