"""The teacher's logits are computed once, and the student learns from them in the step of the training loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import compute_outputs, make_plan, random_images
from sightline import backend
from sightline.callbacks import Callback, no_progress
from sightline.compress import distill, prune
from sightline.compress.finetune import FineTuner
from sightline.config import AugmentConfig, RunConfig
from sightline.data.types import Subset
from sightline.distributed import devices
from sightline.metrics import softmax
from sightline.models.build import build_model
from sightline.training.augment import pipeline
from sightline.training.loop import fit

SIDE = 8


def samples(count: int) -> Subset:
    """Images of three brightnesses, whose labels a student must trust less than its teacher."""
    labels = (np.arange(count) % 3).astype(np.int32)
    pixels = (random_images(count, SIDE) // 4 + 80 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return Subset(pixels, np.arange(count), labels, tuple(map(str, range(count))))


def model(seed: int) -> Any:
    return build_model(
        make_plan("cifar10-simple", side=SIDE, classes=3, seed=seed, hidden_units=(), pooling="average", dropout=0.0)
    )


def settings(**train: Any) -> RunConfig:
    config = RunConfig()
    return replace(config, train=replace(config.train, **train))


def make_teacher(logits: NDArray[np.float32]) -> distill.TeacherLogits:
    """A teacher with these logits, float32 [1, N, K], for images that are not augmented."""
    params = pipeline.sample_params(AugmentConfig(), logits.shape[1], (SIDE, SIDE), 0, 0)
    return distill.TeacherLogits(logits, params[None], AugmentConfig())


def test_teacher_logits_are_those_of_the_model_and_are_cached(tmp_path: Path) -> None:
    large, train = model(1).model, samples(10)
    taught = distill.compute_teacher_logits(large, train, settings(), tmp_path / "teacher.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 10, 3)
    assert taught.augmentation == AugmentConfig(translation=distill.SHIFT), "a run without augmentation: a small shift"
    for view in range(distill.VIEWS):
        moved = prune._to_numpy(pipeline.apply(taught.augmentation, train.pixels, taught.params[view]))
        assert (moved != train.pixels).any()
        np.testing.assert_allclose(taught.logits[view], compute_outputs(large, moved)["logits"], atol=1e-4)
    again = distill.compute_teacher_logits(
        model(2).model, train, settings(), tmp_path / "teacher.npy", no_progress
    )  # not evaluated
    np.testing.assert_array_equal(again.logits, taught.logits)


def test_teacher_and_student_see_the_same_augmentation(tmp_path: Path) -> None:
    large, train = model(1).model, samples(6)
    config = replace(settings(), augment=AugmentConfig(horizontal_flip=True, mixup=0.2))
    taught = distill.compute_teacher_logits(large, train, config, tmp_path / "teacher.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 6, 3)
    assert taught.augmentation.mixup == 0
    for view in range(distill.VIEWS):
        mirrored = taught.params[view][:, 0] > 0
        seen = np.where(mirrored[:, None, None, None], train.pixels[:, :, ::-1], train.pixels)
        np.testing.assert_allclose(taught.logits[view], compute_outputs(large, seen)["logits"], atol=1e-5)


def test_the_loss_combines_labels_and_the_softened_teacher() -> None:
    teacher, logits = (np.random.default_rng(i).normal(0, 3, (5, 3)).astype(np.float32) for i in range(2))
    objective = distill.Distillation.from_config(settings(), samples(5), make_teacher(teacher[None]))
    targets = objective.compute_targets(np.arange(5), 1, None)
    labels = np.eye(3, dtype=np.float32)[samples(5).labels]
    np.testing.assert_array_equal(targets, np.concatenate([labels, teacher], axis=1))
    hard = -(labels * np.log(softmax(logits))).sum(1)
    t = distill.TEMPERATURE
    p, q = softmax(teacher / t), softmax(logits / t)
    soft = (p * np.log(p / q)).sum(1) * t**2
    expected = distill.LABEL_WEIGHT * hard + (1 - distill.LABEL_WEIGHT) * soft
    np.testing.assert_allclose(objective.build_loss().call(targets, logits), expected, rtol=1e-4)
    keras = backend.keras()
    np.testing.assert_allclose(
        objective.build_loss()(targets, logits),
        keras.losses.CategoricalCrossentropy(from_logits=True)(labels, logits) * distill.LABEL_WEIGHT
        + keras.distillation.LogitsDistillation(t, loss=keras.losses.KLDivergence()).compute_loss(teacher, logits)
        * (1 - distill.LABEL_WEIGHT),
        rtol=1e-4,
    )
    weights = np.array([2, 0, 1, 0, 0.5], np.float32)
    weighted = objective.build_loss()(targets, logits, sample_weight=weights)
    assert float(weighted) == pytest.approx(float((expected * weights).mean()), rel=1e-4)


def test_padding_of_the_last_batch_changes_nothing() -> None:
    """A batch of five images is one step; in batches of five, six images are two, the second of one image."""
    logits = np.random.default_rng(0).normal(0, 3, (1, 6, 3)).astype(np.float32)
    losses = []
    for size in (6, 5):
        config = settings(epochs=1, batch_size=size)
        optimizer = replace(config.train.optimizer, name="sgd", learning_rate=0.0)
        config = replace(config, train=replace(config.train, optimizer=optimizer))
        taught = distill.Distillation.from_config(config, samples(6), make_teacher(logits))
        student = model(3)
        student.model.get_layer("drop1").rate = 0
        losses.append(fit(student, samples(6), samples(0), config, Callback(), objective=taught).history[0].loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_labels_and_a_teacher_are_learned_by_the_same_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The teacher adds targets and nothing else: the same loop, step, order of images and weights of a padded batch."""
    steps: list[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]] = []
    make_train_step = devices.make_train_step

    def record(learner: Any) -> devices.TrainStep:
        step = make_train_step(learner)

        def call(inputs: Any, targets: NDArray[np.float32], weights: NDArray[np.float32]) -> Any:
            steps.append((np.array(inputs), targets, weights))
            return step(inputs, targets, weights)

        return call

    monkeypatch.setattr(devices, "make_train_step", record)
    config, train = settings(epochs=2, batch_size=5), samples(12)
    for number, teacher in enumerate((None, lambda: make_teacher(np.ones((1, 12, 3), np.float32)))):
        tuner = FineTuner(config, train, samples(3), 2, (), False, teacher, Callback())
        tuner.fine_tune(model(3), tmp_path / str(number))
    assert len(steps) == 2 * 2 * 3
    for (pixels, targets, weights), (taught_pixels, taught_targets, taught_weights) in zip(
        steps[:6], steps[6:], strict=True
    ):
        np.testing.assert_array_equal(pixels, taught_pixels)
        np.testing.assert_array_equal(weights, taught_weights)
        np.testing.assert_array_equal(targets, taught_targets[:, :3])
        assert (taught_targets[:, 3:] == 1).all()


