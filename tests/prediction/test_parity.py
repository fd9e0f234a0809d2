"""How two forms of a model are compared, and which limit is said to be missed."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.prediction.parity import Parity, Tolerance, compare


@pytest.mark.parametrize(
    ("difference", "agreement", "missed"),
    [
        (0.0999, 0.98, ()),
        (0.1, 0.98, ()),
        (0.1001, 0.98, ("a probability is 0.1001, above the limit of 0.1 (--tolerance)",)),
        (0.05, 0.9733, ("agreement is 0.9733, below the limit of 0.98 (--agreement)",)),
        (0.5, 0.5, ("is 0.5, above the limit of 0.1", "is 0.5, below the limit of 0.98")),
        (float("nan"), 1.0, ("is nan, above the limit of 0.1",)),
    ],
)
def test_each_missed_limit_is_named_with_both_numbers(
    difference: float, agreement: float, missed: tuple[str, ...]
) -> None:
    reasons = Parity(300, difference, 0.01, agreement).reasons(Tolerance(0.1, 0.98))
    assert len(reasons) == len(missed)
    assert all(part in reason for part, reason in zip(missed, reasons, strict=True))
    assert Parity(300, difference, 0.01, agreement).within(Tolerance(0.1, 0.98)) is not bool(missed)


def test_compare_counts_what_differs() -> None:
    first = np.array([[0.9, 0.1], [0.6, 0.4]], np.float32)
    second = np.array([[0.8, 0.2], [0.4, 0.6]], np.float32)
    parity = compare(first, second, np.array([0, 0], np.int32))
    assert parity.greatest_difference == pytest.approx(0.2)
    assert (parity.top1_agreement, parity.accuracy_change) == (0.5, -0.5)
