"""A teacher's answers are asked for once, and are what the student learns from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import outputs, pictures, plan
from sightline import backend
from sightline.compression import distill, slim
from sightline.config import AugmentConfig, RunConfig
from sightline.metrics import softmax
from sightline.models.build import build
from sightline.records import Samples, no_progress
from sightline.training import augment
from sightline.watch import Watcher

SIDE = 8


def samples(count: int) -> Samples:
    """Images of three brightnesses, labeled by chance: only the teacher knows better."""
    labels = (np.arange(count) % 3).astype(np.int32)
    pixels = (pictures(count, SIDE) // 4 + 80 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return Samples(pixels, np.arange(count), labels, tuple(map(str, range(count))))


def model(seed: int) -> Any:
    return build(plan("cifar10-simple", side=SIDE, classes=3, seed=seed, hidden=(), pooling="average", dropout=0.0))


def settings(**train: Any) -> RunConfig:
    config = RunConfig()
    return replace(config, train=replace(config.train, **train))


def still(answers: NDArray[np.float32]) -> distill.Teacher:
    """A teacher of these answers, float32 [1, N, K], for images as they are."""
    drawn = augment.draw(AugmentConfig(), answers.shape[1], (SIDE, SIDE), 0, 0)
    return distill.Teacher(answers, drawn[None], AugmentConfig())


def test_answers_are_the_models_and_are_kept(tmp_path: Path) -> None:
    large, train = model(1).model, samples(10)
    taught = distill.teacher(large, train, settings(), tmp_path / "answers.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 10, 3)
    assert taught.augment == AugmentConfig(shift=distill.SHIFT), "a run that changes nothing: moved a little"
    for view in range(distill.VIEWS):
        moved = slim._array(augment.apply(taught.augment, train.pixels, taught.drawn[view]))
        assert (moved != train.pixels).any()
        np.testing.assert_allclose(taught.logits[view], outputs(large, moved)["logits"], atol=1e-4)
    again = distill.teacher(model(2).model, train, settings(), tmp_path / "answers.npy", no_progress)  # not asked
    np.testing.assert_array_equal(again.logits, taught.logits)


def test_teacher_and_student_see_the_same_changes(tmp_path: Path) -> None:
    large, train = model(1).model, samples(6)
    config = replace(settings(), augment=AugmentConfig(flip=True, mixup=0.2))
    taught = distill.teacher(large, train, config, tmp_path / "answers.npy", no_progress)
    assert taught.logits.shape == (distill.VIEWS, 6, 3)
    assert taught.augment.mixup == 0
    for view in range(distill.VIEWS):
        mirrored = taught.drawn[view][:, 6] > 0
        seen = np.where(mirrored[:, None, None, None], train.pixels[:, :, ::-1], train.pixels)
        np.testing.assert_allclose(taught.logits[view], outputs(large, seen)["logits"], atol=1e-5)


def test_the_loss_is_that_of_labels_and_of_the_teachers_softened_answers() -> None:
    student, train = model(2).model, samples(5)
    student.get_layer("drop1").rate = 0
    judge = backend.keras().Model(student.input, student.output["logits"])
    answers = np.random.default_rng(0).normal(0, 3, (1, 5, 3)).astype(np.float32)
    learner = distill._learner(judge, still(answers))
    keras = backend.keras()
    learner.compile(keras.optimizers.SGD(0.0), keras.losses.CategoricalCrossentropy(from_logits=True))
    shares = np.eye(3, dtype=np.float32)[train.labels]
    found = learner.train_on_batch([train.pixels, still(answers).drawn[0], answers[0]], shares, return_dict=True)
    logits = outputs(student, train.pixels)["logits"]
    hard = -(shares * np.log(softmax(logits))).sum(1).mean()
    t = distill.TEMPERATURE
    p, q = softmax(answers[0] / t), softmax(logits / t)
    soft = (p * np.log(p / q)).sum(1).mean() * t**2
    assert float(found["loss"]) == pytest.approx(distill.LABELS * hard + (1 - distill.LABELS) * soft, rel=1e-3)
    assert not learner.teacher.trainable_weights


def test_a_student_learns_what_only_the_teacher_says() -> None:
    """The labels are turned round; the teacher is right and weighs more."""
    train = samples(60)
    wrong = Samples(train.pixels, train.rows, ((train.labels + 1) % 3).astype(np.int32), train.paths)
    answers = 9 * np.eye(3, dtype=np.float32)[train.labels][None]
    student = model(3)
    config = settings(epochs=40, batch_size=20)
    config = replace(config, train=replace(config.train, optimizer=replace(config.train.optimizer, learning_rate=0.03)))
    distill.distill(student, still(answers), wrong, train, config, Watcher())
    right = outputs(student.model, train.pixels)["logits"].argmax(1) == train.labels
    assert right.mean() > 0.8


def test_the_best_epoch_is_kept() -> None:
    train = samples(12)
    student = model(4)
    before = [slim._array(v).copy() for v in student.model.variables]
    taught = still(np.zeros((1, 12, 3), np.float32))
    seen: list[float] = []

    class Listener(Watcher):
        def epoch(self, record: Any) -> None:
            seen.append(record.val_accuracy)

    distill.distill(student, taught, train, train, settings(epochs=3, batch_size=5), Listener())
    assert len(seen) == 3
    right = outputs(student.model, train.pixels)["logits"].argmax(1) == train.labels
    assert right.mean() == pytest.approx(max(seen))
    assert any((slim._array(v) != old).any() for v, old in zip(student.model.variables, before, strict=True))
