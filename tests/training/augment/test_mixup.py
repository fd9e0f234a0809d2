"""Mixup and CutMix mix pixels and labels as a NumPy implementation of the papers does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from networks import random_images
from sightline import backend
from sightline.config import AugmentConfig
from sightline.training.augment import mixup, pipeline
from sightline.training.optimizers import smooth_labels

LABELS = np.array([0, 1, 2, 1, 0], np.int32)


def apply_mixing(config: AugmentConfig, pixels: NDArray[np.uint8], params: NDArray[np.float32]) -> NDArray[np.uint8]:
    mixed_pixels = backend.keras().ops.convert_to_numpy(mixup.Mixing().apply(config, pixels, params))
    assert mixed_pixels.dtype == np.uint8
    return np.asarray(mixed_pixels)


def sample_params(config: AugmentConfig, count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    return mixup.Mixing().sample(config, count, size, seed, 1).astype(np.float32)


def test_mixup_blends_with_the_one_before() -> None:
    config, pixels = AugmentConfig(mixup=1.0), random_images(5, 8)
    params = sample_params(config, 5, (8, 8))
    weight = params[:, 0, None, None, None].astype(np.float64)
    expected = weight * pixels + (1 - weight) * pixels[[4, 0, 1, 2, 3]]
    assert np.abs(apply_mixing(config, pixels, params) - expected).max() <= 0.5 + 1e-3
    labels = mixup.mix_labels(smooth_labels(LABELS, 3, 0.0), params)
    one_hot = np.eye(3)[LABELS]
    np.testing.assert_allclose(
        labels, weight[:, :, 0, 0] * one_hot + (1 - weight[:, :, 0, 0]) * one_hot[[4, 0, 1, 2, 3]], atol=1e-6
    )
    assert labels.dtype == np.float32


@given(st.floats(0.05, 5), st.integers(2, 20), st.integers(2, 20), st.integers(0, 20))
def test_cutmix_labels_are_the_fractions_of_the_area(alpha: float, height: int, width: int, seed: int) -> None:
    """Each image has a constant value, so that pixels can be counted by their source."""
    config = AugmentConfig(cutmix=alpha)
    pixels = np.repeat(np.arange(5, dtype=np.uint8), height * width).reshape(5, height, width, 1)
    params = sample_params(config, 5, (height, width), seed)
    out = apply_mixing(config, pixels, params)
    fractions = np.array([np.bincount(image.ravel(), minlength=5) for image in out]) / (height * width)
    np.testing.assert_allclose(mixup.mix_labels(np.eye(5, dtype=np.float32), params), fractions, atol=1e-6)
    for i, mixed_image in enumerate(out):
        box = params[i, 2:].astype(int)
        assert (mixed_image[box[0] : box[2], box[1] : box[3]] == (i - 1) % 5).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    weights = sample_params(AugmentConfig(mixup=alpha), 4000, (8, 8))[:, 0].astype(np.float64)
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    boxes = sample_params(AugmentConfig(cutmix=alpha), 4000, (400, 400))
    unclipped = boxes[(boxes[:, 2:4] > 0).all(1) & (boxes[:, 4:] < 400).all(1)]  # the others are clipped at the border
    sides = (unclipped[:, 4] - unclipped[:, 2]) / 400
    np.testing.assert_allclose(sides, (unclipped[:, 5] - unclipped[:, 3]) / 400, atol=0.004)
    np.testing.assert_allclose(1 - sides**2, unclipped[:, 0], atol=0.01)


def test_mixup_and_cutmix_split_the_images() -> None:
    config = AugmentConfig(mixup=0.2, cutmix=1.0)
    params = sample_params(config, 4000, (32, 32))
    pasted = params[:, 1] == 1
    assert pasted.mean() == pytest.approx(0.5, abs=0.05)
    assert (params[~pasted, 2:] == 0).all()
    pixels = random_images(40, 32)
    few_params = params[:40]
    out = apply_mixing(config, pixels, few_params)
    for single_config in (AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0)):
        rows = pasted[:40] if single_config.cutmix else ~pasted[:40]
        np.testing.assert_array_equal(out[rows], apply_mixing(single_config, pixels, few_params)[rows])


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}], ids=str)
def test_labels_keep_their_sum_and_weights(settings: dict[str, Any]) -> None:
    config = AugmentConfig(**settings)
    params = pipeline.sample_params(config, 5, (16, 16), 0, 1)
    soft_labels = smooth_labels(LABELS, 3, 0.1)
    labels = pipeline.mix_labels(config, soft_labels, params)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    assert (labels != soft_labels).any()
    weights = np.array([2, 0.5, 1], np.float32)[LABELS, None]
    label_weights = params[:, 0]
    np.testing.assert_allclose(
        pipeline.mix_labels(config, soft_labels * weights, params).sum(1),
        label_weights * weights[:, 0] + (1 - label_weights) * np.roll(weights[:, 0], 1),
        rtol=1e-5,
    )


def test_a_union_has_the_labels_of_both_images_unless_one_is_hardly_seen() -> None:
    config = AugmentConfig(mixup=0.3, cutmix=1.0, label_mixing="union")
    params = pipeline.sample_params(config, 400, (16, 16), 0, 1)
    targets = np.random.default_rng(0).integers(0, 2, (400, 6)).astype(np.float32)
    other, weights = np.roll(targets, 1, axis=0), params[:, 0]
    united = pipeline.mix_labels(config, targets, params)
    for rows, expected in (
        (weights > 0.9, targets),
        (weights < 0.1, other),
        ((weights >= 0.1) & (weights <= 0.9), np.maximum(targets, other)),
    ):
        assert rows.sum() > 20
        np.testing.assert_array_equal(united[rows], expected[rows])


def test_without_mixing_labels_stay_as_they_are() -> None:
    soft_labels = smooth_labels(LABELS, 3, 0.1)
    config = AugmentConfig(horizontal_flip=True, rotation=20)
    params = pipeline.sample_params(config, 5, (16, 16), 0, 1)
    np.testing.assert_array_equal(pipeline.mix_labels(config, soft_labels, params), soft_labels)


def test_a_single_image_is_its_own_partner() -> None:
    config, pixels = AugmentConfig(mixup=1.0, cutmix=1.0), random_images(1, 8)
    np.testing.assert_array_equal(apply_mixing(config, pixels, sample_params(config, 1, (8, 8))), pixels)
