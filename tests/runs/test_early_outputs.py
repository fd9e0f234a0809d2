"""Held-out images whose features are known run through the rest of the exported file alone, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from networks import build_network, make_plan, random_images
from sightline.data.types import Subset
from sightline.export import keras_to_onnx
from sightline.export.packaged_layers import convert_packaged_layers
from sightline.inference import runner
from sightline.inference.predictor import Outputs
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models import pretrained
from sightline.models.build import build_model
from sightline.models.registry import ENTRIES
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.early_outputs import EarlyOutputs
from sightline.training.early_features import EarlyFeatures

pytestmark = pytest.mark.usefixtures("no_thread_left")

LITE0, SIDE, CLASSES = ENTRIES["efficientnet-lite0"], 64, ("cat", "dog")
PIXELS = random_images(20, SIDE)


def make_subset(*rows: int) -> Subset:
    return Subset(PIXELS, np.array(rows), np.zeros(len(rows), np.int32), tuple(map(str, rows)))


@contextmanager
def open_early() -> Iterator[tuple[EarlyOutputs, OnnxPredictor]]:
    weights = pretrained.find_cached_file(LITE0, None, SIDE)
    assert weights is not None, "the extra train brings them"
    file = keras_to_onnx.convert_model(
        build_model(make_plan(LITE0.name, side=SIDE, options={"weights": weights})).model
    )
    predictor = OnnxPredictor(file, CLASSES, PreprocessingSpec(SIDE, SIDE, 3), 2)
    first = convert_packaged_layers(LITE0, weights, PIXELS.shape[1:])
    assert first is not None
    early = EarlyFeatures(
        first.file, 2, PIXELS, np.arange(0), [np.arange(15)], calibration=None, meanwhile=lambda: None
    )
    try:
        known = EarlyOutputs.open(file, predictor, early)
        assert known is not None
        yield known, predictor
    finally:
        early.close()


def test_outputs_are_those_of_the_whole_file() -> None:
    samples = make_subset(3, 14, 0, 7, 7, 9)
    with open_early() as (known, predictor):
        expected = runner.predict_outputs(predictor, samples)
        outputs = known.find(samples)
        assert outputs is not None
        for array, other in zip(outputs.arrays, expected.arrays, strict=True):
            np.testing.assert_array_equal(array, other)


def test_images_without_features_are_left_to_the_file() -> None:
    with open_early() as (known, _):
        assert known.find(make_subset(3, 15)) is None


def test_a_file_that_gives_other_bits_runs_on_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_early() as (known, predictor):
        plain = predictor.outputs

        def shift(pixels: Any) -> Outputs:
            outputs = plain(pixels)
            return Outputs(outputs.probabilities, np.nextafter(outputs.logits, np.float32(9)), outputs.features)

        monkeypatch.setattr(predictor, "outputs", shift)
        assert known.find(make_subset(1, 2, 3)) is None


def test_another_network_has_none() -> None:
    with open_early() as (known, predictor):
        other = keras_to_onnx.convert_model(build_network("efficientnet-lite0").model)
        assert EarlyOutputs.open(other, predictor, known.early) is None
        assert EarlyOutputs.open(other, predictor, None) is None
