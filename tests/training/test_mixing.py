"""Mixup and CutMix mix pixels and labels as a NumPy implementation of the papers does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from networks import pictures
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training import augment, mixing
from sightline.training.optimizer import label_shares

LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def mixed(config: AugmentConfig, pixels: NDArray[np.uint8], drawn: NDArray[np.float32]) -> NDArray[np.uint8]:
    found = backend.keras().ops.convert_to_numpy(mixing.mix(config, pixels, drawn))
    assert found.dtype == np.uint8
    return np.asarray(found)


def drawn_for(config: AugmentConfig, count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return mixing.mixtures(config, count, size, seed, 1).astype(np.float32)


def test_mixup_blends_with_the_one_before() -> None:
    config, pixels = AugmentConfig(mixup=1.0), pictures(5, 8)
    drawn = drawn_for(config, 5, (8, 8))
    share = drawn[:, 0, None, None, None].astype(np.float64)
    expected = share * pixels + (1 - share) * pixels[[4, 0, 1, 2, 3]]
    assert np.abs(mixed(config, pixels, drawn) - expected).max() <= 0.5 + 1e-3
    labels = mixing.mix_labels(label_shares(LABELS, 3, 0.0), drawn)
    one_hot = np.eye(3)[LABELS]
    np.testing.assert_allclose(
        labels, share[:, :, 0, 0] * one_hot + (1 - share[:, :, 0, 0]) * one_hot[[4, 0, 1, 2, 3]], atol=1e-6
    )
    assert labels.dtype == np.float32


@given(st.floats(0.05, 5), st.integers(2, 20), st.integers(2, 20), st.integers(0, 20))
def test_cutmix_labels_are_the_shares_of_the_area(alpha: float, height: int, width: int, seed: int) -> None:
    """Each image has a constant value, so that pixels can be counted by their source."""
    config = AugmentConfig(cutmix=alpha)
    pixels = np.repeat(np.arange(5, dtype=np.uint8), height * width).reshape(5, height, width, 1)
    drawn = drawn_for(config, 5, (height, width), seed)
    out = mixed(config, pixels, drawn)
    counted = np.array([np.bincount(picture.ravel(), minlength=5) for picture in out]) / (height * width)
    np.testing.assert_allclose(mixing.mix_labels(np.eye(5, dtype=np.float32), drawn), counted, atol=1e-6)
    for i, picture in enumerate(out):
        box = drawn[i, 2:].astype(int)
        assert (picture[box[0] : box[2], box[1] : box[3]] == (i - 1) % 5).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    shares = drawn_for(AugmentConfig(mixup=alpha), 4000, (8, 8))[:, 0].astype(np.float64)
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    boxes = drawn_for(AugmentConfig(cutmix=alpha), 4000, (400, 400))
    centred = boxes[(boxes[:, 2:4] > 0).all(1) & (boxes[:, 4:] < 400).all(1)]  # the others are clipped at the border
    sides = (centred[:, 4] - centred[:, 2]) / 400
    np.testing.assert_allclose(sides, (centred[:, 5] - centred[:, 3]) / 400, atol=0.004)
    np.testing.assert_allclose(1 - sides**2, centred[:, 0], atol=0.01)


def test_both_share_the_pictures() -> None:
    config = AugmentConfig(mixup=0.2, cutmix=1.0)
    drawn = drawn_for(config, 4000, (32, 32))
    pasted = drawn[:, 1] == 1
    assert pasted.mean() == pytest.approx(0.5, abs=0.05)
    assert (drawn[~pasted, 2:] == 0).all()
    pixels = pictures(40, 32)
    few = drawn[:40]
    out = mixed(config, pixels, few)
    for alone in (AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0)):
        rows = pasted[:40] if alone.cutmix else ~pasted[:40]
        np.testing.assert_array_equal(out[rows], mixed(alone, pixels, few)[rows])


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_labels_keep_their_sum_and_weights(settings: dict[str, Any]) -> None:
    config = AugmentConfig(**settings)
    drawn = augment.draw(config, 5, (16, 16), 0, 1)
    shares = label_shares(LABELS, 3, 0.1)
    labels = augment.mix_labels(shares, drawn)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    assert (labels != shares).any()
    weights = np.array([2, 0.5, 1], np.float32)[LABELS, None]
    kept = drawn[:, augment.MIXED][:, 0]
    np.testing.assert_allclose(
        augment.mix_labels(shares * weights, drawn).sum(1),
        kept * weights[:, 0] + (1 - kept) * np.roll(weights[:, 0], 1),
        rtol=1e-5,
    )


def test_without_mixing_labels_stay_as_they_are() -> None:
    shares = label_shares(LABELS, 3, 0.1)
    drawn = augment.draw(AugmentConfig(flip=True, rotation=20), 5, (16, 16), 0, 1)
    np.testing.assert_array_equal(augment.mix_labels(shares, drawn), shares)


def test_a_picture_alone_is_its_own_partner() -> None:
    config, pixels = AugmentConfig(mixup=1.0, cutmix=1.0), pictures(1, 8)
    np.testing.assert_array_equal(mixed(config, pixels, drawn_for(config, 1, (8, 8))), pixels)