def test_a_student_learns_what_only_the_teacher_knows() -> None:
    """All labels are wrong; the teacher is right and weighs more."""
    train = samples(60)
    wrong = Subset(train.pixels, train.rows, ((train.labels + 1) % 3).astype(np.int32), train.paths)
    logits = 9 * np.eye(3, dtype=np.float32)[train.labels][None]
    student = model(3)
    config = settings(epochs=40, batch_size=20)
    config = replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, learning_rate=0.03)))
    taught = distill.Distillation.from_config(config, wrong, make_teacher(logits))
    fit(student, wrong, train, config, Callback(), objective=taught)
    right = compute_outputs(student.model, train.pixels)["logits"].argmax(1) == train.labels
    assert right.mean() > 0.8


def label_sets(count: int) -> Subset:
    """Images whose first class is red, and whose second one is blue."""
    labels = np.array([[i % 2, i // 2 % 2] for i in range(count)], np.uint8)
    pixels = (random_images(count, SIDE) // 4).astype(np.uint8)
    pixels[..., ::2] += 160 * labels[:, None, None]
    return Subset(pixels, np.arange(count), labels, tuple(map(str, range(count))))


def multi_label(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, task="multi_label"))


def test_with_several_labels_each_class_diverges_by_itself() -> None:
    teacher, logits = (np.random.default_rng(i).normal(0, 3, (5, 2)).astype(np.float32) for i in range(2))
    train = label_sets(5)
    objective = distill.Distillation.from_config(multi_label(settings()), train, make_teacher(teacher[None]))
    targets = objective.compute_targets(np.arange(5), 1, None)
    np.testing.assert_array_equal(targets, np.concatenate([train.labels, teacher], axis=1))

    def sigmoid(z: NDArray[np.float32]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-z.astype(np.float64)))

    t, y = distill.TEMPERATURE, train.labels
    hard = -(y * np.log(sigmoid(logits)) + (1 - y) * np.log(sigmoid(-logits))).mean(1)
    p, q = sigmoid(teacher / t), sigmoid(logits / t)
    soft = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1) * t**2
    expected = distill.LABEL_WEIGHT * hard + (1 - distill.LABEL_WEIGHT) * soft
    np.testing.assert_allclose(objective.build_loss().call(targets, logits), expected, rtol=1e-4)
    accuracy = objective.build_accuracy()
    accuracy.update_state(targets, logits)
    assert float(accuracy.result()) == pytest.approx(((logits >= 0) == y.astype(bool)).mean())


def test_a_student_of_several_labels_learns_what_only_the_teacher_knows() -> None:
    """All labels are wrong; the teacher is right and weighs more."""
    train = label_sets(60)
    wrong = replace(train, labels=1 - train.labels)
    logits = 12 * train.labels[None].astype(np.float32) - 6
    student = build_model(
        replace(
            make_plan("cifar10-simple", side=SIDE, classes=2, hidden_units=(), pooling="average", dropout=0.0, seed=3),
            activation="sigmoid",
        )
    )
    config = multi_label(settings(epochs=60, batch_size=20))
    config = replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, learning_rate=0.03)))
    taught = distill.Distillation.from_config(config, wrong, make_teacher(logits))
    fit(student, wrong, train, config, Callback(), objective=taught)
    right = (compute_outputs(student.model, train.pixels)["logits"] >= 0) == train.labels.astype(bool)
    assert right.mean() > 0.8


