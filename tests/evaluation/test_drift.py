"""The test for drift: how often it is wrong on quiet streams, how soon it is right, and that looking again is free."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from sightline.errors import ModelError
from sightline.evaluation.drift import Drift, DriftTest, compute_p_values
from sightline.evaluation.validation_sample import ValidationSample, compute_uncertainties
from sightline.inference.predictor import Outputs

Images = tuple[NDArray[np.float32], NDArray[np.float32]]
LEVEL = 0.05


def draw(rng: np.random.Generator, count: int, shift: float = 0.0) -> Images:
    """Draw features and probabilities of images; `shift` moves the features in one direction."""
    features = np.abs(rng.normal(1, 1, (count, 12))).astype(np.float32)
    features[:, 3] += shift
    first = rng.random(count).astype(np.float32)
    return features, np.stack([first, 1 - first], 1)


def make_sample(rng: np.random.Generator, count: int = 200) -> ValidationSample:
    features, probabilities = draw(rng, count)
    sample = ValidationSample.from_outputs(Outputs(probabilities, np.log(probabilities), features), None)
    assert sample is not None
    return sample


def watch(sample: ValidationSample, *batches: Images, level: float = LEVEL) -> Drift:
    test = DriftTest(sample, level)
    for features, probabilities in batches:
        test.add(features, compute_uncertainties(probabilities))
    return test.finish()


def test_quiet_streams_raise_an_alarm_at_any_look_less_often_than_stated() -> None:
    """With 4 alarms in 200, the rate is below 0.05 at 97% confidence: at 0.05 or more, 4 or fewer happen in 2.6%."""
    streams, most = 200, 4
    assert binom.cdf(most, streams, LEVEL) < 0.03 < binom.cdf(most + 1, streams, LEVEL)
    alarms = 0
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        alarms += watch(make_sample(rng), draw(rng, 500)).alarm is not None
    assert alarms <= most


@pytest.mark.parametrize("quiet", [0, 300])
def test_a_shift_is_found_soon_whenever_it_begins(quiet: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        drift = watch(make_sample(rng), draw(rng, quiet), draw(rng, 500, shift=2))
        assert drift.alarm is not None
        assert quiet < drift.alarm < quiet + 200
        assert drift.start is not None
        assert abs(drift.start - quiet) <= 128
        assert drift.evidence >= 1 / LEVEL


def test_what_was_found_does_not_depend_on_later_images_or_on_batches() -> None:
    rng = np.random.default_rng(0)
    sample, (features, probabilities) = make_sample(rng), draw(rng, 1400, shift=0.7)
    whole = watch(sample, (features, probabilities))
    assert whole.alarm is not None
    assert len(whole.log_evidence) == 1400
    for stop in (40, whole.alarm, 777):
        start = watch(sample, (features[:stop], probabilities[:stop]))
        assert np.allclose(start.log_evidence, whole.log_evidence[:stop])
        assert (start.alarm, start.start) == ((whole.alarm, whole.start) if stop >= whole.alarm else (None, None))
    steps = [0, 1, 50, 63, 64, 65, 700, 1400]
    parts = [(features[a:b], probabilities[a:b]) for a, b in pairwise(steps)]
    assert np.allclose(watch(sample, *parts).log_evidence, whole.log_evidence)


def test_the_p_values_of_equal_scores_are_uniform() -> None:
    rng = np.random.default_rng(0)
    p = compute_p_values(np.zeros(50), np.zeros(2000), rng.random(2000))
    counts = np.histogram(p, 10, (0, 1))[0]
    assert counts.min() > 150
    p = compute_p_values(np.arange(99.0), np.array([200.0, -1.0]), np.array([0.5, 0.5]))
    assert np.allclose(p, [0.005, (100 + 0.5) / 101])


def test_a_stream_without_images_has_no_evidence() -> None:
    drift = watch(make_sample(np.random.default_rng(0)))
    assert (drift.alarm, drift.evidence, len(drift.log_evidence)) == (None, 1.0, 0)


def test_a_sample_is_bounded_and_comes_back_from_its_bytes() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((3000, 1280), np.float32)
    probabilities = np.full((3000, 2), 0.5, np.float32)
    outputs = Outputs(probabilities, probabilities, features)
    sample = ValidationSample.from_outputs(outputs, rng.random(3000) > 0.5)
    assert sample is not None
    content = sample.to_bytes()
    assert len(content) < 1.2e6
    assert (len(sample.bank), len(sample.confidences)) == (128, 3000)
    restored = ValidationSample.from_bytes(content, 2)
    assert restored.to_bytes() == content
    assert np.array_equal(restored.features, sample.features)
    assert not len(restored.labels)
    labels = rng.random((3000, 2)) > 0.5
    several = ValidationSample.from_outputs(outputs, None, labels)
    assert several is not None
    restored = ValidationSample.from_bytes(several.to_bytes(), 2)
    assert len(restored.labels) == 2000
    assert np.array_equal(restored.labels, several.labels)
    assert np.array_equal(restored.probabilities, several.probabilities)
    grouped = ValidationSample.from_outputs(outputs, None, labels, np.arange(3000) // 3 * 10)
    assert grouped is not None
    restored = ValidationSample.from_bytes(grouped.to_bytes(), 2)
    assert np.array_equal(restored.groups, grouped.groups)
    assert (np.unique(restored.groups, return_counts=True)[1] == 3).all()
    of_labels = restored.get_groups(2000)
    assert of_labels is not None
    assert np.array_equal(np.unique(of_labels), np.arange(of_labels.max() + 1))
    assert several.get_groups(2000) is None
    few = Outputs(*(array[:19] for array in outputs.arrays))
    assert ValidationSample.from_outputs(few, None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": np.int64(2)}, "schema 2"),
        ({"bank": np.zeros((3, 4))}, "shapes"),
        ({"bank": np.full((66, 12), np.nan)}, "not finite"),
        ({"correct": np.zeros(7, bool)}, "shapes"),
        ({"uncertainties": np.zeros(3)}, "shapes"),
        ({"labels": np.zeros((4, 2), bool)}, "shapes"),
        ({"groups": np.zeros(3, np.int32)}, "shapes"),
        ({"groups": np.zeros(200, np.float32)}, "groups are"),
        ({"labels": np.zeros((4, 3), bool), "probabilities": np.zeros((4, 3))}, "shapes"),  # of another model
        ({"extra": np.zeros(3)}, "unknown array 'extra'"),
        ({"bank": np.array(["a"])}, "bank are"),
    ],
)
def test_a_damaged_sample_is_refused(changes: dict[str, NDArray[np.generic]], words: str, tmp_path: Path) -> None:
    path = tmp_path / "validation.npz"
    path.write_bytes(make_sample(np.random.default_rng(0)).to_bytes())
    with np.load(path) as saved:
        arrays = dict(saved) | changes
    np.savez(path, **arrays)
    with pytest.raises(ModelError, match=words):
        ValidationSample.from_bytes(path.read_bytes(), 2)
    with pytest.raises(ModelError, match="cannot be read"):
        ValidationSample.from_bytes(b"nothing", 2)
