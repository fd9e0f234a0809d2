"""A solved head is the optimum of a regularized logistic regression, and a stage of training like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from networks import make_plan, random_images
from sightline import backend, metrics
from sightline.callbacks import Callback, EpochRecord
from sightline.config import EarlyStoppingConfig, RunConfig, SplitConfig, StageConfig, TrainConfig
from sightline.data.types import Subset, join_subsets
from sightline.errors import Interrupted, UsageError
from sightline.models.build import Network, build_model
from sightline.models.head import DENSE_LAYER
from sightline.tasks.protocol import find_task
from sightline.training import linear_head, stage_features
from sightline.training.linear_head import PENALTIES, find_scale, fit_linear_head
from sightline.training.loop import fit
from sightline.training.state import load_latest

SOLVED = StageConfig("head", unfreeze=0, solver="logistic")


def draw_features(count: int, classes: int, seed: int = 0, noise: float = 2.0) -> Subset:
    """Return features of overlapping classes, with scales and means that differ, one constant and one near zero."""
    centers = np.random.default_rng(99).normal(0, 1, (classes, 6))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    values = centers[labels] + noise * rng.normal(0, 1, (count, 6))
    values = values * [1, 10, 0.1, 3, 1, 2] + [0, 5, 0, -3, 2, 1]
    values = np.c_[values, np.full(count, 4.0), 1e-9 * rng.normal(0, 1, count)].astype(np.float32)
    return Subset(values, np.arange(count), labels, tuple(f"{seed}-{i}" for i in range(count)))


def repeat_rows(subset: Subset, times: NDArray[np.int64]) -> Subset:
    return subset.select(np.repeat(np.arange(len(subset)), times))


TASK = find_task("single_label")
EMPTY = draw_features(0, 3)


@pytest.mark.parametrize("penalty", [1.0, 0.01])
@pytest.mark.parametrize("classes", [3, 4])
def test_it_is_the_solution_of_scikit_learn(classes: int, penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "DEFAULT_PENALTY", penalty)
    monkeypatch.setattr(linear_head, "CHUNK_ROWS", 37)
    train, others = draw_features(200, classes), draw_features(100, classes, seed=1)
    head = fit_linear_head(TASK, train, EMPTY, classes)
    varying = slice(0, 6)
    mean, scale = train.pixels[:, varying].mean(0), find_scale(train.pixels.std(0))[varying]
    theirs = LogisticRegression(C=1 / (penalty * len(train)), tol=1e-8, max_iter=5000)
    theirs.fit((train.pixels[:, varying] - mean) / scale, train.labels)
    expected = theirs.predict_proba((others.pixels[:, varying] - mean) / scale)
    np.testing.assert_allclose(metrics.softmax(head.compute_scores(others.pixels)), expected, atol=2e-3)
    logits = head.compute_scores(train.pixels)
    assert head.loss == pytest.approx(metrics.cross_entropy_from_logits(logits, train.labels), abs=1e-4)
    assert head.accuracy == pytest.approx((logits.argmax(1) == train.labels).mean())


@pytest.mark.parametrize("penalty", [1.0, 0.01])
def test_with_fewer_images_than_features_it_is_the_same_solution(
    penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_head, "DEFAULT_PENALTY", penalty)
    rng = np.random.default_rng(0)
    labels = (np.arange(24) % 3).astype(np.int32)
    values = (rng.normal(0, 1, (24, 60)) + labels[:, None] + 5).astype(np.float32)
    train = Subset(values, np.arange(24), labels, tuple(map(str, range(24))))
    others = (rng.normal(0, 1, (50, 60)) + rng.integers(0, 3, (50, 1)) + 5).astype(np.float32)
    head = fit_linear_head(TASK, train, EMPTY, 3)
    mean, scale = values.mean(0), find_scale(values.std(0))
    theirs = LogisticRegression(C=1 / (penalty * 24), tol=1e-8, max_iter=5000).fit((values - mean) / scale, labels)
    expected = theirs.predict_proba((others - mean) / scale)
    np.testing.assert_allclose(metrics.softmax(head.compute_scores(others)), expected, atol=2e-3)
    assert head.accuracy == (head.compute_scores(values).argmax(1) == labels).mean()


def test_features_that_hardly_vary_among_few_images_do_not_decide() -> None:
    """Three images of each class; the classes differ in the features that vary most, as in a pretrained network."""
    centers = np.random.default_rng(99).normal(0, 1, (2, 20))

    def draw(count: int, seed: int) -> Subset:
        rng = np.random.default_rng(seed)
        labels = (np.arange(count) % 2).astype(np.int32)
        weak = 0.1 * rng.normal(0, 1, (count, 500))
        values = np.c_[centers[labels] + 0.7 * rng.normal(0, 1, (count, 20)), weak].astype(np.float32)
        return Subset(values, np.arange(count), labels, tuple(map(str, range(count))))

    train, others = draw(6, 0), draw(400, 1)
    head = fit_linear_head(TASK, train, EMPTY, 2)
    accuracy = (head.compute_scores(others.pixels).argmax(1) == others.labels).mean()
    standardized = train.pixels / train.pixels.std(0)
    theirs = LogisticRegression(C=1 / (0.1 * 6), max_iter=5000).fit(standardized, train.labels)
    assert accuracy > theirs.score(others.pixels / train.pixels.std(0), others.labels) + 0.05
    assert accuracy > 0.9


def test_two_classes_have_opposite_weights() -> None:
    head = fit_linear_head(TASK, draw_features(100, 2), EMPTY, 2)
    np.testing.assert_allclose(head.kernel[:, 0], -head.kernel[:, 1], atol=1e-4)


def test_class_weights_count_as_repeated_images() -> None:
    train = draw_features(120, 3)
    times = np.array([1, 2, 3])
    weighted = fit_linear_head(TASK, train, EMPTY, 3, (times / times.mean()).astype(np.float32)[train.labels, None])
    plain = fit_linear_head(TASK, train, EMPTY, 3)
    repeated = fit_linear_head(TASK, repeat_rows(train, times[train.labels]), EMPTY, 3)
    logits = [metrics.softmax(head.compute_scores(train.pixels)) for head in (weighted, repeated, plain)]
    assert np.abs(logits[0] - logits[1]).max() < 0.03, "the features are scaled by other deviations"
    assert np.abs(logits[0] - logits[2]).max() > 0.05


def test_the_penalty_has_the_lowest_validation_loss() -> None:
    train, validation = draw_features(40, 3, noise=3), draw_features(300, 3, seed=1, noise=3)
    best = fit_linear_head(TASK, train, validation, 3)
    losses = {}
    for penalty in PENALTIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear_head, "DEFAULT_PENALTY", penalty)
            logits = fit_linear_head(TASK, train, EMPTY, 3).compute_scores(validation.pixels)
        losses[penalty] = metrics.cross_entropy_from_logits(logits, validation.labels)
    assert best.penalty == min(losses, key=lambda penalty: losses[penalty])
    assert PENALTIES[0] > best.penalty > PENALTIES[-1], "the best is in between"


def test_many_classes_of_separable_images_are_all_learned() -> None:
    train = draw_features(300, 30, noise=0.01)
    assert fit_linear_head(TASK, train, draw_features(60, 30, seed=1, noise=0.01), 30).accuracy == 1


# As a stage


def build_network(seed: int = 0, **settings: Any) -> Network:
    return build_model(make_plan("squeezenet", classes=3, seed=seed, **settings))


def make_images(count: int, seed: int = 0) -> Subset:
    side = make_plan("squeezenet").height
    labels = (np.arange(count) % 3).astype(np.int32)
    pixels = random_images(count, side, seed=seed)
    pixels[labels == 1] //= 2
    pixels[labels == 2] //= 4
    return Subset(pixels, np.arange(count), labels, tuple(f"{seed}-{i}" for i in range(count)))


def make_config(*stage_configs: StageConfig, **train: Any) -> RunConfig:
    settings: dict[str, Any] = {"stages": stage_configs, "batch_size": 8}
    return RunConfig(train=TrainConfig(**(settings | train)))


class StopAt(Callback):
    def __init__(self, stage: str) -> None:
        self.stage, self.records = stage, list[EpochRecord]()

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        if name == self.stage:
            raise Interrupted("stopped")

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.records.append(record)


@pytest.mark.backends
def test_it_is_one_epoch_of_the_head_alone() -> None:
    network, callback = build_network(), StopAt("")
    before = [np.array(values) for values in network.model.get_weights()]
    result = fit(network, make_images(30), make_images(12, seed=1), make_config(SOLVED, ema_decay=0.9), callback)
    (record,) = result.history
    assert (record.stage, record.epoch, record.accuracy) == ("head", 1, 1.0)
    assert record.val_accuracy == 1.0
    changed = [
        variable.path
        for variable, old in zip(network.model.weights, before, strict=True)
        if (backend.keras().ops.convert_to_numpy(variable) != old).any()
    ]
    assert {path.split("/")[-2] for path in changed} == {DENSE_LAYER}
    assert result.best == record
    assert record.learning_rate is None, "it takes no steps"


def test_the_head_of_a_fold_is_fitted_to_its_validation_images_too(tmp_path: Path) -> None:
    train, validation = make_images(30), make_images(12, seed=1)
    later = StageConfig("fine-tune", unfreeze=1, epochs=1, learning_rate=1e-9)
    early = EarlyStoppingConfig(monitor="val_loss", min_delta=1)
    config = replace(make_config(SOLVED, later, early_stopping=early), split=SplitConfig(folds=2, fold=0))
    network = build_network()
    with pytest.raises(Interrupted):
        fit(network, train, validation, config, StopAt("fine-tune"), checkpoint_dir=tmp_path)
    result = fit(network, train, validation, config, Callback(), resume_from=load_latest(tmp_path))
    assert result.is_refit
    assert result.best is not None
    assert result.validation_logits is not None
    before = TASK.score(result.validation_logits, validation.labels).loss
    assert before == pytest.approx(result.best.val_loss), "of the model before"
    logits = backend.keras().Model(network.model.input, network.logits).predict_on_batch(validation.take(slice(None)))
    assert TASK.score(logits, validation.labels).loss < before
    both, other = join_subsets(train, validation), build_network()
    fit(other, both, both.head(0), make_config(replace(SOLVED, penalty=result.best.penalty)), Callback())
    for name, ours, theirs in zip(
        ("kernel", "bias"), *(n.model.get_layer(DENSE_LAYER).get_weights() for n in (network, other)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=name)
    assert not fit(build_network(), train, validation, make_config(SOLVED), Callback()).is_refit


def test_no_stage_follows_where_none_could_be_better() -> None:
    side, labels = make_plan("squeezenet").height, (np.arange(12) % 3).astype(np.int32)
    colors = np.broadcast_to(np.eye(3, dtype=np.uint8)[labels][:, None, None] * 255, (12, side, side, 3))
    images = Subset(np.ascontiguousarray(colors), np.arange(12), labels, tuple(f"{i}.png" for i in range(12)))
    stages_of_both = (SOLVED, StageConfig("fine-tune", unfreeze=4, epochs=1, learning_rate=1e-3))
    for monitor in ("val_accuracy", "val_calibrated_loss", "val_loss"):
        config = make_config(*stages_of_both, early_stopping=EarlyStoppingConfig(monitor=monitor))
        result = fit(build_network(), images, images, config, Callback())
        assert result.history[0].val_accuracy == 1
        assert [record.stage for record in result.history] == ["head", *["fine-tune"] * (monitor == "val_loss")]


@pytest.mark.parametrize(("least", "stages"), [(13, ["head"]), (12, ["head", "fine-tune"])])
def test_no_stage_follows_where_few_validation_images_could_not_tell_which_is_better(
    least: int, stages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    callback = Callback()
    monkeypatch.setattr(callback, "on_message", messages.append)
    config = make_config(
        SOLVED,
        StageConfig("fine-tune", unfreeze=4, epochs=1, learning_rate=1e-3),
        early_stopping=EarlyStoppingConfig(monitor="val_calibrated_loss", min_validation_images=least),
    )
    validation = make_images(12, seed=1)
    wrong = replace(validation, labels=(validation.labels + 1) % 3)
    result = fit(build_network(), make_images(24), wrong, config, callback)
    assert [record.stage for record in result.history] == stages
    left_out = "fine-tune: left out, as fewer than 13 validation images (12) cannot tell whether it helps; "
    assert any(message.startswith(left_out) for message in messages) == (stages == ["head"])


@pytest.mark.slow
def test_a_killed_run_continues_behind_it(tmp_path: Path) -> None:
    config = make_config(SOLVED, StageConfig("fine-tune", unfreeze=4, epochs=2, learning_rate=1e-3))
    train, validation = make_images(24), make_images(12, seed=1)
    whole = build_network()
    expected = fit(whole, train, validation, config, Callback())
    rates = [(record.stage, record.learning_rate) for record in expected.history]
    assert rates == [("head", None), ("fine-tune", 1e-3), ("fine-tune", 1e-3)]
    with pytest.raises(Interrupted):
        fit(build_network(), train, validation, config, StopAt("fine-tune"), checkpoint_dir=tmp_path)
    checkpoint = load_latest(tmp_path, lambda _: None)
    assert checkpoint is not None
    resumed = build_network(seed=5)
    result = fit(
        resumed, train, validation, config, Callback(), checkpoint_dir=tmp_path, resume_from=checkpoint
    )  # fmt: skip
    assert [record.val_loss for record in result.history] == [record.val_loss for record in expected.history]
    for ours, theirs in zip(resumed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_stop_is_heeded_while_it_is_solved() -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        fit_linear_head(TASK, draw_features(30, 3), EMPTY, 3, check_stop=stop)


@pytest.mark.parametrize(
    ("stage", "train", "settings", "reason"),
    [
        (StageConfig("a", unfreeze=3, solver="logistic"), {}, {}, "unfreeze is 3, not 0"),
        (SOLVED, {"loss": "focal"}, {}, r"train\.loss is focal"),
        (SOLVED, {"label_smoothing": 0.1}, {}, r"train\.label_smoothing is 0\.1"),
        (SOLVED, {"l2": 0.001}, {}, r"train\.l2 is 0\.001"),
        (SOLVED, {}, {"hidden_units": (4,)}, "the head has several layers"),
    ],
)
def test_a_head_that_is_not_a_logistic_regression_is_rejected_before_any_work(
    stage: StageConfig, train: dict[str, Any], settings: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_features, "extract_features", lambda *_: pytest.fail("too late"))
    images = make_images(6)
    with pytest.raises(UsageError, match=rf"{reason}\. Train it by steps: --set train\.stages\.1\.solver=gradient"):
        fit(build_network(**settings), images, images, make_config(StageConfig("first"), stage, **train), Callback())


def test_a_stage_whose_solver_is_still_to_be_chosen_is_rejected() -> None:
    images, stage = make_images(6), StageConfig("head", unfreeze=0, epochs=1, solver="auto")
    with pytest.raises(UsageError, match="'head' has solver='auto', expected 'gradient' or 'logistic'"):
        fit(build_network(), images, images, make_config(stage), Callback())
