"""Optimizers follow their settings; losses and class weights match NumPy."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax

from sightline import backend
from sightline.config import OptimizerConfig, TrainConfig
from sightline.training.optimizer import class_weights, label_shares, loss, optimizer

NAMES = get_args(get_type_hints(OptimizerConfig)["name"])


def stepped(
    config: OptimizerConfig, rate: float, gradients: list[list[list[float]]], start: float = 1.0
) -> NDArray[np.float32]:
    """Return a 2x2 weight after one step for each gradient."""
    keras = backend.keras()
    weight = keras.Variable(np.full((2, 2), start, np.float32), name="kernel")
    made = optimizer(config, rate)
    for gradient in gradients:
        made.apply([keras.ops.convert_to_tensor(gradient, "float32")], [weight])
    return np.asarray(keras.ops.convert_to_numpy(weight))


GRADIENT = [[1.0, -2.0], [0.5, 4.0]]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name: Any) -> None:
    start = 0.0 if name == "ftrl" else 1.0  # FTRL ignores the initial weights
    moved = stepped(OptimizerConfig(name), 0.01, [GRADIENT] * 3, start) - start
    assert (np.sign(moved) == -np.sign(GRADIENT)).all() or name == "muon"  # Muon orthogonalizes the whole update
    assert (moved * GRADIENT).sum() < 0
    assert np.isfinite(moved).all()
    assert name == "ftrl" or (stepped(OptimizerConfig(name), 0.0, [GRADIENT]) == 1).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ftrl"])
def test_weight_decay_is_what_is_set(name: Any) -> None:
    """Without gradients only decay changes a weight; 0 means none, whatever Keras' default is."""
    nothing = [[0.0, 0.0], [0.0, 0.0]]
    assert stepped(OptimizerConfig(name, weight_decay=0.0), 0.5, [nothing])[0, 0] == pytest.approx(1, abs=1e-6)
    decayed = stepped(OptimizerConfig(name, weight_decay=0.1), 0.5, [nothing])[0, 0]
    assert decayed == pytest.approx(1 - 0.5 * 0.1, abs=1e-6)


@pytest.mark.backends
def test_decay_reaches_the_weights_that_muon_leaves_to_adam() -> None:
    keras = backend.keras()
    for decay, expected in [(0.0, 1.0), (0.1, 0.95)]:
        bias = keras.Variable(np.ones(3, np.float32), name="bias")
        optimizer(OptimizerConfig("muon", weight_decay=decay), 0.5).apply([keras.ops.zeros(3)], [bias])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(bias), expected, atol=1e-6)


def test_ftrl_forgets_where_it_starts() -> None:
    assert stepped(OptimizerConfig("ftrl"), 0.5, [[[0.0, 0.0], [0.0, 0.0]]])[0, 0] == 0


def test_every_name_is_an_optimizer_of_keras() -> None:
    keras = backend.keras()
    kinds = {type(optimizer(OptimizerConfig(name), 0.1)).__name__ for name in NAMES}
    others = {"LossScaleOptimizer", "MultiOptimizer", "Optimizer", "OptimizerMap", "ScheduleFreeAdamW"}
    assert kinds == {name for name in dir(keras.optimizers) if name[0].isupper()} - others


@pytest.mark.backends
def test_sgd_follows_its_momentum() -> None:
    gradient = np.array(GRADIENT)
    plain = stepped(OptimizerConfig("sgd", momentum=0.0), 0.1, [GRADIENT] * 2)
    np.testing.assert_allclose(plain, 1 - 0.2 * gradient, atol=1e-6)
    heavy = stepped(OptimizerConfig("sgd", momentum=0.9), 0.1, [GRADIENT] * 2)
    np.testing.assert_allclose(heavy, 1 - 0.1 * gradient - 0.19 * gradient, atol=1e-6)
    ahead = stepped(OptimizerConfig("sgd", momentum=0.9, nesterov=True), 0.1, [GRADIENT])
    np.testing.assert_allclose(ahead, 1 - 0.19 * gradient, atol=1e-6)


@pytest.mark.backends
def test_gradient_is_clipped_as_a_whole() -> None:
    clipped = stepped(OptimizerConfig("sgd", momentum=0.0, clip_norm=0.5), 1.0, [GRADIENT])
    gradient = np.array(GRADIENT)
    np.testing.assert_allclose(1 - clipped, 0.5 * gradient / np.linalg.norm(gradient), atol=1e-6)
    keras = backend.keras()
    both = [keras.Variable(np.zeros(1, np.float32)) for _ in range(2)]
    made = optimizer(OptimizerConfig("sgd", momentum=0.0, clip_norm=1.0), 1.0)
    made.apply([keras.ops.convert_to_tensor([3.0]), keras.ops.convert_to_tensor([4.0])], both)
    assert [-float(keras.ops.convert_to_numpy(v)[0]) for v in both] == pytest.approx([0.6, 0.8]), (
        "the norm is over all weights"
    )
    free = stepped(OptimizerConfig("sgd", momentum=0.0, clip_norm=50), 1.0, [GRADIENT])
    np.testing.assert_allclose(1 - free, gradient, atol=1e-6)


# Losses

SCORES = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.floats(-6, 6, width=32), min_size=classes, max_size=classes), min_size=1, max_size=8
    )
)


@given(SCORES, st.floats(0, 0.9), st.data())
def test_cross_entropy_is_numpys(scores: list[list[float]], smoothing: float, data: st.DataObject) -> None:
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    shares = label_shares(labels, logits.shape[1], smoothing)
    expected = -(shares * log_softmax(logits.astype(np.float64), 1)).sum(1).mean()
    assert float(loss(TrainConfig())(shares, logits)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SCORES, st.data())
