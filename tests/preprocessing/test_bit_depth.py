"""Samples of more than 8 bits are mapped by the spec's range in every format; 8 bits are left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from high_bit_depth import float_tiff, png_16, tiff
from sightline.errors import ImageError, ModelError, UsageError
from sightline.preprocessing import PreprocessingSpec, inspect_image
from synthetic_images import draw_image, encode

LOW, HIGH = 100, 4095


def map_range(values: NDArray[Any], low: float = LOW, high: float = HIGH) -> NDArray[np.uint8]:
    """Map values by the range, in the simplest reference implementation."""
    return np.floor(255 * (np.clip(values.astype(np.float64), low, high) - low) / (high - low) + 0.5).astype(np.uint8)


def random_values(*shape: int, top: int = 5000) -> NDArray[np.uint16]:
    return np.random.default_rng(shape).integers(0, top, shape).astype(np.uint16)


def make_spec(height: int, width: int, channels: Any = 1) -> PreprocessingSpec:
    return PreprocessingSpec(height, width, channels, value_range=(LOW, HIGH))


@pytest.mark.parametrize(
    "encoded", [png_16, tiff, lambda v: tiff(v, order=">"), lambda v: tiff(v, packed=True), float_tiff,
                lambda v: tiff(v.astype(np.int16)), lambda v: tiff(v.astype(np.int32))],
    ids=["png", "tiff", "big-endian tiff", "deflated tiff", "float tiff", "int16 tiff", "int32 tiff"],
)  # fmt: skip
def test_the_range_is_mapped_to_all_levels_whatever_the_file(encoded: Any) -> None:
    values = random_values(20, 30)
    pixels = make_spec(20, 30).decode(encoded(values))[..., 0]
    np.testing.assert_array_equal(pixels, map_range(values))
    assert len(np.unique(pixels)) > 200
    full = PreprocessingSpec(20, 30, 1).decode(encoded(values))
    assert full.max() < 20  # without a range, 12-bit values in 16 bits are nearly black


@pytest.mark.parametrize(
    "encoded", [png_16, tiff, lambda v: tiff(v, order=">"), lambda v: tiff(v, packed=True),
                lambda v: tiff(v, order=">", packed=True)],
    ids=["png", "tiff", "big-endian", "deflated", "deflated big-endian"],
)  # fmt: skip
def test_16_bit_color_keeps_its_low_bytes(encoded: Any) -> None:
    values = random_values(12, 15, 3)
    data = encoded(values)
    np.testing.assert_array_equal(make_spec(12, 15, 3).decode(data), map_range(values))
    np.testing.assert_array_equal(PreprocessingSpec(12, 15).decode(data), values >> 8)
    assert inspect_image(data).high_bit_depth


def test_16_bit_alpha_is_not_a_sample_value() -> None:
    values = np.full((2, 2, 4), 2000, np.uint16)
    values[0, :, 3], values[1, :, 3] = 0, 65535
    pixels = make_spec(2, 2, 3).decode(png_16(values))
    assert (pixels[0] == 255).all()
    assert (pixels[1] == map_range(np.array(2000))).all()


def test_nothing_but_the_high_bytes_is_known_of_gray_with_alpha() -> None:
    values = np.full((2, 2, 2), 0x0A00, np.uint16)
    values[..., 1] = 65535
    assert (make_spec(2, 2).decode(png_16(values)) == map_range(np.array(0x0A0A))).all()


def test_planes_apart_that_pillow_misreads_are_refused() -> None:
    planes = np.ascontiguousarray(np.moveaxis(random_values(6, 6, 3), -1, 0))
    data = tiff(planes.reshape(6, 6, 3), {284: 2})
    with pytest.raises(ImageError, match="16-bit color in uncompressed separate planes"):
        inspect_image(data)


def test_nan_and_infinite_values_are_clipped() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, -7, 1e30, 2100]], np.float32)
    assert make_spec(1, 6).decode(float_tiff(values))[0, :, 0].tolist() == [0, 0, 255, 0, 255, 128]
    signed = np.array([[-1024, -500, 3071]], np.int16)
    hounsfield = PreprocessingSpec(1, 3, 1, value_range=(-1024, 3071))
    assert hounsfield.decode(tiff(signed))[0, :, 0].tolist() == [0, 33, 255]


def test_a_transparent_value_stays_white() -> None:
    image = Image.fromarray(np.array([[700, 200]], np.uint16))
    assert make_spec(1, 2).decode(encode(image, transparency=700))[0, :, 0].tolist() == [255, 6]


def test_an_image_in_memory_is_mapped_too() -> None:
    values = random_values(4, 4)
    np.testing.assert_array_equal(make_spec(4, 4).apply(Image.fromarray(values))[..., 0], map_range(values))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bits_are_the_same_in_any_range(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    data = encode(draw_image(3, 2, 40, 30).convert(mode), kind)
    for limits in ((0.0, 1.0), (LOW, HIGH), (-5.0, 1e6)):
        np.testing.assert_array_equal(
            PreprocessingSpec(20, 20, value_range=limits).decode(data), PreprocessingSpec(20, 20).decode(data)
        )
    assert not inspect_image(data).high_bit_depth
    assert PreprocessingSpec().sample_values(data, 9) is None


def test_the_whole_16_bit_range_is_what_no_range_is() -> None:
    data = png_16(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    whole = PreprocessingSpec(256, 256, 1, value_range=(0, 65535)).decode(data)
    np.testing.assert_array_equal(whole, PreprocessingSpec(256, 256, 1).decode(data))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png_16(random_values(3, 3)), None),
        (png_16(random_values(3, 3), 12), (0, 4095)),
        (png_16(random_values(3, 3, 3), 10), (0, 1023)),
        (png_16(random_values(3, 3), 16), None),
        (tiff(random_values(3, 3)), None),
        (tiff(random_values(3, 3), {281: 4095}), (0, 4095)),
        (tiff(random_values(3, 3, 3), {281: (4095, 4000, 4095), 280: (16, 20, 16)}), (16, 4095)),
        (tiff(random_values(3, 3), {281: 65535, 280: 0}), None),
        (tiff(random_values(3, 3).astype(np.int16), {341: 32767.0, 340: -32768.0}), None),
        (tiff(random_values(3, 3).astype(np.int16), {341: 3071.0, 340: -1024.0}), (-1024, 3071)),
        (tiff(random_values(3, 3).astype(np.float32), {341: 1.0, 340: 0.0}), (0, 1)),
        (tiff(random_values(3, 3), {281: 5, 280: 9}), None),
        (encode(draw_image().convert("L")), None),
    ],
    ids=range(13),
)
def test_tags_may_state_the_range(data: bytes, expected: Any) -> None:
    assert inspect_image(data).stated_range == expected


def test_12_bits_packed_state_their_range() -> None:
    data = bytearray(tiff(np.frombuffer(bytes([0xAB, 0xC1, 0x23, 0]), np.uint16).reshape(1, 2)))
    at = bytes(data).index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # BitsPerSample, SHORT, one of them, 16
    data[at + 8] = 12
    assert inspect_image(bytes(data)).stated_range == (0, 4095)
    samples = PreprocessingSpec(1, 2, 1).sample_values(bytes(data), 10)
    assert samples is not None
    assert samples.tolist() == [0xABC, 0x123]


def test_values_are_an_even_sample_of_all() -> None:
    values = random_values(64, 128)
    sampled = PreprocessingSpec().sample_values(png_16(values), 100)
    assert sampled is not None
    assert 100 <= sampled.size <= 400
    np.testing.assert_array_equal(sampled, values[::9, ::9].ravel())
    whole = PreprocessingSpec().sample_values(png_16(random_values(5, 5, 3)), 1000)
    assert whole is not None
    np.testing.assert_array_equal(whole, random_values(5, 5, 3).ravel())
    floats = PreprocessingSpec().sample_values(float_tiff(np.array([[np.nan, 1, np.inf, 2]])), 9)
    assert floats is not None
    assert floats.tolist() == [1, 2]


def test_it_travels_as_json_and_back() -> None:
    preprocess = PreprocessingSpec(value_range=(0, 4095), page=2, max_megapixels=200)
    assert preprocess.to_dict() == PreprocessingSpec().to_dict() | {
        "value_range": [0.0, 4095.0],
        "page": 2,
        "max_megapixels": 200,
    }
    assert PreprocessingSpec.from_dict(preprocess.to_dict()) == preprocess
    assert preprocess.with_size(5, 6, 1) == PreprocessingSpec(
        5, 6, 1, value_range=(0, 4095), page=2, max_megapixels=200
    )


@pytest.mark.parametrize(
    "limits", [(1, 1), (2, 1), (0,), (0, 1, 2), (0, float("inf")), ("0", "1"), (True, 2), 7, "auto"]
)
def test_a_wrong_range_is_refused(limits: Any) -> None:
    with pytest.raises(UsageError, match="value_range must be two numbers"):
        PreprocessingSpec(value_range=limits)
    with pytest.raises(ModelError, match="preprocess: value_range must be two numbers"):
        PreprocessingSpec.from_dict(PreprocessingSpec().to_dict() | {"value_range": limits})
