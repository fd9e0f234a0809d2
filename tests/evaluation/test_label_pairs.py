"""Errors of pairs of labels, counted one image at a time."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sightline.evaluation.label_pairs import MAX_PAIRS, PAIR_KINDS, count_pair_errors, select_pair

CLASSES = tuple("abcdefgh")


@pytest.mark.parametrize("seed", range(3))
def test_each_number_is_that_of_the_images_that_it_selects(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels, predicted = generator.random((2, 300, len(CLASSES))) < 0.4
    rows = count_pair_errors(CLASSES, labels, predicted)
    assert len(rows) == MAX_PAIRS
    errors = [row.wrong + row.missed for row in rows]
    assert errors == sorted(errors, reverse=True)
    for row in rows:
        i, j = CLASSES.index(row.first), CLASSES.index(row.second)
        true = [bool(of[i] and of[j]) for of in labels]
        chosen = [bool(of[i] and of[j]) for of in predicted]
        assert row.true == sum(true)
        assert row.predicted == sum(chosen)
        assert row.wrong == sum(p and not t for t, p in zip(true, chosen, strict=True))
        assert row.missed == sum(t and not p for t, p in zip(true, chosen, strict=True))
        for kind in PAIR_KINDS:
            assert select_pair(labels, predicted, (i, j), kind).sum() == getattr(row, kind)
    left_out = [
        int((labels[:, pair].all(1) != predicted[:, pair].all(1)).sum())
        for pair in map(list, combinations(range(len(CLASSES)), 2))
    ]
    assert errors == sorted(left_out, reverse=True)[:MAX_PAIRS]


def test_pairs_that_are_right_are_left_out() -> None:
    labels = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0]], bool)
    assert count_pair_errors("abc", labels, labels) == ()
    predicted = labels.copy()
    predicted[2] = [1, 0, 1]
    (row,) = count_pair_errors("abc", labels, predicted)
    assert (row.first, row.second, row.true, row.predicted, row.wrong, row.missed) == ("a", "c", 0, 1, 1, 0)


def test_no_images_and_one_class_have_no_pairs() -> None:
    assert count_pair_errors("ab", np.zeros((0, 2), bool), np.zeros((0, 2), bool)) == ()
    assert count_pair_errors("a", np.ones((3, 1), bool), np.zeros((3, 1), bool)) == ()
