"""Masks in tiles: they agree with the whole answer, tiles cover each pixel once, and memory is that of one row."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixel_predictor import REACH, PixelPredictor, draw_blobs, encode_blobs, make_mask_model
from sightline.errors import ConfigError, ModelError, UsageError
from sightline.inference import tiling
from sightline.inference.manifest import Manifest
from sightline.inference.mask_quality import estimate_iou
from sightline.inference.predictor import NOT_FINITE_REASON
from sightline.inference.tiling import TiledMask, divide_axis, predict_tiled
from sightline.preprocessing import PreprocessingSpec
from sightline.runs.train_request import TrainRequest


@given(st.integers(1, 400), st.integers(1, 60))
def test_tiles_cover_an_axis_with_weights_of_sum_one(length: int, side: int) -> None:
    spans = divide_axis(length, side)
    total = np.zeros(max(length, side))
    for span in spans:
        assert len(span.weights) == side
        total[span.start : span.start + side] += span.weights
    np.testing.assert_allclose(total, 1, atol=1e-5)
    starts = [span.start for span in spans]
    assert (starts[0], starts[-1] + side) == (0, max(length, side))
    overlap = min(side - 1, round(tiling.OVERLAP * side))
    assert all(later - start <= side - overlap for start, later in itertools.pairwise(starts))


@pytest.mark.parametrize(("height", "width"), [(100, 140), (33, 47), (64, 48), (65, 300)])
def test_a_tiled_answer_is_the_whole_one_away_from_the_edges(height: int, width: int) -> None:
    pixels = draw_blobs(height, width)
    tile = PixelPredictor(PreprocessingSpec(48, 48))
    whole = PixelPredictor(PreprocessingSpec(height, width)).probabilities(pixels[None])[0]
    complete = predict_tiled(tile.probabilities, pixels, tile.preprocess, 3)
    inner = (slice(REACH, -REACH), slice(REACH, -REACH))  # a smaller image is mirrored, a larger one ends
    tiled = complete.mask
    assert complete.quality == pytest.approx(estimate_iou(whole), abs=0.02)
    assert tiled.shape == (height, width)
    assert len(np.unique(tiled)) == 3
    np.testing.assert_array_equal(tiled[inner], whole.argmax(-1)[inner])
    assert sum(tile.calls) == len(divide_axis(height, 48)) * len(divide_axis(width, 48))


def test_without_the_weights_of_tiles_their_edges_would_show() -> None:
    """The same tiles side by side are wrong where they meet, so the comparison above can fail."""
    pixels = draw_blobs(96, 96)
    tile, whole = PixelPredictor(PreprocessingSpec(48, 48)), PixelPredictor(PreprocessingSpec(96, 96))
    expected = whole.probabilities(pixels[None])[0].argmax(-1)
    quarters = [[tile.probabilities(pixels[None, r : r + 48, c : c + 48])[0] for c in (0, 48)] for r in (0, 48)]
    side_by_side = np.concatenate([np.concatenate(row, 1) for row in quarters]).argmax(-1)
    assert (side_by_side[REACH:-REACH, REACH:-REACH] != expected[REACH:-REACH, REACH:-REACH]).any()


def test_memory_grows_with_the_width_of_an_image_not_with_its_height() -> None:
    spec, classes = PreprocessingSpec(32, 32), 8
    peaks = []
    for height in (400, 4000):
        pixels = np.zeros((height, 64, 3), np.uint8)
        tracemalloc.start()
        tiled = TiledMask(pixels, spec, classes)
        for row in tiled.rows:
            tiled.add_row(row, np.zeros((len(tiled.cut_row(row)), 32, 32, classes), np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1] - 5 * pixels.nbytes // 3)  # mirrored copy and mask
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 4 * 64 * 4000 * classes / 5


def test_an_image_is_tiled_at_the_scale_that_the_model_states(tmp_path: Path) -> None:
    model, image = make_mask_model(48, 48), draw_blobs(120, 200)
    resized, full, half = (model.predict_masks([image], tile=tile)[0].mask for tile in (None, 1, 0.5))
    assert resized is not None
    assert full is not None
    assert half is not None
    assert resized.shape == full.shape == half.shape == (120, 200)
    whole = PixelPredictor(PreprocessingSpec(120, 200)).probabilities(image[None])[0].argmax(-1)
    inner = (slice(REACH, -REACH), slice(REACH, -REACH))
    assert (full[inner] == whole[inner]).all()
    assert (half[inner] == whole[inner]).mean() > 0.9
    assert not (resized[inner] == whole[inner]).all()
    model.tile = 1.0
    (tmp_path / "a.png").write_bytes(encode_blobs(120, 200))
    (tmp_path / "bad.png").write_bytes(b"no image")
    first, bad = model.predict_masks([tmp_path / "a.png", tmp_path / "bad.png"], out=tmp_path / "masks")
    np.testing.assert_array_equal(first.mask, full)
    assert (bad.mask, "not an image" in str(bad.error)) == (None, True)
    assert (tmp_path / "masks" / "a.overlay.png").is_file()
    np.testing.assert_array_equal(model.predict_masks([image], tile=0)[0].mask, resized)


def test_an_image_that_is_longer_than_any_network_takes_is_tiled() -> None:
    mask = make_mask_model(16, 16).predict_masks([draw_blobs(5, 5000)], tile=1)[0].mask
    assert mask is not None
    assert mask.shape == (5, 5000)


def test_a_scale_that_makes_an_image_too_large_is_an_error_of_its_row() -> None:
    model = make_mask_model(16, 16)
    model.predictor.preprocess = PreprocessingSpec(16, 16, max_megapixels=1)  # type: ignore[misc]
    first, second = model.predict_masks([draw_blobs(600, 600), draw_blobs(20, 20)], tile=2)
    assert first.error == "too large for tiles: 1200x1200 pixels at the scale 2, limit 1 megapixels"
    assert second.error is None


def test_an_image_with_a_tile_that_gives_infinity_has_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(self: PixelPredictor, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities = np.full((*pixels.shape[:3], 3), 1 / 3, np.float32)
        probabilities[pixels[..., 0] == 255, 1] = -np.inf
        return probabilities

    monkeypatch.setattr(PixelPredictor, "probabilities", compute)
    images = np.zeros((2, 40, 60, 3), np.uint8)
    images[0, 39, 59] = 255
    bad, good = make_mask_model(16, 16).predict_masks(list(images), tile=1)
    assert (bad.mask, bad.error) == (None, NOT_FINITE_REASON)
    assert good.mask is not None


def test_scales_that_have_no_meaning_are_refused() -> None:
    model = make_mask_model()
    for tile in (-1, 17, float("nan")):
        with pytest.raises(UsageError, match="expected the scale at which an image is cut into tiles"):
            model.predict_masks([draw_blobs(5, 5)], tile=tile)
    with pytest.raises(ModelError, match=r"the manifest's tile is 17\.0"):
        Manifest("a", ("b",), PreprocessingSpec(), tile=17.0)
    with pytest.raises(ConfigError, match=r"input\.tile is for masks"):
        TrainRequest.create("photos", "auto", None, ["input.tile=1"]).merge_layers()


def test_a_manifest_without_tiles_is_one_of_whole_images() -> None:
    values = Manifest("a", ("b",), PreprocessingSpec(), tile=0.5).to_dict()
    assert Manifest.from_dict(values).tile == 0.5
    del values["tile"]
    assert Manifest.from_dict(values).tile == 0
