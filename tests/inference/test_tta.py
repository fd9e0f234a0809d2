"""Test-time augmentation: views of an image are averaged."""

from __future__ import annotations

import numpy as np

from networks import build_network, make_plan, random_images
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.tta import TTAPredictor
from sightline.models.build import build_model
from sightline.preprocessing import PreprocessingSpec


def test_an_image_and_its_mirror_image_get_one_answer_the_mean() -> None:
    plain = KerasPredictor(build_network("fashion-cnn").model, ("a", "b"), PreprocessingSpec(8, 8))
    both, pixels = TTAPredictor(plain), random_images(5, 8)
    mirrored = pixels[:, :, ::-1]
    assert np.abs(plain.outputs(pixels).logits - plain.outputs(mirrored).logits).max() > 1e-3
    outputs = both.outputs(pixels)
    np.testing.assert_allclose(outputs.logits, both.outputs(mirrored).logits, atol=1e-6)
    mean = (plain.outputs(pixels).logits + plain.outputs(mirrored).logits) / 2
    np.testing.assert_allclose(outputs.logits, mean, atol=1e-6)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)
    assert (both.classes, both.preprocess) == (plain.classes, plain.preprocess)


def test_shifted_views_have_half_the_weight_of_the_original() -> None:
    """In 64x64 pixels, a shift is of 2; pixels outside are reflected."""
    model = build_model(make_plan("fashion-cnn", classes=3, side=64)).model
    plain = KerasPredictor(model, ("a", "b", "c"), PreprocessingSpec(64, 64))
    pixels = random_images(3, 64)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect")
    views = [(pixels, 1 / 4), (padded[:, :64, :64], 1 / 8), (padded[:, 4:, 4:], 1 / 8)]
    expected = sum(
        weight * plain.outputs(np.ascontiguousarray(view[:, :, ::step])).logits
        for view, weight in views
        for step in (1, -1)
    )
    np.testing.assert_allclose(TTAPredictor(plain, kind="flip-shift").outputs(pixels).logits, expected, atol=1e-5)