def test_focal_loss_is_numpys(scores: list[list[float]], data: st.DataObject) -> None:
    """Lin et al., 2017, arXiv:1708.02002, with alpha 0.25 and gamma 2."""
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    p = softmax(logits.astype(np.float64), 1)[np.arange(len(labels)), labels]
    expected = (0.25 * (1 - p) ** 2 * -np.log(p)).mean()
    found = float(loss(TrainConfig(loss="focal"))(label_shares(labels, logits.shape[1], 0.0), logits))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def two_sided(logits: NDArray[np.float32], shares: NDArray[np.float32]) -> NDArray[np.float64]:
    p = np.clip(softmax(logits.astype(np.float64), 1), 1e-7, 1 - 1e-7)
    return np.asarray(-(shares * np.log(p) + (1 - shares) * np.log(1 - p)).mean(1))


@given(SCORES, st.floats(0, 0.9), st.data())
def test_binary_is_kerass_on_the_softmax_outputs(scores: list[list[float]], smoothing: float, data: Any) -> None:
    keras = backend.keras()
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    shares = label_shares(labels, logits.shape[1], smoothing)
    found = float(loss(TrainConfig(loss="binary"))(shares, logits))
    assert found == pytest.approx(two_sided(logits, shares).mean(), rel=1e-3, abs=1e-5)
    theirs = float(keras.losses.BinaryCrossentropy()(shares, softmax(logits, 1)))
    assert found == pytest.approx(theirs, rel=1e-3, abs=1e-4)  # Keras computes 1 - p from a rounded p
    if logits.shape[1] == 2:  # both outputs then carry the same information
        assert found == pytest.approx(float(loss(TrainConfig())(shares, logits)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "binary"])
def test_a_weight_in_the_shares_scales_loss_and_gradient(name: Any) -> None:
    """Unlike Keras' own softmax cross-entropy on TensorFlow, whose gradient assumes a distribution."""
    keras = backend.keras()
    logits = np.array([[2, -1, 0.5], [0, 1, 0.2]], np.float32)
    shares = label_shares(np.array([0, 2], np.int32), 3, 0.1)
    made = loss(TrainConfig(loss=name))

    class Scores(keras.layers.Layer):  # type: ignore[name-defined,misc]
        def build(self, input_shape: Any) -> None:
            self.scores = self.add_weight(shape=(2, 3), name="scores")

        def call(self, x: Any) -> Any:
            return self.scores + 0 * keras.ops.sum(x)

    def gradient(weighted: NDArray[np.float32]) -> NDArray[np.float32]:
        layer = Scores()
        model = keras.Sequential([keras.Input((1,)), layer])
        layer.scores.assign(logits)
        model.compile(keras.optimizers.SGD(1.0), made)
        model.train_on_batch(np.ones((2, 1), np.float32), weighted)
        return np.asarray(logits - keras.ops.convert_to_numpy(layer.scores))

    weights = np.array([[3], [0.25]], np.float32)
    plain, weighted = gradient(shares), gradient(shares * weights)
    assert np.abs(plain).min() > 1e-4
    np.testing.assert_allclose(weighted, weights * plain, atol=1e-6)
    if name == "cross_entropy":
        np.testing.assert_allclose(plain, (softmax(logits, 1) - shares) / 2, atol=1e-6)


@pytest.mark.backends
def test_sample_weights_count() -> None:
    logits = np.array([[2, 0], [2, 0]], np.float32)
    shares = label_shares(np.array([0, 1], np.int32), 2, 0.0)
    each = -log_softmax(logits.astype(np.float64), 1)[[0, 1], [0, 1]]
    found = float(loss(TrainConfig())(shares, logits, sample_weight=np.array([3, 1], np.float32)))
    assert found == pytest.approx((3 * each[0] + each[1]) / 2, rel=1e-5)


# Labels and classes

LABELS = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(st.just(classes), st.lists(st.integers(0, classes - 1), min_size=1, max_size=60))
)


@given(LABELS, st.floats(0, 0.9))
def test_label_shares_sum_to_one_and_favour_the_label(drawn: tuple[int, list[int]], smoothing: float) -> None:
    classes, labels = drawn
    shares = label_shares(np.array(labels, np.int32), classes, smoothing)
    assert shares.dtype == np.float32
    assert shares.shape == (len(labels), classes)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(shares.argmax(1), labels)
    others = np.delete(shares[0], labels[0])
    np.testing.assert_allclose(others, smoothing / classes, atol=1e-7)


def test_no_smoothing_is_one_hot() -> None:
    assert label_shares(np.array([2, 0], np.int32), 3, 0.0).tolist() == [[0, 0, 1], [1, 0, 0]]


@given(LABELS)
def test_balanced_weights_give_every_class_the_same_say(drawn: tuple[int, list[int]]) -> None:
    classes, labels = drawn
    weights = class_weights(np.array(labels, np.int32), classes, "balanced")
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.shape == (classes,)
    assert np.isfinite(weights).all()
    say = [weights[label] * labels.count(label) for label in sorted(set(labels))]
    np.testing.assert_allclose(say, say[0], rtol=1e-5)
    if len(set(labels)) == classes:
        assert weights[labels].mean() == pytest.approx(1, rel=1e-5)


def test_equal_weights_are_none() -> None:
    assert class_weights(np.array([0, 0, 1], np.int32), 2, "none") is None
    balanced = class_weights(np.array([0, 0, 0, 1], np.int32), 2, "balanced")
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([4 / 6, 2])
