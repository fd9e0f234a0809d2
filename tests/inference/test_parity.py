"""How two forms of a model are compared, and which missed limit is reported."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.inference.parity import Parity, Tolerance, compare_probabilities


@pytest.mark.parametrize(
    ("difference", "agreement", "missed"),
    [
        (0.0999, 0.98, ()),
        (0.1, 0.98, ()),
        (0.1001, 0.98, ("in probability is 0.1001, above the limit of 0.1 (--tolerance)",)),
        (0.05, 0.9733, ("agreement is 0.9733, below the limit of 0.98 (--min-agreement)",)),
        (0.5, 0.5, ("is 0.5, above the limit of 0.1", "is 0.5, below the limit of 0.98")),
        (float("nan"), 1.0, ("is nan, above the limit of 0.1",)),
    ],
)
def test_each_missed_limit_is_named_with_both_numbers(
    difference: float, agreement: float, missed: tuple[str, ...]
) -> None:
    reasons = Parity(300, difference, 0.01, agreement).list_failures(Tolerance(0.1, 0.98))
    assert len(reasons) == len(missed)
    assert all(text in reason for text, reason in zip(missed, reasons, strict=True))
    assert Parity(300, difference, 0.01, agreement).is_within(Tolerance(0.1, 0.98)) is not bool(missed)


def test_compare_counts_what_differs() -> None:
    first = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
    second = np.array([[0.8, 0.2], [0.4, 0.6]], np.float32)
    parity = compare_probabilities(first, second, np.array([0, 0], np.int32))
    assert parity.max_difference == pytest.approx(0.2)
    assert (parity.top1_agreement, parity.accuracy_change) == (0.5, -0.5)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    probabilities: NDArray[np.float64] = powers / powers.sum(1, keepdims=True)
    return probabilities


def test_ties_do_not_count_against_a_file() -> None:
    """A thousand classes with nearly equal logits: the last bits decide which comes first."""
    logits = np.random.default_rng(0).normal(0, 1e-9, (1000, 1000))
    first, second = (softmax(logits + noise) for noise in (0, 1e-9 * np.eye(1000)[::-1]))
    assert (first.argmax(1) != second.argmax(1)).any(), "nothing is tied"
    parity = compare_probabilities(first, second)
    assert parity.max_difference < 1e-11
    assert parity.is_within(Tolerance())


@pytest.mark.parametrize(("lead", "agreement"), [(0.5e-4, 1.0), (1.5e-4, 0.5)])
def test_a_lead_beyond_the_tolerance_counts(lead: float, agreement: float) -> None:
    first = np.array([[0.9, 0.1], [0.5 + lead / 2, 0.5 - lead / 2]])
    assert compare_probabilities(first, np.array([[0.9, 0.1], [0.4999, 0.5001]])).top1_agreement == agreement


def test_another_answer_is_refused_where_all_probabilities_are_small() -> None:
    """A thousand classes, all below 0.002: the differences are within tolerance, but the classes differ."""
    first = softmax(np.random.default_rng(0).normal(0, 0.02, (50, 1000)))
    parity = compare_probabilities(first, first[:, ::-1])
    assert parity.max_difference < Tolerance().difference * 2
    assert parity.top1_agreement < 0.2
    assert not parity.is_within(Tolerance(0.01))
