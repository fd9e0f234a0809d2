"""Two models of masks are compared by the mean IoU of each image."""

from __future__ import annotations

import numpy as np
import pytest

from sightline.evaluation.paired import compare_masks


def draw(gain: float, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU of images by two models, the second better by about `gain`."""
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.3, 0.8, count)
    return first, np.clip(first + rng.normal(gain, 0.05, count), 0, 1)


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "better"), (-0.1, "worse")])
def test_a_difference_on_most_images_is_significant(gain: float, verdict: str) -> None:
    first, second = draw(gain)
    compared = compare_masks(first, second)
    assert compared.verdict == verdict
    assert compared.p_value < 0.001
    assert compared.difference == pytest.approx((second - first).mean())
    assert compared.difference_interval is not None
    assert compared.difference_interval.low < compared.difference < compared.difference_interval.high
    assert (compared.first_iou, compared.second_iou) == pytest.approx((first.mean(), second.mean()))


def test_the_same_masks_do_not_differ() -> None:
    first, _ = draw(0)
    compared = compare_masks(first, first)
    assert (compared.p_value, compared.difference, compared.difference_interval) == (1, 0, None)
    assert compared.verdict == "no significant difference"


def test_chance_is_rarely_significant() -> None:
    p_values = [compare_masks(*draw(0, 12, seed)).p_value for seed in range(60)]
    assert sum(p < 0.05 for p in p_values) <= 8  # of 60, of which 5% would be 3


def test_signs_of_all_images_are_tried_exactly() -> None:
    first = np.full(6, 0.1)
    assert compare_masks(first, first + np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])).p_value == 2 / 2**6


def test_images_of_one_group_count_once() -> None:
    first, second = draw(0.1)
    compared = compare_masks(first, second, groups=np.arange(60, dtype=np.int64) // 20)
    assert (compared.groups, compared.p_value) == (3, 2 / 2**3)
    assert compared.verdict == "no significant difference"


def test_several_tests_share_the_error_rate() -> None:
    first = np.full(6, 0.1)
    assert compare_masks(first, first + 0.1).verdict == "better"
    assert compare_masks(first, first + 0.1, tests=4).verdict == "no significant difference"
