"""Heat maps of a class of pixels: the gradient is that of the sum of their logits, and models whose answer is known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pixel_predictor import CLASSES, REACH, PixelPredictor, draw_blobs, make_mask_model
from sightline import backend
from sightline.config import ModelConfig
from sightline.errors import UsageError
from sightline.explain.gradcam import KerasGradCam, combine_maps, last_feature_maps
from sightline.explain.heatmaps import compute_heat_maps, resolve_method
from sightline.explain.localization import PixelRegion, normalize_heat, resize_heat
from sightline.explain.masking import RECTANGLE_FRACTION
from sightline.inference.runtimes.keras import KerasPredictor
from sightline.models.build import ModelSpec, build_model
from sightline.models.entry import Decoder
from sightline.preprocessing import PreprocessingSpec

pytestmark = pytest.mark.usefixtures("plain_figures")
SIZE = (32, 48)


def build(name: str, decoder: Decoder) -> Any:
    spec = ModelSpec(ModelConfig(name), *SIZE, 3, 4, pixel_stats=(127.0, 60.0), decoder=decoder)
    return build_model(spec).model


def draw(count: int) -> NDArray[np.uint8]:
    return np.stack([draw_blobs(*SIZE, seed) for seed in range(count)])


@pytest.mark.backends
@pytest.mark.parametrize("decoder", ["transposed", "bilinear"])
def test_the_gradient_is_that_of_the_sum_of_the_logits_of_a_class_of_pixels(decoder: Decoder) -> None:
    """Against finite differences, also where the decoder takes maps that are not explained."""
    model, pixels = build("fcn", decoder), draw(1)
    region = np.zeros((1, *SIZE), bool)
    region[:, 4:20, 8:30] = True
    weights = region[..., None] * np.eye(4, dtype=np.float32)[2]
    maps, slopes = KerasGradCam(model)._gradient(pixels, weights)
    after = backend.keras().Model([model.input, last_feature_maps(model)], model.output["logits"])

    def score(step: float) -> float:
        changed = maps + np.float32(step) * slopes  # where it rises most, so that rounding matters least
        logits = backend.keras().ops.convert_to_numpy(after([pixels, changed]))
        return float((logits * weights).sum(dtype=np.float64))

    np.testing.assert_allclose(np.square(slopes).sum(), (score(1e-3) - score(-1e-3)) / 2e-3, rtol=0.03)


@pytest.mark.slow_with("efficientnet-lite0-bilinear-shape3")
@pytest.mark.parametrize(
    ("name", "decoder", "shape"),
    [
        ("fcn", "transposed", (2, 3)),
        ("fcn", "bilinear", (4, 6)),
        ("fcn", "fcn8", (2, 3)),
        ("efficientnet-lite0", "bilinear", (2, 3)),
    ],
)
def test_every_decoder_has_feature_maps_to_explain(name: str, decoder: Decoder, shape: tuple[int, int]) -> None:
    """Those of the backbone, or the first that the decoder joins: two positions for each of the backbone's."""
    model = build(name, decoder)
    assert last_feature_maps(model).shape[1:3] == shape
    predictor = KerasPredictor(model, tuple("abcd"), PreprocessingSpec(*SIZE))
    pixels = draw(2)
    regions = predictor.probabilities(pixels).argmax(-1) == 1
    regions[1] = False
    heat = compute_heat_maps(predictor, pixels, np.array([1, 1]), "gradcam", regions=regions)
    assert heat.shape == (2, *SIZE)
    assert not heat[1].any(), "no pixel, so no evidence"
    if regions[0].any():
        weights = regions[:1, ..., None] * np.eye(4, dtype=np.float32)[1]
        maps, slopes = KerasGradCam(model)._gradient(pixels[:1], weights)
        expected = np.maximum((maps[0] * slopes[0].mean((0, 1))).sum(-1), 0)
        np.testing.assert_allclose(combine_maps(maps[0], slopes[0], plus=False, flat=False), expected, atol=1e-6)
        np.testing.assert_allclose(heat[0], normalize_heat(resize_heat(expected, *SIZE)), atol=1e-4)


