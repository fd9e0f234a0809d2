"""The sample range of images with more than 8 bits: from tags or training images, never from others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from high_bit_depth import float_tiff, png_16, tiff
from sightline.data import sample_range
from sightline.data.checks.audit import audit_images
from sightline.data.checks.fixes import propose_fixes
from sightline.data.indexing import build_index
from sightline.data.sample_range import SampleRange, resolve_range
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png, write_files

Encode = Callable[[NDArray[Any]], bytes]


def microscope(number: int, low: int = 0, high: int = 3900, side: int = 24) -> NDArray[np.uint16]:
    """A bright disk on a dark ground, with values in low..high; both ends are used."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] - rng.integers(8, 16, (2, 1, 1))
    values = (high - low) * np.clip(1.2 - np.hypot(x, y) / 12, 0, 1) + low + rng.integers(0, 20, (side, side))
    clipped: NDArray[np.uint16] = np.clip(values, low, high).astype(np.uint16)
    return clipped


def make_files(encode: Encode, count: int = 6, **options: Any) -> dict[str, bytes]:
    return {
        f"{label}/{i}.{'tif' if encode is not png_16 else 'png'}": encode(microscope(10 * i + k, **options))
        for k, label in enumerate(("cell", "dust"))
        for i in range(count)
    }


def resolve(tmp_path: Path, contents: dict[str, bytes], setting: Any = "auto", training: Any = None) -> SampleRange:
    source_index = build_index(write_files(tmp_path, contents))
    return resolve_range(
        source_index, range(len(source_index.images)) if training is None else training, setting, PreprocessingSpec()
    )


@pytest.mark.parametrize(
    ("contents", "limits", "how"),
    [
        (make_files(png_16), (0, 4095), "the values of 12 images span at least half of that range"),
        (make_files(png_16, high=250), (0, 255), "half of that range"),
        (make_files(png_16, high=1000), (0, 1023), "half of that range"),
        (make_files(png_16, high=60000), (0, 65535), "half of that range"),
        (make_files(png_16, low=1000, high=1400), (1000, 1400), "0.1 and 99.9 percentiles of 12 images"),
        (make_files(lambda v: png_16(v, 12), high=1400), (0, 4095), "from their tags"),
        # as PNG has it: scaled to all 16 bits
        (make_files(lambda v: png_16(v * 16, 12)), (0, 65535), "half of that range"),
        (make_files(lambda v: tiff(v, {281: 3000, 280: 500}), low=600, high=2900), (500, 3000), "tags"),
        (make_files(lambda v: tiff(v, {281: 3000}), high=3900), (0, 4095), "half of that range"),  # the tag is not true
        (make_files(lambda v: tiff(v.astype(np.int16) - 1024)), (-1024, 2876), "percentiles"),
        (make_files(lambda v: float_tiff(v / 4095)), (0, 1), "half of that range"),
        (make_files(lambda v: float_tiff(np.where(v < 10, np.nan, v / 40950))), (0.000244, 0.0952), "percentiles"),
        (make_files(lambda v: float_tiff(v / 10 - 200)), (-200, 190), "percentiles"),
        (make_files(lambda v: float_tiff(v * np.nan)), None, "no training image of more than 8 bits can be decoded"),
        (make_files(lambda v: png_16(v * 0 + 9)), None, "all values are equal"),
        (make_files(png_16) | {f"cell/{i}.tif": float_tiff(microscope(i)) for i in range(3)}, None, "mixed"),
        ({f"{c}/{i}.png": encode_png(i, k) for k, c in enumerate("ab") for i in range(3)}, None,
        "no training image has more"),
    ],
    ids=range(17),
)  # fmt: skip
def test_the_range_is_what_the_images_use(
    tmp_path: Path, contents: dict[str, bytes], limits: tuple[float, float] | None, how: str
) -> None:
    resolved_range = resolve(tmp_path, contents)
    assert how in resolved_range.reason
    assert (resolved_range.limits is None) == (limits is None)
    if limits and resolved_range.limits:
        np.testing.assert_allclose(resolved_range.limits, limits, rtol=0.02)