def test_a_student_learns_from_images_of_parent_classes(tmp_path: Path) -> None:
    """Such images have more targets than there are classes: one for each node of the tree."""
    train = samples(12)
    labels = np.eye(3, dtype=np.uint8)[train.labels]
    labels[:2, :2] = 1  # the parent of the first two classes
    config = settings(batch_size=4)
    config = replace(config, model=replace(config.model, task="hierarchical"))
    taught = make_teacher(9 * np.eye(3, dtype=np.float32)[train.labels][None])
    student = model(3)
    tuner = FineTuner(config, replace(train, labels=labels), samples(0), 2, (), False, lambda: taught, Callback())
    before = [array.copy() for array in student.model.get_weights()]
    tuner.fine_tune(student, tmp_path)
    assert any((old != new).any() for old, new in zip(before, student.model.get_weights(), strict=True))
    objective = distill.Distillation.from_config(config, replace(train, labels=labels), taught)
    targets, logits = objective.compute_targets(np.arange(12), 1, None), taught.logits[0]
    assert targets.shape == (12, 3 + 1 + 3)
    possible = (softmax(logits) * labels).sum(1)
    expected = -distill.LABEL_WEIGHT * np.log(possible)  # the student equals the teacher, so they do not diverge
    np.testing.assert_allclose(objective.build_loss().call(targets, logits), expected, rtol=1e-3, atol=1e-6)
