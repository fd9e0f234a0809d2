"""Nearest neighbors: the votes are those of scikit-learn, and a class needs neither training nor many images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from sightline.errors import DataError, UsageError
from sightline.inference.embeddings import Embeddings
from sightline.inference.knn import TEMPERATURE, KnnPredictor
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec

PREDICTOR = FakePredictor(("dark", "bright"), PreprocessingSpec(4, 4))


def make_reference(count: int, size: int = 6) -> Embeddings:
    generator = np.random.default_rng(3)
    labels = generator.choice(["cat", "dog", "fox"], count, p=[0.5, 0.4, 0.1]).tolist()
    paths = tuple(f"{i}.png" for i in range(count))
    return Embeddings(
        generator.normal(size=(count, size)).astype(np.float32), paths, tuple(labels), (None,) * count, "m@"
    )


@pytest.mark.parametrize("count", [1, 4, 90])
@pytest.mark.parametrize("rows", [7, 90])
def test_the_votes_are_those_of_an_independent_implementation(count: int, rows: int) -> None:
    reference, queries = make_reference(90), np.random.default_rng(4).normal(size=(20, 6)).astype(np.float32)
    batches = [reference.select(np.arange(start, min(start + rows, 90))) for start in range(0, 90, rows)]
    knn = KnnPredictor(PREDICTOR, batches, count)
    peer = KNeighborsClassifier(count, metric="cosine", weights=lambda distances: np.exp((1 - distances) / TEMPERATURE))
    peer.fit(reference.vectors.astype(float), reference.labels)
    assert knn.classes == tuple(peer.classes_) == ("cat", "dog", "fox")
    np.testing.assert_allclose(knn.vote(queries), peer.predict_proba(queries.astype(float)), atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 90])
@pytest.mark.parametrize("rows", [7, 90])
def test_a_neighbor_votes_for_each_of_its_labels(count: int, rows: int) -> None:
    """As one classifier of present and absent for each label does, in an independent implementation."""
    reference, queries = make_reference(90), np.random.default_rng(4).normal(size=(20, 6)).astype(np.float32)
    present = np.random.default_rng(5).random((90, 3)) < [0.5, 0.4, 0.1]
    names = np.array(["cat", "dog", "fox"])
    reference = replace(reference, labels=tuple(";".join(names[row]) for row in present))
    assert "" in reference.labels, "an image with none of the classes votes against all"
    batches = [reference.select(np.arange(start, min(start + rows, 90))) for start in range(0, 90, rows)]
    knn = KnnPredictor(PREDICTOR, batches, count)
    assert (knn.classes, knn.has_several_labels) == (("cat", "dog", "fox"), True)
    votes = knn.vote(queries)
    for k in range(3):
        peer = KNeighborsClassifier(count, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE))
        peer.fit(reference.vectors.astype(float), present[:, k])
        np.testing.assert_allclose(votes[:, k], peer.predict_proba(queries.astype(float))[:, 1], atol=1e-5)


def test_a_semicolon_separates_labels_only_where_images_may_have_several() -> None:
    reference = make_reference(3)
    reference = replace(reference, labels=("a;b", "b", "b;c"))
    assert KnnPredictor(PREDICTOR, [reference], 3).classes == ("a", "b", "c")
    one = KnnPredictor(PREDICTOR, [reference], 3, several_labels=False)
    assert one.classes == ("a;b", "b", "b;c")
    np.testing.assert_allclose(one.vote(reference.vectors).sum(1), 1, atol=1e-6)
    single = replace(reference, labels=("a", "b", "b"))
    assert not KnnPredictor(PREDICTOR, [single], 3).has_several_labels
    assert KnnPredictor(PREDICTOR, [single], 3, several_labels=True).has_several_labels
    with pytest.raises(DataError, match="no class to vote for"):
        KnnPredictor(PREDICTOR, [replace(reference, labels=("", "", ""))], 3)


def test_logits_of_several_labels_are_their_log_odds() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    features = PREDICTOR.outputs(pixels).features
    reference = Embeddings(features, ("0", "1", "2"), ("a;b", "b", "b;c"), (None,) * 3, "m@")
    outputs = KnnPredictor(PREDICTOR, [reference], 3).outputs(pixels)
    assert np.isfinite(outputs.logits).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs.logits)), outputs.probabilities, atol=1e-6)
    assert (outputs.probabilities[:, 1] == 1).all(), "all have b"


def test_it_is_a_predictor_of_pixels() -> None:
    red, blue = np.zeros((2, 4, 4, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 100
    features = PREDICTOR.outputs(np.stack([red, blue])).features
    reference = Embeddings(features, ("r", "b"), ("red", "blue"), (None, None), "m@")
    knn = KnnPredictor(PREDICTOR, [reference], 2)
    outputs = knn.outputs(np.stack([blue // 2, red]))
    assert knn.preprocess == PREDICTOR.preprocess
    assert [knn.classes[k] for k in outputs.probabilities.argmax(1)] == ["blue", "red"]
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)
    assert np.isfinite(outputs.logits).all()


def test_features_that_are_not_finite_have_no_vote() -> None:
    knn = KnnPredictor(PREDICTOR, [make_reference(9)], 3)
    assert np.isnan(knn.vote(np.full((1, 6), np.nan, np.float32))).all()


def test_what_cannot_vote_is_refused_or_reported() -> None:
    reference = make_reference(5)
    with pytest.raises(UsageError, match="between 1 and 5, the number of reference images, not 6"):
        KnnPredictor(PREDICTOR, [reference], 6)
    unlabeled = Embeddings(reference.vectors, reference.paths, (None,) * 5, (None,) * 5, "m@")
    with pytest.raises(DataError, match=r"0\.png has no label: .*sightline embed --labeled"):
        KnnPredictor(PREDICTOR, [unlabeled], 1)
    broken = Embeddings(reference.vectors, reference.paths, reference.labels, ("it is empty", *(None,) * 4), "m@")
    knn = KnnPredictor(PREDICTOR, [broken], 1)
    assert knn.unreadable == [("0.png", "it is empty")]
    with pytest.raises(UsageError, match="between 1 and 4, the number of reference images"):
        KnnPredictor(PREDICTOR, [broken], 5)
