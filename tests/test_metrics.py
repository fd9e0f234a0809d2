"""Compare metrics with scikit-learn and SciPy, and test edge cases that these reject."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, log_loss

from sightline import metrics

NAMES = tuple("abcdefgh")


@st.composite
def label_pairs(draw: st.DrawFn) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
    """Draw a number of classes, true labels and predictions; some classes may occur in neither."""
    classes = draw(st.integers(2, len(NAMES)))
    pairs = draw(st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), max_size=60))
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return classes, both[:, 0].astype(np.int32), both[:, 1]


@given(label_pairs())
def test_confusion_matrix_is_scikit_learns(sample: tuple[int, NDArray[np.int32], NDArray[np.int64]]) -> None:
    classes, labels, predictions = sample
    ours = metrics.confusion_matrix(labels, predictions, classes)
    assert ours.dtype == np.int64
    assert ours.shape == (classes, classes)
    assert ours.sum() == len(labels)
    if len(labels):  # scikit-learn rejects empty input
        np.testing.assert_array_equal(ours, confusion_matrix(labels, predictions, labels=range(classes)))


def test_confusion_matrix_has_the_truth_in_rows() -> None:
    ours = metrics.confusion_matrix(np.array([0, 0, 1], np.int32), np.array([1, 1, 0], np.int64), 3)
    assert ours.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]


@st.composite
def logits_and_labels(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Draw logits float32 [N, K] and labels, N from 1 to 20."""
    count, classes = draw(st.integers(1, 20)), draw(st.integers(2, 6))
    logits = draw(
        st.lists(st.floats(-30, 30, width=32), min_size=count * classes, max_size=count * classes).map(
            lambda v: np.array(v, np.float32).reshape(count, classes)
        )
    )
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    return logits, np.array(labels, np.int32)


@given(logits_and_labels())
def test_cross_entropy_of_logits_is_scipys(sample: tuple[NDArray[np.float32], NDArray[np.int32]]) -> None:
    logits, labels = sample
    expected = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()
    assert metrics.cross_entropy_from_logits(logits, labels) == pytest.approx(expected, abs=1e-9)


@given(logits_and_labels())
def test_cross_entropy_is_scikit_learns(sample: tuple[NDArray[np.float32], NDArray[np.int32]]) -> None:
    logits, labels = sample
    exact = np.exp(log_softmax(logits.astype(np.float64) / 5, axis=1))  # no probability below 1e-6
    expected = log_loss(labels, exact, labels=range(logits.shape[1]))
    assert metrics.cross_entropy(exact.astype(np.float32), labels) == pytest.approx(expected, abs=1e-5)


def test_cross_entropy_by_hand() -> None:
    probabilities = np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)
    labels = np.array([0, 0], np.int32)
    assert metrics.cross_entropy(probabilities, labels) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_certain_and_wrong_is_bounded_for_probabilities_and_not_for_logits() -> None:
    labels = np.array([0], np.int32)
    assert metrics.cross_entropy(np.array([[0, 1]], np.float32), labels) == pytest.approx(-math.log(1e-7))
    assert metrics.cross_entropy_from_logits(np.array([[0, 1000]], np.float32), labels) == 1000
    assert metrics.cross_entropy_from_logits(np.array([[-1e38, 1e38]], np.float32), labels) == pytest.approx(2e38)


ENTROPIES = [metrics.cross_entropy, metrics.cross_entropy_from_logits]


@pytest.mark.parametrize("entropy", ENTROPIES)
def test_entropy_of_no_image_is_zero(
    entropy: Callable[[NDArray[np.float32], NDArray[np.int32]], float],
) -> None:
    assert entropy(np.empty((0, 3), np.float32), np.empty(0, np.int32)) == 0.0


@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_entropy_of_nan_is_nan_without_a_warning(
    entropy: Callable[[NDArray[np.float32], NDArray[np.int32]], float], bad: float
) -> None:
    scores = np.array([[0.5, 0.5], [bad, bad]], np.float32)
    value = entropy(scores, np.array([0, 1], np.int32))
    assert math.isnan(value) or (bad == math.inf and entropy is metrics.cross_entropy)


def test_a_perfect_model_has_a_loss_of_zero_not_of_minus_zero() -> None:
    certain, labels = np.eye(3, dtype=np.float32), np.arange(3, dtype=np.int32)
    losses = [
        metrics.cross_entropy(certain, labels),
        metrics.cross_entropy_from_logits(100 * certain, labels),
        metrics.nonnegative_loss(-1e-9),
    ]
    assert [f"{loss:.4f}" for loss in losses] == ["0.0000"] * 3
    assert metrics.nonnegative_loss(-0.5) == -0.5, "a negative loss is a bug that must show"
