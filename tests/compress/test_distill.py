"""A teacher's answers are asked for once, and are what the student learns from."""

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
from sightline.config import AugmentConfig, RunConfig
from sightline.data.types import Subset
from sightline.metrics import softmax
from sightline.models.build import build_model
from sightline.training.augment import pipeline

SIDE = 8


def samples(count: int) -> Subset:
    """Images of three brightnesses, labeled by chance: only the teacher knows better."""
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


def make_teacher(answers: NDArray[np.float32]) -> distill.TeacherLogits:
    """A teacher of these answers, float32 [1, N, K], for images as they are."""
    params = pipeline.sample_params(AugmentConfig(), answers.shape[1], (SIDE, SIDE), 0, 0)
    return distill.TeacherLogits(answers, params[None], AugmentConfig())


def test_answers_are_the_models_and_are_kept(tmp_path: Path) -> None:
    large, train = model(1).model, samples(10)
    taught = distill.compute_teacher_logits(large, train, settings(), tmp_path / "answers.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 10, 3)
    assert taught.augmentation == AugmentConfig(translation=distill.SHIFT), "a run that changes nothing: moved a little"
    for view in range(distill.VIEWS):
        moved = prune._to_numpy(pipeline.apply(taught.augmentation, train.pixels, taught.params[view]))
        assert (moved != train.pixels).any()
        np.testing.assert_allclose(taught.logits[view], compute_outputs(large, moved)["logits"], atol=1e-4)
    again = distill.compute_teacher_logits(
        model(2).model, train, settings(), tmp_path / "answers.npy", no_progress
    )  # not asked
    np.testing.assert_array_equal(again.logits, taught.logits)


def test_teacher_and_student_see_the_same_changes(tmp_path: Path) -> None:
    large, train = model(1).model, samples(6)
    config = replace(settings(), augment=AugmentConfig(horizontal_flip=True, mixup=0.2))
    taught = distill.compute_teacher_logits(large, train, config, tmp_path / "answers.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 6, 3)
    assert taught.augmentation.mixup == 0
    for view in range(distill.VIEWS):
        mirrored = taught.params[view][:, 0] > 0
        seen = np.where(mirrored[:, None, None, None], train.pixels[:, :, ::-1], train.pixels)
        np.testing.assert_allclose(taught.logits[view], compute_outputs(large, seen)["logits"], atol=1e-5)


def test_the_loss_is_that_of_labels_and_of_the_teachers_softened_answers() -> None:
    student, train = model(2).model, samples(5)
    student.get_layer("drop1").rate = 0
    logits_model = backend.keras().Model(student.input, student.output["logits"])
    answers = np.random.default_rng(0).normal(0, 3, (1, 5, 3)).astype(np.float32)
    learner = distill._build_distiller(logits_model, make_teacher(answers))
    keras = backend.keras()
    learner.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=True))
    targets = np.eye(3, dtype=np.float32)[train.labels]
    metrics_dict = learner.train_on_batch(
        [train.pixels, make_teacher(answers).params[0], answers[0]], targets, return_dict=True
    )
    logits = compute_outputs(student, train.pixels)["logits"]
    hard = -(targets * np.log(softmax(logits))).sum(1).mean()
    t = distill.TEMPERATURE
    p, q = softmax(answers[0] / t), softmax(logits / t)
    soft = (p * np.log(p / q)).sum(1).mean() * t**2
    assert float(metrics_dict["loss"]) == pytest.approx(
        distill.LABEL_WEIGHT * hard + (1 - distill.LABEL_WEIGHT) * soft, rel=1e-3
    )
    assert not learner.teacher.trainable_weights


def test_a_student_learns_what_only_the_teacher_says() -> None:
    """The labels are turned round; the teacher is right and weighs more."""
    train = samples(60)
    wrong = Subset(train.pixels, train.rows, ((train.labels + 1) % 3).astype(np.int32), train.paths)
    answers = 9 * np.eye(3, dtype=np.float32)[train.labels][None]
    student = model(3)
    config = settings(epochs=40, batch_size=20)
    config = replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, learning_rate=0.03)))
    distill.distill(student, make_teacher(answers), wrong, train, config, Callback())
    right = compute_outputs(student.model, train.pixels)["logits"].argmax(1) == train.labels
    assert right.mean() > 0.8


def test_the_best_epoch_is_kept() -> None:
    train = samples(12)
    student = model(4)
    before = [prune._to_numpy(v).copy() for v in student.model.variables]
    taught = make_teacher(np.zeros((1, 12, 3), np.float32))
    seen: list[float] = []

    class Listener(Callback):
        def on_epoch_end(self, record: Any) -> None:
            seen.append(record.val_accuracy)

    distill.distill(student, taught, train, train, settings(epochs=3, batch_size=5), Listener())
    assert len(seen) == 3
    right = compute_outputs(student.model, train.pixels)["logits"].argmax(1) == train.labels
    assert right.mean() == pytest.approx(max(seen))
    assert any((prune._to_numpy(v) != old).any() for v, old in zip(student.model.variables, before, strict=True))
