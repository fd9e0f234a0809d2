"""Stages train only unfrozen layers, and features replace the frozen layers that computed them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import RUNS, network, pictures, plan
from sightline import backend
from sightline.config import AugmentConfig, RunConfig, StageConfig
from sightline.errors import UsageError
from sightline.models.build import Network, build
from sightline.models.registry import ENTRIES
from sightline.randomness import derive
from sightline.records import Samples, no_progress
from sightline.training import augment, stages

Array = NDArray[Any]


def called(model: Any, values: Any) -> Array:
    return np.asarray(backend.keras().ops.convert_to_numpy(model(values, training=False)))


def until(network: Network, tensor: Any) -> Any:
    return backend.keras().Model(network.model.input, tensor)


def after(network: Network, tensor: Any) -> Any:
    return backend.keras().Model(tensor, network.logits)


def samples(count: int, side: int, classes: int = 3, seed: int = 0) -> Samples:
    """Return a subset whose rows are not in order, with pixels of other images between them."""
    rows = np.random.default_rng(seed).permutation(2 * count)[:count]
    labels = (np.arange(count) % classes).astype(np.int32)
    return Samples(pictures(2 * count, side, seed=seed), rows, labels, tuple(f"{seed}-{i}" for i in range(count)))


# The freeze boundary


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", RUNS)
def test_frozen_part_and_the_rest_make_the_whole(name: str, share: float) -> None:
    made = network(name)
    tensor = stages.cut(made, StageConfig(thaw=int(share * len(made.backbone))))
    assert tensor is not None
    pixels = pictures(2, ENTRIES[name].smallest)
    whole = called(backend.keras().Model(made.model.input, made.logits), pixels)
    np.testing.assert_allclose(
        called(after(made, tensor), called(until(made, tensor), pixels)), whole, atol=1e-5 * np.abs(whole).max()
    )


def operations(tensor: Any, stop: Any) -> list[Any]:
    """Return the operations that compute `tensor`, going back no further than `stop`."""
    found, todo, seen = [], [tensor], set()
    while todo:
        at = todo.pop()
        if at is stop or id(at) in seen:
            continue
        seen.add(id(at))
        operation = at._keras_history.operation
        found.append(operation)
        todo += operation._inbound_nodes[0].input_tensors
    return found


@pytest.mark.parametrize("name", RUNS)
def test_cut_takes_all_that_is_frozen_and_no_block_in_its_middle(name: str) -> None:
    made = network(name)
    depth = len(made.backbone)
    weighty = {layer.name for layer in made.model.layers if layer.weights}  # operations are not layers
    taken = []
    for thaw in range(0, depth, max(1, depth // 25)):
        tensor = stages.cut(made, StageConfig(thaw=thaw))
        assert tensor is not None
        behind = {operation.name for operation in operations(made.logits, tensor)}
        assert "pixels" not in behind, "a path bypasses the boundary"
        assert weighty & set(made.backbone[depth - thaw :]) <= behind
        assert "predictions" in behind
        taken.append(len(operations(tensor, None)))
        if thaw == 0:  # no weights between the end of the backbone and the boundary
            assert not (weighty & behind) - {"fc1", "fc2", "predictions"}
    assert taken == sorted(taken, reverse=True)
    assert len(set(taken)) > 1


def test_cut_goes_before_a_residual_block_that_is_thawed_in_part() -> None:
    made = network("mobilenetv2")
    inside = made.backbone.index("block_14_depthwise")
    tensor = stages.cut(made, StageConfig(thaw=len(made.backbone) - inside))
    assert tensor is not None
    before = tensor._keras_history.operation.name
    assert before == "block_13_project_BN", "block 14 adds its input to its output"


def test_cut_lies_behind_the_pooling_of_a_frozen_backbone() -> None:
    tensor = stages.cut(network("mobilenetv2"), StageConfig(thaw=0))
    assert tensor is not None
    assert tensor.shape == (None, 1280)


@pytest.mark.parametrize("thaw", [-1, 1000])
def test_nothing_frozen_nothing_cut(thaw: int) -> None:
    made = network("fashion-cnn")
    assert stages.cut(made, StageConfig(thaw=min(thaw, len(made.backbone)))) is None


def test_thawing_more_than_there_is_says_how_much_there_is() -> None:
    made = network("fashion-cnn")
    message = r"Stage 'deep' unfreezes 10 layers, but the backbone has only 9\."
    with pytest.raises(UsageError, match=message):
        stages.cut(made, StageConfig("deep", thaw=10))
    with pytest.raises(UsageError, match=message):
        stages.freeze(made, StageConfig("deep", thaw=10))


# Trainable layers


def changed(model: Any, inputs: Array, classes: int) -> set[str]:
    """Return the names of the layers that one training step changes."""
    keras = backend.keras()
    before = {v.path: keras.ops.convert_to_numpy(v).copy() for v in model.weights}
    model.compile(keras.optimizers.SGD(1.0), keras.losses.CategoricalCrossentropy(from_logits=True), run_eagerly=True)
    model.train_on_batch(inputs, np.eye(classes, dtype=np.float32)[np.arange(len(inputs)) % classes])
    return {v.path.split("/")[0] for v in model.weights if (keras.ops.convert_to_numpy(v) != before[v.path]).any()}


HEAD = {"fc1", "predictions"}


@pytest.mark.backends
@pytest.mark.parametrize(
    ("thaw", "learns"),
    [
        (0, HEAD),
        (1, HEAD),  # a pooling layer has no weights
        (2, HEAD | {"conv3b"}),
        (3, HEAD | {"conv3b", "conv3a"}),
        (9, HEAD | {f"conv{i}{k}" for i in (1, 2, 3) for k in "ab"}),
        (-1, HEAD | {f"conv{i}{k}" for i in (1, 2, 3) for k in "ab"}),
    ],
)
def test_only_what_is_thawed_learns(thaw: int, learns: set[str]) -> None:
    made = build(plan("fashion-cnn", classes=3))
    stages.freeze(made, StageConfig(thaw=thaw))
    learner = backend.keras().Model(made.model.input, made.logits)
    assert changed(learner, pictures(6, 8), 3) == learns


def test_stages_follow_each_other_whatever_was_frozen_before() -> None:
    made = build(plan("fashion-cnn", classes=3))
    for thaw, learns in [(0, HEAD), (2, HEAD | {"conv3b"}), (0, HEAD)]:
        stages.freeze(made, StageConfig(thaw=thaw))
        tensor = stages.cut(made, StageConfig(thaw=thaw))
        assert changed(after(made, tensor), called(until(made, tensor), pictures(6, 8)), 3) == learns


@pytest.fixture(scope="module")
def mobilenet() -> Network:
    return dataclasses.replace(build(plan("mobilenetv2", classes=3)), pretrained=True)


def normalizations(made: Network) -> set[str]:
    kind = backend.keras().layers.BatchNormalization
    return {layer.name for layer in made.model.layers if isinstance(layer, kind)}


@pytest.mark.parametrize("thaw", [12, -1])
def test_pretrained_batch_normalisation_never_moves(mobilenet: Network, thaw: int) -> None:
    stage = StageConfig(thaw=thaw)
    stages.freeze(mobilenet, stage)
    tensor = stages.cut(mobilenet, stage)
    pixels = pictures(6, 32)
    inputs, learner = pixels, backend.keras().Model(mobilenet.model.input, mobilenet.logits)
    if tensor is not None:
        inputs, learner = called(until(mobilenet, tensor), pixels), after(mobilenet, tensor)
    trainable = {v.path.split("/")[0] for v in learner.trainable_variables}
    thawed = set(mobilenet.backbone[-thaw:] if thaw > 0 else mobilenet.backbone)
    kinds = backend.keras().layers.Conv2D, backend.keras().layers.DepthwiseConv2D
    convolutions = {layer.name for layer in mobilenet.model.layers if isinstance(layer, kinds)}
    assert trainable == (thawed & convolutions) | {"predictions"}
    learns = changed(learner, inputs, 3)
    assert {"Conv_1", "predictions"} <= learns <= trainable
    assert normalizations(mobilenet)
    assert not learns & normalizations(mobilenet)


@pytest.mark.backends
def test_batch_normalisation_from_scratch_learns() -> None:
    made = network("mobilenetv2")
    stages.freeze(made, StageConfig(thaw=-1))
    assert all(layer.trainable for layer in made.model.layers)
    assert normalizations(made) <= set(made.backbone)
    stages.freeze(made, StageConfig(thaw=0))
    assert not any(made.model.get_layer(name).trainable for name in normalizations(made))
    stages.freeze(made, StageConfig(thaw=-1))


# Features


CHANGES = AugmentConfig(flip=True, rotation=20)


def extract(
    made: Network, group: Sequence[StageConfig], train: Samples, config: RunConfig, **options: Any
) -> stages.Features:
    found = stages.extract(made, group, train, samples(5, 8, seed=1), config, options.get("progress", no_progress))
    assert found is not None
    return found


def test_features_that_were_begun_go_on_where_they_stopped(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the third batch of 32: the second attempt computes the last two of four, with the same result."""
    made, train = network("fashion-cnn"), samples(100, 8)
    group, config = [StageConfig(thaw=0)], RunConfig()
    computed: list[int] = []
    plain = stages.layers  # type: ignore[attr-defined]  # imported there

    def counting(*arguments: Any) -> Any:
        found = plain(*arguments)

        def run(rows: Array) -> Array:
            computed.append(len(rows))
            return found.run(rows)

        return dataclasses.replace(found, run=run)

    def stop(_task: str, done: int, _total: int) -> None:
        if done == 5 + 2 * 32:  # after the validation split
            raise KeyboardInterrupt

    monkeypatch.setattr(stages, "layers", counting)
    with pytest.raises(KeyboardInterrupt):
        extract(made, group, train, config, progress=stop)
    assert computed == [5, 32, 32]
    again = extract(made, group, train, config)
    assert computed == [5, 32, 32, 32, 4], "the validation split must be cached"
    assert not list(own_cache.glob("*.part*"))
    whole = extract(made, group, train, dataclasses.replace(config, data=dataclasses.replace(config.data, cache=False)))
    assert again is not None
    assert whole is not None
    np.testing.assert_array_equal(again.train.pixels, whole.train.pixels)


