"""Optimizers follow their settings; losses and class weights match NumPy."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.utils import class_weight

from sightline import backend
from sightline.config import OptimizerConfig, TrainConfig
from sightline.training.optimizers import build_loss, build_optimizer, compute_class_weights, smooth_labels

NAMES = get_args(get_type_hints(OptimizerConfig)["name"])


def run_steps(
    config: OptimizerConfig, rate: float, gradients: list[list[list[float]]], start: float = 1.0
) -> NDArray[np.float32]:
    """Return a 2x2 weight after one step for each gradient."""
    keras = backend.keras()
    weight = keras.Variable(np.full((2, 2), start, np.float32), name="kernel")
    keras_optimizer = build_optimizer(config, rate)
    for gradient in gradients:
        keras_optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [weight])
    return np.asarray(keras.ops.convert_to_numpy(weight))


GRADIENT = [[1.0, -2.0], [0.5, 4.0]]


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name: Any) -> None:
    start = 0.0 if name == "ftrl" else 1.0  # FTRL ignores the initial weights
    moved = run_steps(OptimizerConfig(name), 0.01, [GRADIENT] * 3, start) - start
    assert (np.sign(moved) == -np.sign(GRADIENT)).all() or name == "muon"  # Muon orthogonalizes the whole update
    assert (moved * GRADIENT).sum() < 0
    assert np.isfinite(moved).all()
    assert name == "ftrl" or (run_steps(OptimizerConfig(name), 0.0, [GRADIENT]) == 1).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ftrl"])
def test_weight_decay_is_what_is_set(name: Any) -> None:
    """Without gradients only decay changes a weight; 0 means none, whatever Keras' default is."""
    zero_gradient = [[0.0, 0.0], [0.0, 0.0]]
    assert run_steps(OptimizerConfig(name, weight_decay=0.0), 0.5, [zero_gradient])[0, 0] == pytest.approx(1, abs=1e-6)
    decayed = run_steps(OptimizerConfig(name, weight_decay=0.1), 0.5, [zero_gradient])[0, 0]
    assert decayed == pytest.approx(1 - 0.5 * 0.1, abs=1e-6)


@pytest.mark.backends
def test_decay_reaches_the_weights_that_muon_leaves_to_adam() -> None:
    keras = backend.keras()
    for decay, expected in [(0.0, 1.0), (0.1, 0.95)]:
        bias = keras.Variable(np.ones(3, np.float32), name="bias")
        build_optimizer(OptimizerConfig("muon", weight_decay=decay), 0.5).apply([keras.ops.zeros(3)], [bias])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(bias), expected, atol=1e-6)


def test_ftrl_ignores_the_initial_weights() -> None:
    assert run_steps(OptimizerConfig("ftrl"), 0.5, [[[0.0, 0.0], [0.0, 0.0]]])[0, 0] == 0


def test_every_name_is_an_optimizer_of_keras() -> None:
    keras = backend.keras()
    kinds = {type(build_optimizer(OptimizerConfig(name), 0.1)).__name__ for name in NAMES}
    others = {"LossScaleOptimizer", "MultiOptimizer", "Optimizer", "OptimizerMap", "ScheduleFreeAdamW"}
    assert kinds == {name for name in dir(keras.optimizers) if name[0].isupper()} - others


@pytest.mark.backends
def test_sgd_follows_its_momentum() -> None:
    gradient = np.array(GRADIENT)
    plain = run_steps(OptimizerConfig("sgd", momentum=0.0), 0.1, [GRADIENT] * 2)
    np.testing.assert_allclose(plain, 1 - 0.2 * gradient, atol=1e-6)
    with_momentum = run_steps(OptimizerConfig("sgd", momentum=0.9), 0.1, [GRADIENT] * 2)
    np.testing.assert_allclose(with_momentum, 1 - 0.1 * gradient - 0.19 * gradient, atol=1e-6)
    nesterov = run_steps(OptimizerConfig("sgd", momentum=0.9, nesterov=True), 0.1, [GRADIENT])
    np.testing.assert_allclose(nesterov, 1 - 0.19 * gradient, atol=1e-6)


