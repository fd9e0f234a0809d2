"""What exceeds a budget, and by how much."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sightline.compress.budget import Budget
from sightline.compress.noninferiority import ScoreTest
from sightline.compress.search_dir import CompressionCandidate
from sightline.intervals import Interval


def make_candidate(lost: int = 0, *, bytes: int = 1000) -> CompressionCandidate:  # noqa: A002  # as the field
    return CompressionCandidate(
        "x", None, "float32", (), (90 - lost) / 100, 100, lost, 0, parameters=500, bytes=bytes, latency=2.0
    )


def test_what_meets_every_limit_exceeds_nothing() -> None:
    budget = Budget(0.05, max_bytes=1000, max_latency=2.0, max_parameters=500)
    assert (budget.exceeded_limits(make_candidate()), budget.compute_excess(make_candidate())) == ([], 0.0)


def test_the_largest_excess_counts_relative_to_its_limit() -> None:
    budget = Budget(max_bytes=800, max_latency=1.0)
    assert budget.exceeded_limits(make_candidate()) == [
        "size 0.001 MB, 0.0008 MB allowed",
        "latency 2 ms, 1 ms allowed",
    ]
    assert budget.compute_excess(make_candidate()) == pytest.approx(1.0)


def test_every_digit_of_a_number_of_parameters_is_shown() -> None:
    candidate = replace(make_candidate(), parameters=1_673_251)
    assert Budget(max_parameters=50_000).exceeded_limits(candidate) == ["parameters 1,673,251, 50,000 allowed"]


@pytest.mark.parametrize(("max_drop", "exceeds"), [(0.02, True), (0.04, True), (0.07, False)])
def test_a_drop_exceeds_its_limit_with_its_standard_error(max_drop: float, exceeds: bool) -> None:
    """A drop of 3 points has a standard error of about 2: 4 points allowed are not enough, though 3 are below 4."""
    budget, candidate = Budget(max_drop), make_candidate(3)
    texts = budget.exceeded_limits(candidate)
    assert [text.startswith("accuracy 3.00 points below with a standard error of") for text in texts] == [
        True
    ] * exceeds
    assert (budget.compute_excess(candidate) > 0) == exceeds
    assert budget.compute_excess(candidate) >= budget.compute_excess(make_candidate(1))


@pytest.mark.parametrize(
    ("error", "text"), [(0.01, "a standard error of 1.00"), (None, "an unknown standard error")], ids=str
)
def test_a_drop_of_scores_is_named_by_their_metric(error: float | None, text: str) -> None:
    interval = None if error is None else Interval(-0.05, -0.01)
    scores = ScoreTest("image_iou", "validation", 100, 0.8, 0.77, -0.03, error, interval, 0.01)
    candidate = CompressionCandidate(
        "x", None, "float32", (), 0.9, 100, bytes=1000, metrics={"mean_iou": 0.7}, scores=scores
    )
    assert Budget(0.03).exceeded_limits(candidate) == [f"image IoU 3.00 points below with {text}, together 3 allowed"]
    assert Budget(0.03).compute_excess(candidate) > 0
    assert Budget(0.04).exceeded_limits(candidate) == ([] if error else [
        "image IoU 3.00 points below with an unknown standard error, together 4 allowed"
    ])  # fmt: skip
