"""Flip test-time augmentation: an image and its mirror image are averaged."""

from __future__ import annotations

import numpy as np

from networks import build_network, random_images
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.inference.tta import FlipTTA
from sightline.preprocessing import PreprocessingSpec


def test_an_image_and_its_mirror_image_get_one_answer_the_mean() -> None:
    plain = KerasPredictor(build_network("fashion-cnn").model, ("a", "b"), PreprocessingSpec(8, 8))
    both, pixels = FlipTTA(plain), random_images(5, 8)
    mirrored = pixels[:, :, ::-1]
    assert np.abs(plain.outputs(pixels).logits - plain.outputs(mirrored).logits).max() > 1e-3
    outputs = both.outputs(pixels)
    np.testing.assert_allclose(outputs.logits, both.outputs(mirrored).logits, atol=1e-6)
    mean = (plain.outputs(pixels).logits + plain.outputs(mirrored).logits) / 2
    np.testing.assert_allclose(outputs.logits, mean, atol=1e-6)
    np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=1e-6)
    assert (both.classes, both.preprocess) == (plain.classes, plain.preprocess)
