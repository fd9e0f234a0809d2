"""Detection of out-of-distribution images: drawn features and logits, scikit-learn's and SciPy's answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp

from sightline import metrics
from sightline.errors import ModelError
from sightline.evaluation import ood
from sightline.inference.ood import compute_energy, compute_joint_energy, scale_to_unit_length
from sightline.inference.predictor import ModelOutputs, Outputs
from sightline.inference.results import Thresholds


def draw_logits(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1.5, (count, 4)).astype(np.float32)


def test_energy_is_scipys_and_the_limit_a_quantile() -> None:
    logits = draw_logits(500)
    np.testing.assert_allclose(compute_energy(logits), -logsumexp(logits.astype(float), 1))
    joint = [compute_energy(np.stack([np.zeros(500, np.float32), column], 1)) for column in logits.T]
    np.testing.assert_allclose(compute_joint_energy(logits), np.sum(joint, 0), err_msg="the sum of those of each class")
    assert compute_joint_energy(np.full((1, 2), -1000, np.float32)) == 0
    assert ood.fit_limit(np.arange(1000.0)) == 990
    assert ood.fit_limit(np.arange(10.0)) == 9
    assert ood.fit_limit(np.zeros(0)) is None


def draw_features(count: int, seed: int = 0, size: int = 60) -> NDArray[np.float32]:
    """Features of two classes, which differ in few directions and never in one; their lengths vary."""
    rng = np.random.default_rng(seed)
    centers = np.abs(np.random.default_rng(99).normal(0, 3, (2, size)))
    features = centers[np.arange(count) % 2] + rng.normal(size=(count, 5)) @ np.eye(5, size)
    features += rng.normal(0, 0.1, (count, size))
    features[:, 7] = 0
    return (features * rng.uniform(0.5, 2, (count, 1))).astype(np.float32)


def make_held_out(count: int, groups: NDArray[np.int64] | None = None) -> ModelOutputs:
    logits = draw_logits(count)
    outputs = Outputs(metrics.softmax(logits), logits, draw_features(count))
    return ModelOutputs(outputs, np.zeros(count, np.int32), groups=groups)


@pytest.mark.parametrize("count", [40, 200, 3000])
def test_the_distance_separates_ood_images(count: int) -> None:
    thresholds = ood.fit_detection(Thresholds(count), make_held_out(count), "energy")
    assert thresholds.ood == "distance"
    assert thresholds.ood_space is not None
    assert thresholds.ood_limit is not None
    own = thresholds.ood_space.measure(draw_features(2000, 1))
    assert np.median(own) == pytest.approx(1, abs=1 if count == 40 else 0.3)
    assert (own > thresholds.ood_limit).mean() < (0.05 if count == 40 else 0.03)
    rng = np.random.default_rng(2)
    strange = np.abs(rng.normal(0, 3, (100, 60))).astype(np.float32)
    assert (thresholds.ood_space.measure(strange) > thresholds.ood_limit).mean() > 0.98
    assert ood.ood_auroc(own, thresholds.ood_space.measure(strange)) > 0.99
    assert ood.ood_auroc(np.arange(5.0), np.arange(5.0)) == 0.5


def test_the_distance_is_that_of_probabilistic_pca() -> None:
    """scikit-learn's log-likelihood is a constant minus half of the squared distance."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = draw_features(128)
    space = ood.fit_space(features)
    assert space is not None
    rows = scale_to_unit_length(features)
    model = decomposition.PCA(len(space.variances), svd_solver="full").fit(rows)
    others = draw_features(50, 5)
    expected = -2 * model.score_samples(scale_to_unit_length(others))
    ours = space.measure(others) * features.shape[1]
    assert np.corrcoef(ours, expected)[0, 1] > 0.999
    assert ours.std() == pytest.approx(expected.std(), rel=0.02), "float16 and n - 1 instead of n"


def test_images_of_a_group_are_measured_without_each_other() -> None:
    """Frames of one video are near each other, but new videos are not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    videos = np.abs(rng.normal(0, 3, (40, 60)))

    def draw(of: NDArray[np.int64]) -> NDArray[np.float32]:
        return (videos[of] + rng.normal(0, 0.05, (len(of), 60))).astype(np.float32)

    features, new = draw(groups), draw(groups + 20)
    space = ood.fit_space(features)
    assert space is not None
    alone, apart = ood.measure_held_out(features, None), ood.measure_held_out(features, groups)
    assert alone is not None
    assert apart is not None
    assert (space.measure(new) > alone.max()).mean() > 0.5 > (space.measure(new) > apart.max()).mean()


def test_copies_of_an_image_are_measured_without_each_other() -> None:
    """A class whose files were copied to have more of them has no other limit for new images."""
    held_out = make_held_out(400)
    copied = np.tile(held_out.outputs.features[:100], (4, 1))
    held_out = replace(held_out, outputs=replace(held_out.outputs, features=copied))
    fitted = ood.fit_detection(Thresholds(1), held_out, "energy")
    assert fitted.ood_space is not None
    assert fitted.ood_limit is not None
    assert (fitted.ood_space.measure(draw_features(500, seed=1)) > fitted.ood_limit).mean() < 0.05


@pytest.mark.parametrize("case", ["few images", "no features", "few groups", "equal features"])
def test_the_energy_is_used_where_no_distance_can_be_fitted(case: str) -> None:
    held_out = make_held_out(39 if case == "few images" else 100)
    outputs = held_out.outputs
    if case == "few groups":
        held_out = replace(held_out, groups=np.arange(100) % 4)
    if case in {"no features", "equal features"}:
        features = outputs.features[:, :0] if case == "no features" else np.ones_like(outputs.features)
        held_out = replace(held_out, outputs=replace(outputs, features=features))
    thresholds = ood.fit_detection(Thresholds(1), held_out, "energy")
    assert (thresholds.ood, thresholds.ood_space) == ("energy", None)
    assert thresholds.ood_limit == ood.fit_limit(compute_energy(outputs.logits))


def test_a_histogram_shows_the_limit_and_all_scores() -> None:
    histogram = ood.make_histogram(np.array([1.0, 2.0, 3.0]), np.array([2.0] * 99 + [1000.0, np.inf]), 5.0)
    assert histogram is not None
    assert (histogram.edges[0], histogram.edges[-1]) == (1, 5)
    assert [sum(histogram.evaluated), sum(histogram.ood)] == pytest.approx([1, 1])
    assert histogram.ood[-1] == pytest.approx(2 / 101)
    assert ood.make_histogram(np.ones(3), np.ones(4), 1.0) is None


def test_a_space_is_stored_with_the_model_and_checked() -> None:
    ours = ood.fit_detection(Thresholds(100), make_held_out(100), "energy")
    assert ours.ood_space is not None
    stored = json.loads(json.dumps(ours.to_stored()))
    assert Thresholds.from_dict(stored) == ours
    assert "ood_space" not in ours.to_dict()
    assert len(repr(ours)) < 2000, "without the vectors"
    space = stored["ood_space"]
    for wrong in (
        None, space | {"vectors": space["vectors"][:-8]}, space | {"vectors": "?"}, space | {"rest": 0},
        space | {"variances": [-1.0, *space["variances"][1:]]},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="ood_space"):
            Thresholds.from_dict(stored | {"ood_space": wrong})
    with pytest.raises(ValueError, match="ood_space"):
        Thresholds.from_dict(stored | {"ood": "energy"})
    with pytest.raises(ModelError, match="7 features"):
        ours.ood_space.measure(np.ones((1, 7), np.float32))