@pytest.mark.backends
def test_gradient_is_clipped_as_a_whole() -> None:
    clipped = run_steps(OptimizerConfig("sgd", momentum=0.0, clip_norm=0.5), 1.0, [GRADIENT])
    gradient = np.array(GRADIENT)
    np.testing.assert_allclose(1 - clipped, 0.5 * gradient / np.linalg.norm(gradient), atol=1e-6)
    keras = backend.keras()
    both = [keras.Variable(np.zeros(1, np.float32)) for _ in range(2)]
    keras_optimizer = build_optimizer(OptimizerConfig("sgd", momentum=0.0, clip_norm=1.0), 1.0)
    keras_optimizer.apply([keras.ops.convert_to_tensor([3.0]), keras.ops.convert_to_tensor([4.0])], both)
    assert [-float(keras.ops.convert_to_numpy(v)[0]) for v in both] == pytest.approx([0.6, 0.8]), (
        "the norm is over all weights"
    )
    free = run_steps(OptimizerConfig("sgd", momentum=0.0, clip_norm=50), 1.0, [GRADIENT])
    np.testing.assert_allclose(1 - free, gradient, atol=1e-6)


# Losses

SCORES = st.integers(2, 6).flatmap(
    lambda classes: st.lists(
        st.lists(st.floats(-6, 6, width=32), min_size=classes, max_size=classes), min_size=1, max_size=8
    )
)


@given(SCORES, st.floats(0, 0.9), st.data())
def test_cross_entropy_matches_numpy(scores: list[list[float]], smoothing: float, data: st.DataObject) -> None:
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    soft_labels = smooth_labels(labels, logits.shape[1], smoothing)
    expected = -(soft_labels * log_softmax(logits.astype(np.float64), 1)).sum(1).mean()
    assert float(build_loss(TrainConfig())(soft_labels, logits)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(SCORES, st.data())
def test_focal_loss_matches_numpy(scores: list[list[float]], data: st.DataObject) -> None:
    """Lin et al., 2017, arXiv:1708.02002, with alpha 0.25 and gamma 2."""
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    p = softmax(logits.astype(np.float64), 1)[np.arange(len(labels)), labels]
    expected = (0.25 * (1 - p) ** 2 * -np.log(p)).mean()
    actual = float(build_loss(TrainConfig(loss="focal"))(smooth_labels(labels, logits.shape[1], 0.0), logits))
    assert actual == pytest.approx(expected, rel=1e-3, abs=1e-5)


def binary_cross_entropy_by_numpy(logits: NDArray[np.float32], soft_labels: NDArray[np.float32]) -> NDArray[np.float64]:
    p = np.clip(softmax(logits.astype(np.float64), 1), 1e-7, 1 - 1e-7)
    return np.asarray(-(soft_labels * np.log(p) + (1 - soft_labels) * np.log(1 - p)).mean(1))


@given(SCORES, st.floats(0, 0.9), st.data())
def test_binary_loss_matches_keras_on_the_softmax_outputs(
    scores: list[list[float]], smoothing: float, data: Any
) -> None:
    keras = backend.keras()
    logits = np.array(scores, np.float32)
    labels = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits], np.int32)
    soft_labels = smooth_labels(labels, logits.shape[1], smoothing)
    actual = float(build_loss(TrainConfig(loss="binary"))(soft_labels, logits))
    assert actual == pytest.approx(binary_cross_entropy_by_numpy(logits, soft_labels).mean(), rel=1e-3, abs=1e-5)
    keras_loss = float(keras.losses.BinaryCrossentropy()(soft_labels, softmax(logits, 1)))
    assert actual == pytest.approx(keras_loss, rel=1e-3, abs=1e-4)  # Keras computes 1 - p from a rounded p
    if logits.shape[1] == 2:  # both outputs then carry the same information
        assert actual == pytest.approx(float(build_loss(TrainConfig())(soft_labels, logits)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "binary"])