@pytest.mark.backends
def test_features_are_what_the_frozen_layers_answer() -> None:
    made, train = network("cifar10-deep"), samples(70, 8)  # more than one batch of 32
    found = extract(made, [StageConfig(thaw=0, views=1)], train, RunConfig())
    frozen = until(made, found.tensor)
    held_out = samples(5, 8, seed=1)
    for features, given in ((found.train, train), (found.validation, held_out)):
        np.testing.assert_allclose(features.take(slice(None)), called(frozen, given.take(slice(None))), atol=1e-5)
        np.testing.assert_array_equal(features.labels, given.labels)
        assert features.paths == given.paths
        assert features.pixels.dtype == np.float32
    assert found.views == 1


def test_views_are_the_picture_then_augmented_copies() -> None:
    made, train, count = network("fashion-cnn"), samples(40, 8), 40
    config = RunConfig(seed=7, augment=CHANGES)
    found = extract(made, [StageConfig(thaw=2, views=3)], train, config)
    assert found.views == 3
    assert len(found.train) == 3 * count
    assert len(found.validation) == 5
    frozen, pixels = until(made, found.tensor), train.take(slice(None))
    for view in range(3):
        seen = pixels
        if view:
            drawn = augment.draw(CHANGES, count, (8, 8), derive(7, "views"), view)
            seen = np.asarray(augment.apply(CHANGES, pixels, drawn))
        rows = slice(view * count, (view + 1) * count)
        np.testing.assert_allclose(found.train.take(rows), called(frozen, seen), atol=0.05)  # rounding may differ
        np.testing.assert_array_equal(found.train.labels[rows], train.labels)
        assert found.train.paths[rows] == train.paths
    assert np.abs(found.train.take(slice(0, count)) - found.train.take(slice(count, 2 * count))).max() > 0.1


