"""Flip test-time augmentation: an image and its mirror image are averaged."""

from __future__ import annotations

import numpy as np

from networks import network, pictures
from sightline.prediction.keras import KerasPredictor
from sightline.prediction.views import Mirrored
from sightline.preprocess import Preprocess


def test_a_picture_and_its_mirror_image_get_one_answer_the_mean() -> None:
    plain = KerasPredictor(network("fashion-cnn").model, ("a", "b"), Preprocess(8, 8))
    both, pixels = Mirrored(plain), pictures(5, 8)
    mirrored = pixels[:, :, ::-1]
    assert np.abs(plain.outputs(pixels).logits - plain.outputs(mirrored).logits).max() > 1e-3
    found = both.outputs(pixels)
    np.testing.assert_allclose(found.logits, both.outputs(mirrored).logits, atol=1e-6)
    mean = (plain.outputs(pixels).logits + plain.outputs(mirrored).logits) / 2
    np.testing.assert_allclose(found.logits, mean, atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    assert (both.classes, both.preprocess) == (plain.classes, plain.preprocess)
