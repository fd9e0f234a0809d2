"""A row for a new class: the optimum of its logistic regression, from a few images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.training import new_class
from sightline.training.linear_head import find_scale
from sightline.training.new_class import fit_new_class

CENTERS = np.array([[4, 0, 0, 0, 1], [0, 4, 0, 0, 1], [0, 0, 4, 0, 1], [0, 0, 0, 4, 1]], np.float32)
KERNEL = CENTERS[:3].T  # of a head for the first three classes


def draw(counts: tuple[int, ...], seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features of four classes around `CENTERS`, and their labels."""
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).normal(size=(len(labels), 5))
    return (CENTERS[labels] + noise).astype(np.float32), labels


def fit(new: NDArray[np.float32], others: NDArray[np.float32]) -> new_class.NewClassFit:
    return fit_new_class(new, new @ KERNEL, others, others @ KERNEL)


@pytest.mark.parametrize("counts", [(20, 20, 20, 5), (200, 20, 20, 5), (20, 20, 20, 40)])
def test_a_few_images_make_a_class_and_the_others_stay(counts: tuple[int, ...]) -> None:
    x, labels = draw(counts)
    row = fit(x[labels == 3], x[labels < 3])
    test_x, test_labels = draw((300, 300, 300, 300), seed=1)
    logits = np.column_stack([test_x @ KERNEL, test_x @ row.kernel + row.bias])
    correct = logits.argmax(1) == test_labels
    assert [correct[test_labels == k].mean() > 0.85 for k in range(4)] == [True] * 4
    assert row.folds == min(counts[3], new_class.MAX_FOLDS)
    assert row.is_recalled.shape == (counts[3],)
    assert row.is_recalled.mean() > 0.7
    assert row.penalty in new_class.PENALTIES


def test_images_that_the_others_hide_are_not_recalled() -> None:
    """Images of the first class under another name: the fit cannot tell them apart, and says so."""
    x, labels = draw((30, 30, 30, 0))
    row = fit(draw((6, 0, 0), seed=5)[0], x)
    assert row.is_recalled.mean() <= 0.5
    assert (labels < 3).all()


def test_an_image_is_recalled_by_rows_that_were_fitted_without_it() -> None:
    x, labels = draw((20, 20, 20, 6))
    new = x[labels == 3]
    new[5] = CENTERS[0] * 3  # an outlier, far inside another class
    row = fit(new, x[labels < 3])
    assert not row.is_recalled[5]
    for left_out in range(6):
        weights = new_class.weigh_images(np.arange(len(x)) < 6, 3, np.arange(len(x)) != left_out)
        assert weights[left_out] == 0
        assert weights[:6].sum() == pytest.approx(1 / 4)
        assert weights.sum() == pytest.approx(1)


def test_the_fit_is_the_minimum_of_the_cross_entropy_over_all_classes() -> None:
    """Compared with the definition: softmax over all logits, weighted by class, with the penalty."""
    x, labels = draw((10, 20, 30, 7))
    new, others = x[labels == 3], x[labels < 3]
    row = fit(new, others)
    mean, scale = x.mean(0, np.float64), find_scale(x.std(0, np.float64))
    weights = np.where(labels == 3, 1 / 7, 3 / 60) / 4

    def loss(theta: NDArray[np.float64]) -> float:
        logits = np.column_stack([x @ KERNEL, (x - mean) / scale @ theta[:-1] + theta[-1]])
        is_new = labels == 3
        log_sum = np.logaddexp.reduce(logits, axis=1)
        log_rest = np.logaddexp.reduce(logits[:, :3], axis=1)
        terms = np.where(is_new, log_sum - logits[:, 3], log_sum - log_rest)
        return float(weights @ terms + row.penalty / 2 * theta[:-1] @ theta[:-1])

    theta = np.append(row.kernel * scale, row.bias + mean @ row.kernel)
    step = 1e-4
    for k in range(len(theta)):
        shift = np.eye(len(theta))[k] * step
        gradient = (loss(theta + shift) - loss(theta - shift)) / (2 * step)
        assert abs(gradient) < 1e-3, k