def test_8_bit_images_beside_deep_ones_count_for_nothing(tmp_path: Path) -> None:
    contents = make_files(png_16, low=1000, high=1400) | {f"cell/{i}.jpg": encode_png(i) for i in range(20)}
    assert (
        resolve(tmp_path, contents).limits == resolve(tmp_path / "only", make_files(png_16, low=1000, high=1400)).limits
    )


def test_only_training_images_decide(tmp_path: Path) -> None:
    contents = make_files(png_16, low=1000, high=1400) | {"cell/bright.png": png_16(microscope(99, high=65000))}
    source_index = build_index(write_files(tmp_path, contents))
    dim = [i for i, p in enumerate(source_index.images) if p.path != "cell/bright.png"]
    assert resolve_range(source_index, dim, "auto", PreprocessingSpec()).limits == (1000, 1400)
    everything = resolve_range(source_index, range(len(source_index.images)), "auto", PreprocessingSpec()).limits
    assert everything is not None
    assert everything[1] > 20_000


def test_a_few_hot_pixels_decide_nothing(tmp_path: Path) -> None:
    def hot(values: NDArray[Any]) -> bytes:
        values[0, 0] = 65535
        return png_16(values)

    assert resolve(tmp_path, make_files(hot, side=60)).limits == (0, 4095)


def test_a_rare_class_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_range, "MAX_IMAGES", 8)
    contents = {f"dim/{i}.png": png_16(microscope(i, 100, 200)) for i in range(60)}
    contents |= {f"rare/{i}.png": png_16(microscope(i, 100, 3000)) for i in range(2)}
    limits = resolve(tmp_path, contents).limits
    assert limits == (0, 4095)


def test_set_ranges_need_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = make_files(png_16)
    write_files(tmp_path, contents)
    monkeypatch.setattr(PreprocessingSpec, "sample_values", lambda *_: pytest.fail("an image was decoded"))
    assert resolve(tmp_path, contents, (5.0, 9.0)) == SampleRange((5.0, 9.0), "as set")
    assert resolve(tmp_path, contents, "full") == SampleRange(None, "as set")


def test_the_order_of_files_and_threads_changes_nothing(tmp_path: Path) -> None:
    contents = make_files(png_16, low=300, high=800)
    renamed = {f"{k.split('/')[0]}/{100 - i}.png": v for i, (k, v) in enumerate(contents.items())}
    first, second = (
        build_index(write_files(tmp_path / "a", contents)),
        build_index(write_files(tmp_path / "b", renamed)),
    )
    one = resolve_range(first, range(12), "auto", PreprocessingSpec(), threads=1)
    assert one == resolve_range(second, range(12), "auto", PreprocessingSpec(), threads=4)


def test_the_doctor_reports_in_the_range_that_training_would_use(tmp_path: Path) -> None:
    source_index = build_index(write_files(tmp_path, make_files(png_16, high=1500, low=1200, count=8)))
    values = resolve_range(source_index, range(16), "auto", PreprocessingSpec())
    audit_result, copies, stats = audit_images(
        source_index, sample_range=values, spec=PreprocessingSpec(value_range=values.limits)
    )
    kinds = {f.kind: f for f in audit_result.findings}
    assert "blank" not in kinds
    assert propose_fixes(source_index, copies, stats) == []
    assert kinds["high-bit-depth"].count == 16
    assert kinds["high-bit-depth"].reasons[0] == "16-bit"
    assert "read with 1200 as black and 1500 as white" in kinds["high-bit-depth"].description
    dark, *_ = audit_images(source_index)
    assert next(f.count for f in dark.findings if f.kind == "blank") == 16  # what a full range makes of them