def test_a_weight_in_the_soft_labels_scales_loss_and_gradient(name: Any) -> None:
    """Unlike Keras' own softmax cross-entropy on TensorFlow, whose gradient assumes a distribution."""
    keras = backend.keras()
    logits = np.array([[2, -1, 0.5], [0, 1, 0.2]], np.float32)
    soft_labels = smooth_labels(np.array([0, 2], np.int32), 3, 0.1)
    keras_loss = build_loss(TrainConfig(loss=name))

    class Scores(keras.layers.Layer):  # type: ignore[name-defined,misc]
        def build(self, input_shape: Any) -> None:
            self.scores = self.add_weight(shape=(2, 3), name="scores")

        def call(self, x: Any) -> Any:
            return self.scores + 0 * keras.ops.sum(x)

    def gradient(weighted: NDArray[np.float32]) -> NDArray[np.float32]:
        layer = Scores()
        model = keras.Sequential([keras.Input((1,)), layer])
        layer.scores.assign(logits)
        model.compile(keras.optimizers.SGD(1.0), keras_loss)
        model.train_on_batch(np.ones((2, 1), np.float32), weighted)
        return np.asarray(logits - keras.ops.convert_to_numpy(layer.scores))

    weights = np.array([[3], [0.25]], np.float32)
    plain, weighted = gradient(soft_labels), gradient(soft_labels * weights)
    assert np.abs(plain).min() > 1e-4
    np.testing.assert_allclose(weighted, weights * plain, atol=1e-6)
    if name == "cross_entropy":
        np.testing.assert_allclose(plain, (softmax(logits, 1) - soft_labels) / 2, atol=1e-6)


@pytest.mark.backends
def test_sample_weights_count() -> None:
    logits = np.array([[2, 0], [2, 0]], np.float32)
    soft_labels = smooth_labels(np.array([0, 1], np.int32), 2, 0.0)
    each = -log_softmax(logits.astype(np.float64), 1)[[0, 1], [0, 1]]
    actual = float(build_loss(TrainConfig())(soft_labels, logits, sample_weight=np.array([3, 1], np.float32)))
    assert actual == pytest.approx((3 * each[0] + each[1]) / 2, rel=1e-5)


# Labels and classes

LABELS = st.integers(2, 6).flatmap(
    lambda classes: st.tuples(st.just(classes), st.lists(st.integers(0, classes - 1), min_size=1, max_size=60))
)


@given(LABELS, st.floats(0, 0.9))
def test_smoothed_labels_sum_to_one_and_peak_at_the_label(sample: tuple[int, list[int]], smoothing: float) -> None:
    classes, labels = sample
    soft_labels = smooth_labels(np.array(labels, np.int32), classes, smoothing)
    assert soft_labels.dtype == np.float32
    assert soft_labels.shape == (len(labels), classes)
    np.testing.assert_allclose(soft_labels.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(soft_labels.argmax(1), labels)
    others = np.delete(soft_labels[0], labels[0])
    np.testing.assert_allclose(others, smoothing / classes, atol=1e-7)


def test_no_smoothing_is_one_hot() -> None:
    assert smooth_labels(np.array([2, 0], np.int32), 3, 0.0).tolist() == [[0, 0, 1], [1, 0, 0]]


@given(LABELS)
def test_balanced_weights_give_every_class_the_same_total(sample: tuple[int, list[int]]) -> None:
    classes, labels = sample
    weights = compute_class_weights(np.array(labels, np.int32), classes, "balanced")
    assert weights is not None
    assert weights.dtype == np.float32
    assert weights.shape == (classes,)
    assert np.isfinite(weights).all()
    totals = [weights[label] * labels.count(label) for label in sorted(set(labels))]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-5)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5), "also where classes have no image"
    present = np.unique(labels)
    expected = class_weight.compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(weights[present], expected, rtol=1e-5)