def test_copies_without_augmentation_would_be_the_same_and_are_not_made() -> None:
    found = extract(network("fashion-cnn"), [StageConfig(thaw=0, views=4)], samples(6, 8), RunConfig())
    assert (found.views, len(found.train)) == (1, 6)


def test_nothing_frozen_no_features() -> None:
    made = network("fashion-cnn")
    given = samples(4, 8)
    assert stages.extract(made, [StageConfig(thaw=9)], given, given, RunConfig(), no_progress) is None


def test_stages_that_follow_go_on_from_the_same_features() -> None:
    """The group uses the boundary of its deepest stage; the others compute the remaining layers from there."""
    made, train = network("fashion-cnn"), samples(40, 8)
    config = RunConfig(augment=CHANGES)
    head, deep = StageConfig(thaw=0, views=2), StageConfig(thaw=5, views=3)
    base = extract(made, [head, deep], train, config)
    assert base.tensor is stages.cut(made, deep)
    assert base.views == 3
    same = stages.onward(made, base, deep, config)
    assert same.tensor is base.tensor
    assert len(same.train) == 120
    further = stages.onward(made, base, head, config)
    direct = extract(made, [head], train, config)
    assert further.tensor is direct.tensor
    assert further.views == direct.views == 2
    for one, other in ((further.train, direct.train), (further.validation, direct.validation)):
        np.testing.assert_allclose(one.take(slice(None)), other.take(slice(None)), atol=1e-4)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.paths == other.paths


def test_large_features_go_to_a_file_that_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, train = network("fashion-cnn"), samples(6, 8)
    small = extract(made, [StageConfig(thaw=0)], train, RunConfig())
    monkeypatch.setattr(stages, "IN_MEMORY", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    large = extract(made, [StageConfig(thaw=0)], train, RunConfig())
    assert isinstance(large.train.pixels, np.memmap)
    np.testing.assert_array_equal(large.train.take(slice(None)), small.train.take(slice(None)))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_picture_of_every_view() -> None:
    calls: list[tuple[str, int, int]] = []
    extract(
        network("fashion-cnn"),
        [StageConfig(thaw=0, views=2)],
        samples(40, 8),
        RunConfig(augment=CHANGES),
        progress=lambda task, done, total: calls.append((task, done, total)),
    )
    assert calls[-1][1:] == (85, 85)
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert {call[2] for call in calls} == {85}