def test_occlusion_finds_the_pixels_that_a_class_depends_on() -> None:
    """The model sees two pixels far, so a rectangle further away changes nothing."""
    predictor, pixels = PixelPredictor(PreprocessingSpec(*SIZE)), np.full((*SIZE, 3), 128, np.uint8)
    pixels[10:18, 30:38] = 230
    region = PixelRegion.find(predictor.probabilities(pixels[None])[0], np.ones(SIZE, bool), CLASSES.index("light"))
    assert 0 < region.fraction < 0.1
    assert region.probability > 0.5
    heat = compute_heat_maps(predictor, pixels[None], np.array([2]), "occlusion", regions=region.pixels[None])[0]
    rows, columns = np.nonzero(region.pixels)
    reach = REACH + np.ceil(RECTANGLE_FRACTION * max(SIZE))
    y, x = np.nonzero(heat)
    assert heat[region.pixels].mean() > 0.3
    assert rows.min() - reach <= y.min() <= y.max() <= rows.max() + reach
    assert columns.min() - reach <= x.min() <= x.max() <= columns.max() + reach


def test_the_class_is_by_default_that_of_the_most_pixels_of_the_image() -> None:
    """What the image is padded with does not count."""
    model = make_mask_model(24, 24, resize="pad")
    image = np.full((12, 24, 3), 230, np.uint8)
    image[3:9, 4:10] = 128
    light, gray, dark = (
        model.explain([image], method="occlusion", label=label, progress=False)[0] for label in (None, "gray", "dark")
    )
    assert (light.label, gray.label, dark.label) == ("light", "gray", "dark")
    for explanation in (light, gray):
        assert explanation.pixel_region is not None
        assert not explanation.pixel_region[:6].any(), "the padding above"
        assert explanation.pixel_fraction == pytest.approx(explanation.pixel_region.sum() / (12 * 24))
    probabilities = model.predictor.probabilities(model.preprocess.apply(image)[None])[0]
    assert gray.probability == pytest.approx(probabilities[gray.pixel_region, 1].mean(), abs=1e-6)
    assert gray.faithfulness is not None
    assert gray.faithfulness.drop > gray.faithfulness.random_drop


def test_a_class_without_a_pixel_has_no_evidence(tmp_path: Path) -> None:
    model = make_mask_model(*SIZE)
    (explanation,) = model.explain([np.full((*SIZE, 3), 128, np.uint8)], label="light", out=tmp_path, progress=False)
    assert (explanation.region, explanation.faithfulness, explanation.pixel_fraction) == (None, None, 0)
    assert explanation.list_sentences() == ["no pixel of the image is predicted as this class"]
    assert explanation.probability is not None
    assert explanation.probability < 0.1
    assert explanation.to_dict()["pixel_fraction"] == 0
    assert explanation.figure is not None


@pytest.mark.usefixtures("drawn_figures")
def test_the_figure_outlines_the_pixels(tmp_path: Path) -> None:
    """The image is drawn as it is but for the line."""
    model, image = make_mask_model(*SIZE), draw_blobs(64, 96)
    (explanation,) = model.explain([image], label="light", out=tmp_path, progress=False)
    assert explanation.pixel_fraction is not None
    assert f"predicted as this class: {explanation.pixel_fraction:.1%}" in explanation.list_sentences()[-1]
    figure = np.asarray(Image.open(str(explanation.figure)).convert("RGB"))
    panel = figure[34 : 34 + 3 * 64, 12 : 12 + 3 * 96].astype(int)
    plain = np.asarray(Image.fromarray(image).resize((3 * 96, 3 * 64), Image.Resampling.NEAREST)).astype(int)
    differs = np.abs(panel - plain).max(-1) > 60
    assert 0.005 < differs.mean() < 0.3


@pytest.mark.parametrize("method", ["rise", "gradcam++"])
def test_a_method_without_a_meaning_for_masks_is_refused(method: str) -> None:
    predictor = PixelPredictor(PreprocessingSpec(*SIZE))
    with pytest.raises(UsageError, match=f"The method {method.replace('+', '.')} is for the class of a whole image"):
        resolve_method(method, predictor, are_masks=True)
    content = io.BytesIO()
    Image.fromarray(draw_blobs(*SIZE)).save(content, "PNG")
    with pytest.raises(UsageError, match="use `method` gradcam or occlusion"):
        make_mask_model(*SIZE).explain([content.getvalue()], method=method)