def test_equal_weights_are_none() -> None:
    assert compute_class_weights(np.array([0, 0, 1], np.int32), 2, "none") is None
    assert compute_class_weights(np.zeros(0, np.int32), 2, "balanced") is None, "weights of 0 would train nothing"
    balanced = compute_class_weights(np.array([0, 0, 0, 1], np.int32), 2, "balanced")
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([4 / 6, 2])


def make_muon_weights(seed: int = 0) -> dict[str, Any]:
    """Return weights with the paths that they have in a network: a kernel and a bias each of several layers."""
    keras = backend.keras()
    rng = np.random.default_rng(seed)
    shapes = {
        "conv/kernel": (3, 3, 4, 6),  # no bias: a normalization follows
        "biased/kernel": (1, 1, 4, 6), "biased/bias": (6,),
        "depthwise/kernel": (3, 3, 4, 1),
        "whiten/kernel": (2, 2, 3, 24), "whiten/bias": (24,),
        "norm/beta": (6,),
        "predictions/kernel": (6, 3), "predictions/bias": (3,),
    }  # fmt: skip
    weights = {}
    for path, shape in shapes.items():
        layer, name = path.split("/")
        with keras.name_scope(layer):
            weights[path] = keras.Variable(rng.normal(size=shape).astype(np.float32), name=name)
        assert weights[path].path == path
    return weights


@pytest.mark.backends
def test_muon_orthogonalizes_the_kernels_of_convolutions() -> None:
    """A kernel whose scale a normalization undoes keeps its norm but for the step; no other rule changes the others."""
    weights = make_muon_weights()
    before = {path: np.array(backend.keras().ops.convert_to_numpy(weight)) for path, weight in weights.items()}
    rng = np.random.default_rng(1)
    gradients = {path: rng.normal(size=value.shape).astype(np.float32) for path, value in before.items()}
    config = OptimizerConfig("muon", 0.1, momentum=0.5, bias_learning_rate=2.0, head_learning_rate=0.5)
    optimizer = build_optimizer(config, 0.1)
    optimizer.apply([backend.keras().ops.convert_to_tensor(g) for g in gradients.values()], list(weights.values()))
    after = {path: np.array(backend.keras().ops.convert_to_numpy(weight)) for path, weight in weights.items()}

    conv = before["conv/kernel"] * math.sqrt(6) / np.linalg.norm(before["conv/kernel"])
    step = (conv - after["conv/kernel"]).reshape(-1, 6) / 0.1
    values = np.linalg.svd(step, compute_uv=False)
    assert ((values > 0.5) & (values < 1.5)).all()  # five iterations do not make them exactly 1
    u, _, vt = np.linalg.svd(gradients["conv/kernel"].reshape(-1, 6), full_matrices=False)
    assert (step * (u @ vt)).sum() / np.linalg.norm(step) / math.sqrt(6) > 0.97
    assert not np.allclose(after["biased/kernel"], before["biased/kernel"])
    np.testing.assert_array_equal(after["whiten/kernel"], before["whiten/kernel"])
    for path, rate in (
        ("predictions/kernel", 0.5),
        ("predictions/bias", 0.5),
        ("norm/beta", 2.0),
        ("whiten/bias", 2.0),
    ):
        expected = before[path] - rate * 1.85 * gradients[path]  # the first step of Nesterov's momentum
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.backends
def test_muon_leaves_biases_and_the_last_layer_to_adamw() -> None:
    weights, config = make_muon_weights(), OptimizerConfig("muon", 0.1)
    before = {path: np.array(backend.keras().ops.convert_to_numpy(weight)) for path, weight in weights.items()}
    ones = [backend.keras().ops.ones(weight.shape) for weight in weights.values()]
    build_optimizer(config, 0.1).apply(ones, list(weights.values()))
    for path in ("depthwise/kernel", "norm/beta", "biased/bias", "predictions/kernel"):
        moved = before[path] - backend.keras().ops.convert_to_numpy(weights[path])
        np.testing.assert_allclose(moved, 0.1, rtol=1e-3)  # Adam's first step has the size of the learning rate
