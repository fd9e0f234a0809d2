"""The preprocessing spec: known pixels for every mode, all orientations, and a reason for every refused file."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, features
from PIL.JpegImagePlugin import JpegImageFile

from sightline.errors import ImageError, ModelError, UsageError
from sightline.preprocessing import (
    ImageHeader,
    PreprocessingSpec,
    decode_preview,
    formats,
    inspect_image,
    spec,
    translate_errors,
)
from synthetic_images import encode

FILTERS = ("bilinear", "bicubic", "lanczos", "box", "nearest")
TURNS = dict(enumerate(spec._TRANSPOSES.values(), start=2))
UNDO = {6: TURNS[8], 8: TURNS[6]}  # every other turn undoes itself


@pytest.fixture(scope="module")
def odd() -> Path:
    here = Path(os.environ.get("SIGHTLINE_SHARED", Path(__file__).parents[3] / "shared"))
    folder = here / "data" / "odd_images"
    if not folder.is_dir():
        pytest.skip(f"the shared images are not at {folder}; set SIGHTLINE_SHARED to their folder")
    return folder


def draw_asymmetric(width: int, height: int) -> Image.Image:
    """A smooth RGB image without any symmetry."""
    y, x = np.mgrid[0:height, 0:width] / (max(width, height) - 1)
    pixels = np.stack([255 * x, 255 * y, 120 + 100 * np.sin(7 * x + 3 * y * y)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def encode_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def encode_png(width: int, height: int, *chunks: bytes) -> bytes:
    header = encode_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + encode_chunk(b"IEND", b"")


def encode_jpeg(width: int, height: int, frame: int = 0xC0, scan: int = 1, data: bytes = b"") -> bytes:
    """A grayscale (`frame` 0xC3: lossless) or, if `scan` is given, three-channel JPEG made by hand."""
    num_channels = 1 if frame == 0xC3 else 3
    segments = [
        (frame, struct.pack(">BHHB", 8, height, width, num_channels) + bytes([1, 0x11, 0] * num_channels)),
        (0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
        (0xDA, bytes([scan]) + bytes([1, 0] * scan) + bytes([frame == 0xC3, 0, 0])),
    ]
    if frame != 0xC3:
        segments.insert(0, (0xDB, b"\0" + b"\1" * 64))
    body = b"".join(struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content for kind, content in segments)
    return b"\xff\xd8" + body + data + b"\xff\xd9"


def encode_oriented(image: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    """`image` as a camera in another orientation would have stored it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    transpose = UNDO.get(orientation, TURNS.get(orientation))
    return encode(image if transpose is None else image.transpose(transpose), kind, exif=exif, **options)


def make_samples() -> dict[str, bytes]:
    """Small valid files, one for every format and encoding."""
    image = draw_asymmetric(40, 30)
    image.paste(Image.effect_noise((20, 10), 90).convert("RGB"), (5, 7))
    gray, palette_image, binary_image = image.convert("L"), image.convert("P"), image.convert("1")
    files = {
        "jpeg": encode(image, "JPEG"),
        "jpeg progressive": encode(image, "JPEG", progressive=True),
        "jpeg cmyk": encode(image.convert("CMYK"), "JPEG"),
        "png": encode(image, "PNG"),
        "png gray": encode(gray, "PNG"),
        "png palette": encode(palette_image, "PNG", transparency=3),
        "png 16": encode(Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), "PNG"),
        "webp": encode(image, "WEBP"),
        "webp lossless": encode(image, "WEBP", lossless=True),
        "gif": encode(palette_image, "GIF"),
        "bmp": encode(image, "BMP"),
        "bmp palette": encode(palette_image, "BMP"),
        "tiff": encode(image, "TIFF"),
        "tiff lzw": encode(image, "TIFF", compression="tiff_lzw"),
        "tiff g4": encode(binary_image, "TIFF", compression="group4"),
        "ppm": encode(image, "PPM"),
        "pbm": encode(binary_image, "PPM"),
        "jpeg2000": encode(image, "JPEG2000"),
        "jpeg2000 layers": encode(image, "JPEG2000", irreversible=True, quality_layers=[20, 10, 2]),
        "j2k": encode(image, "JPEG2000", no_jp2=True),
    }
    if features.check("avif"):
        files["avif"] = encode(image, "AVIF")
    return files


SAMPLES = make_samples()


def first_pixel(image: Image.Image, kind: str | None = None, **options: Any) -> list[int]:
    """The RGB values of the first pixel of `image`, stored as `kind` or from memory."""
    preprocess = PreprocessingSpec(image.height, image.width)
    pixels = preprocess.apply(image) if kind is None else preprocess.decode(encode(image, kind, **options))
    assert pixels.shape == (image.height, image.width, 3)
    assert pixels.dtype == np.uint8
    return [int(value) for value in pixels[0, 0]]


# --- known pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "stored", "expected"),
    [
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (0, 0, 0, 128), [127, 127, 127]),
        ("RGBA", (200, 100, 0, 51), [244, 224, 204]),
        ("RGBA", (9, 9, 9, 0), [255, 255, 255]),
        ("RGBA", (9, 8, 7, 255), [9, 8, 7]),
        ("LA", (0, 128), [127, 127, 127]),
    ],
)
def test_png_pixels(mode: str, stored: Any, expected: list[int]) -> None:
    assert first_pixel(Image.new(mode, (3, 2), stored), "PNG") == expected


@pytest.mark.parametrize(
    ("mode", "stored", "expected"),
    [
        ("RGBa", (0, 0, 0, 128), [127, 127, 127]),  # premultiplied
        ("RGBa", (40, 20, 0, 51), [244, 224, 204]),
        ("La", (0, 128), [127, 127, 127]),
        ("CMYK", (255, 255, 0, 0), [0, 0, 255]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("YCbCr", (255, 128, 128), [255, 255, 255]),
        ("RGBX", (5, 6, 7, 0), [5, 6, 7]),
    ],
)
def test_pixels_from_memory(mode: str, stored: Any, expected: list[int]) -> None:
    image = Image.frombytes(mode, (1, 1), bytes(stored)) if mode in ("RGBa", "La") else Image.new(mode, (3, 2), stored)
    assert first_pixel(image) == expected


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_files(cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    image = Image.new("CMYK", (16, 16), cmyk)
    assert first_pixel(image, "TIFF") == list(rgb)
    assert first_pixel(image, "JPEG") == pytest.approx(rgb, abs=2)  # Pillow writes it inverted, with Adobe's marker


@pytest.mark.parametrize(
    ("lab", "rgb"),
    [((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)), ((138, 209, 198), (255, 0, 0))],
)
def test_lab(lab: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    image = Image.new("LAB", (4, 4), lab)  # sRGB red under D50: L 54.3, a 80.8, b 69.9
    assert first_pixel(image) == pytest.approx(rgb, abs=8)
    assert first_pixel(image, "TIFF") == first_pixel(image)


def test_transparent_colors_are_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert first_pixel(palette, "PNG") == [10, 20, 30]
    for kind in ("PNG", "GIF"):
        pixels = PreprocessingSpec(1, 2).decode(encode(palette, kind, transparency=0))
        assert pixels.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    half = PreprocessingSpec(1, 2).decode(encode(palette, "PNG", transparency=bytes([255, 51])))
    assert half.tolist() == [[[10, 20, 30], [212, 214, 216]]]
    assert first_pixel(Image.new("L", (2, 2), 9), "PNG", transparency=9) == [255, 255, 255]
    assert first_pixel(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(1, 2, 3)) == [255, 255, 255]
    assert first_pixel(Image.new("RGB", (2, 2), (1, 2, 3)), "PNG", transparency=(3, 2, 1)) == [1, 2, 3]
    assert first_pixel(Image.fromarray(np.full((2, 2), 700, np.uint16)), "PNG", transparency=700) == [255, 255, 255]


def test_16_bit_is_rounded_correctly() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    assert expected.flat[[0, 128, 129, 32896, 65535]].tolist() == [0, 0, 1, 128, 255]
    gray, image = PreprocessingSpec(256, 256, channels=1), Image.fromarray(values)
    pgm = b"P5\n256 256\n65535\n" + values.astype(">u2").tobytes()
    big = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    for pixels in (
        gray.apply(image),
        gray.apply(big),
        *map(gray.decode, (pgm, encode(image, "PNG"), encode(big, "TIFF"))),
    ):
        np.testing.assert_array_equal(pixels[..., 0], expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 3, 255], np.int32), [0, 3, 255]),
        (np.array([0, 257, 65535], np.int32), [0, 1, 255]),
        (np.array([-10, 41, 92], np.int32), [0, 128, 255]),
        (np.array([0, 35000, 70000], np.int32), [0, 128, 255]),
        (np.array([7e8, 7e8, 7e8], np.int32), [255, 255, 255]),
        (np.array([0, 0.5, 1], np.float32), [0, 128, 255]),
        (np.array([0, 0.6, 254.5], np.float32), [0, 1, 255]),
        (np.array([0, 257, 65535], np.float32), [0, 1, 255]),
        (np.array([-1, 0, 1], np.float32), [0, 128, 255]),
        (np.array([-3e38, 0, 3e38], np.float32), [0, 128, 255]),
        (np.array([np.nan, 0.2, 1], np.float32), [51, 51, 255]),
        (np.array([-np.inf, 0, np.inf], np.float32), [0, 0, 255]),
        (np.array([np.nan, np.nan, np.nan], np.float32), [0, 0, 0]),
    ],
)
def test_integers_and_floats_by_the_values_found(values: NDArray[Any], expected: list[int]) -> None:
    image = Image.fromarray(values[None])
    assert PreprocessingSpec(1, 3, channels=1).apply(image)[0, :, 0].tolist() == expected
    assert PreprocessingSpec(1, 3, channels=1).decode(encode(image, "TIFF"))[0, :, 0].tolist() == expected


def test_a_dark_16_bit_pgm_stays_dark() -> None:
    assert PreprocessingSpec(1, 1, channels=1).decode(b"P5\n1 1\n65535\n\0\xc8").item() == 1


def test_gray_is_luma() -> None:
    image = Image.new("RGB", (3, 1))
    image.putdata([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    assert PreprocessingSpec(1, 3, channels=1).decode(encode(image, "PNG"))[0, :, 0].tolist() == [76, 150, 29]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_only_the_first_frame(kind: str) -> None:
    first, *rest = (Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue"))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=rest, **options)
    assert inspect_image(data).frames == 3
    assert (PreprocessingSpec(8, 8).decode(data) == [255, 0, 0]).all()


def test_a_damaged_later_frame_is_ignored() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "lime")
    data = bytearray(encode(first, "TIFF", save_all=True, append_images=[second]))
    entries = struct.unpack_from("<H", data, 8)[0]
    following = struct.unpack_from("<I", data, 10 + 12 * entries)[0]
    data[following : following + 2] = b"\0\0"  # a directory without entries
    assert inspect_image(data).frames == 1
    assert (PreprocessingSpec(8, 8).decode(data) == [255, 0, 0]).all()


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_orientation_is_exact_without_loss(kind: str, options: dict[str, Any], orientation: int) -> None:
    image = draw_asymmetric(12, 7)
    data = encode_oriented(image, orientation, kind, **options)
    np.testing.assert_array_equal(PreprocessingSpec(7, 12).decode(data), np.asarray(image))
    assert inspect_image(data) == ImageHeader(kind, "RGB", 12, 7, 1, orientation)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(160, 96), (33, 20)], ids=["whole", "scaled"])
def test_orientation_of_jpegs(size: tuple[int, int], resize: Any, orientation: int) -> None:
    preprocess, image = PreprocessingSpec(*size, resize=resize), draw_asymmetric(401, 300)
    upright, turned = (
        preprocess.decode(encode_oriented(image, o, "JPEG", quality=95, subsampling=0)).astype(int)
        for o in (1, orientation)
    )
    assert np.abs(upright - turned).mean() < 1
    assert np.abs(upright - preprocess.apply(image)).mean() < 2


def test_corrupt_orientation_counts_as_none() -> None:
    image = draw_asymmetric(12, 7)
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09junk", b"Exif\0\0junk"):
        for kind in ("JPEG", "PNG", "WEBP"):
            data = encode(image, kind, exif=exif)
            np.testing.assert_array_equal(
                PreprocessingSpec(7, 12).decode(data), PreprocessingSpec(7, 12).decode(encode(image, kind))
            )
            assert inspect_image(data).orientation == 1
    assert inspect_image(encode_oriented(image, 9, "JPEG")).orientation == 1
    assert inspect_image(encode_oriented(image, 0, "PNG")).orientation == 1


def test_orientation_in_xmp() -> None:
    data = encode(draw_asymmetric(12, 7), "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    assert inspect_image(data) == ImageHeader("JPEG", "RGB", 7, 12, 1, 6)
    assert PreprocessingSpec(12, 7).decode(data).shape == (12, 7, 3)


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("kind", FILTERS)
def test_the_right_size_is_left_alone(resize: Any, kind: Any) -> None:
    image = draw_asymmetric(23, 17)
    np.testing.assert_array_equal(
        PreprocessingSpec(17, 23, resize=resize, interpolation=kind).apply(image), np.asarray(image)
    )


@pytest.mark.parametrize("kind", FILTERS)
def test_crop_and_pad_without_scaling_move_whole_pixels(kind: Any) -> None:
    image = draw_asymmetric(24, 17)
    cropped = PreprocessingSpec(17, 17, resize="crop", interpolation=kind).apply(image)
    np.testing.assert_array_equal(cropped, np.asarray(image)[:, 3:20])
    padded = PreprocessingSpec(20, 24, resize="pad", interpolation=kind).apply(image)
    np.testing.assert_array_equal(padded[1:18], np.asarray(image))
    assert padded[[0, 18, 19]].max() == 0


def test_crop_keeps_the_center_and_pad_keeps_all() -> None:
    pixels = np.full((40, 80, 3), 200, np.uint8)
    pixels[:, :20] = pixels[:, -20:] = 10
    assert (PreprocessingSpec(10, 10, resize="crop", interpolation="box").apply(pixels) == 200).all()
    padded = PreprocessingSpec(10, 10, resize="pad", interpolation="box").apply(pixels)[..., 0]
    assert padded[:, 4].tolist() == [0, 0, 200, 200, 200, 200, 200, 0, 0, 0]
    assert padded[4, [0, 1, 3, 6, 8, 9]].tolist() == [10, 10, 200, 200, 10, 10]


def test_resizing_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = PreprocessingSpec(8, 8, channels=1).apply(stripes)
    assert small.min() > 120
    assert small.max() < 136


@settings(deadline=None)
@given(
    st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]),
    *(st.integers(1, 70) for _ in range(4)),
    st.sampled_from([1, 3]),
    st.sampled_from(["stretch", "crop", "pad"]),
    st.sampled_from(FILTERS),
)
def test_any_image_comes_to_the_shape(
    mode: str, width: int, height: int, to_width: int, to_height: int, channels: Any, resize: Any, kind: Any
) -> None:
    preprocess = PreprocessingSpec(to_height, to_width, channels, resize, kind)
    pixels = preprocess.apply(Image.new(mode, (width, height)))
    assert pixels.shape == (to_height, to_width, channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("name", SAMPLES)
def test_fit_and_decode_agree(name: str) -> None:
    preprocess = PreprocessingSpec(16, 24, resize="crop")
    pixels = preprocess.decode(SAMPLES[name])
    np.testing.assert_array_equal(preprocess.apply(Image.open(io.BytesIO(SAMPLES[name]))), pixels)
    np.testing.assert_array_equal(preprocess.decode(bytearray(SAMPLES[name])), pixels)
    np.testing.assert_array_equal(preprocess.decode(memoryview(b"." + SAMPLES[name])[1:]), pixels)


def test_arrays() -> None:
    rgb = np.asarray(draw_asymmetric(9, 5))
    same = PreprocessingSpec(5, 9).apply(rgb)
    np.testing.assert_array_equal(same, rgb)
    assert not np.shares_memory(same, rgb)
    for gray in (rgb[..., 0], rgb[..., :1]):
        np.testing.assert_array_equal(PreprocessingSpec(5, 9).apply(gray), np.repeat(rgb[..., :1], 3, axis=2))
        np.testing.assert_array_equal(PreprocessingSpec(5, 9, channels=1).apply(gray), rgb[..., :1])
    clear = np.dstack([rgb, np.zeros((5, 9), np.uint8)])
    assert (PreprocessingSpec(5, 9).apply(clear) == 255).all()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4)), np.zeros((4, 4), np.int64), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8),
     np.zeros((0, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), [[1, 2], [3, 4]]],
)  # fmt: skip
def test_wrong_arrays_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"pixels must be uint8 \[H, W\] or \[H, W, 1, 3 or 4\], got .* \["):
        PreprocessingSpec(4, 4).apply(wrong)


def test_a_row_of_pixels_is_refused_with_how_to_reshape_it() -> None:
    for length, hint in ((16, ": for a row of pixels, use x.reshape(height, width)"), (0, "")):
        with pytest.raises(UsageError) as caught:
            PreprocessingSpec(4, 4).apply(np.zeros(length, np.uint8))
        assert str(caught.value) == f"pixels must be uint8 [H, W] or [H, W, 1, 3 or 4], got uint8 [{length}]{hint}"


# --- JPEG scaling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "orientation", "height", "width", "scale"),
    [
        ("stretch", 1, 40, 40, 4),  # 480x320: 320 / (2 * 40)
        ("stretch", 1, 41, 41, 2),
        ("stretch", 1, 80, 120, 2),
        ("stretch", 1, 81, 120, 1),
        ("stretch", 1, 120, 80, 1),
        ("stretch", 6, 120, 80, 2),  # shown as 320x480
        ("crop", 1, 40, 40, 4),
        ("crop", 1, 20, 60, 4),
        ("pad", 1, 60, 60, 4),
        ("pad", 1, 10, 200, 8),
        ("pad", 1, 224, 224, 1),
    ],
)
def test_jpegs_are_scaled_where_twice_the_target_remains(
    monkeypatch: pytest.MonkeyPatch, resize: Any, orientation: int, height: int, width: int, scale: int
) -> None:
    sizes, load = [], JpegImageFile.load

    def spy(image: JpegImageFile) -> Any:
        sizes.append(image.size)
        return load(image)

    image = draw_asymmetric(320, 480) if orientation == 6 else draw_asymmetric(480, 320)
    data, preprocess = (
        encode_oriented(image, orientation, "JPEG", quality=95),
        PreprocessingSpec(height, width, resize=resize),
    )
    monkeypatch.setattr(JpegImageFile, "load", spy)
    pixels = preprocess.decode(data).astype(int)
    assert sizes[0] == (480 // scale, 320 // scale)
    assert np.abs(pixels - preprocess.apply(Image.open(io.BytesIO(data)))).mean() < 0.6


@settings(max_examples=40)
@given(
    st.tuples(st.integers(2, 90), st.integers(2, 90)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["RGB", "L", "CMYK"]),
    st.fixed_dictionaries({"quality": st.integers(20, 98), "progressive": st.booleans()}),
)
def test_jpegs_have_the_pixels_of_pillow_at_the_same_scale(
    size: tuple[int, int], target: tuple[int, int], mode: str, options: dict[str, Any]
) -> None:
    (width, height), (target_width, target_height) = size, target
    data = encode(draw_asymmetric(width, height).convert(mode), "JPEG", **options)
    most = min(width / (2 * target_width), height / (2 * target_height))
    scale = max(scale for scale in (1, 2, 4, 8) if scale == 1 or scale <= most)
    image = Image.open(io.BytesIO(data))
    image.draft(None, (width // scale, height // scale))
    box = (0, 0, width / scale, height / scale)
    expected = image.convert("L" if mode == "L" else "RGB").resize(target, Image.Resampling.BILINEAR, box)
    pixels = PreprocessingSpec(target_height, target_width).decode(data)
    np.testing.assert_array_equal(pixels, np.asarray(expected.convert("RGB")))


def test_the_limit_counts_pixels_after_scaling() -> None:
    image, message = draw_asymmetric(1100, 1000), r"too large: 1100x1000 pixels, limit 1 megapixels \(max_megapixels\)"
    small = PreprocessingSpec(16, 16, max_megapixels=1)
    data = encode(image, "JPEG")
    assert small.decode(data).shape == (16, 16, 3)
    assert decode_preview(data, 128, small)[1].shape == (128, 128)
    with pytest.raises(ImageError, match=message):
        PreprocessingSpec(400, 400, max_megapixels=1).decode(data)
    for whole in (encode(image, "PNG"), encode(image, "JPEG", progressive=True), encode_jpeg(1100, 1000, scan=1)):
        with pytest.raises(ImageError, match=message):  # never scaled, or only once the whole image is in memory
            small.decode(whole)
        with pytest.raises(ImageError, match=message):
            decode_preview(whole, 128, small)
        assert inspect_image(whole).width == 1100  # the header is cheap
    assert PreprocessingSpec(16, 16, max_megapixels=2).decode(encode(image, "PNG")).shape == (16, 16, 3)


def test_lossless_jpegs_are_not_scaled() -> None:
    assert (PreprocessingSpec(8, 8).decode(encode_jpeg(100, 100, frame=0xC3, data=bytes(1250))) == 128).all()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"\0" * 4000, "starts with zeros: an incomplete copy or download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "a Git LFS pointer instead of the image: run `git lfs pull` where it was cloned",
        ),
        (b"bplist00\xd3", "only in iCloud: download the folder, with Download Now in the Finder"),
        (b"\n<!DOCTYPE html><html>", "a web page instead of the image: download it again"),
        (b"\0\0\0\x20ftypisom\0\0", "a video instead of the image: save its frames as images"),
        (b"\x1aE\xdf\xa3\x9fB", "a video instead of the image: save its frames as images"),
        (b"RIFF\n\0\0\0AVI LIST", "a video instead of the image: save its frames as images"),
        (b"\0\0\0\x18ftypcrx \0\0", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format EPS is not supported"),
        (b"%PDF-1.7\n", "format PDF is not supported"),
        (b"8BPS\0\1", "format PSD is not supported"),
        (b"\0\0\1\0\1\0", "format ICO is not supported"),
        (b"\xff\x0a\xfa\x1f", "format JXL is not supported"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format SVG is not supported"),
        (encode_png(30000, 30000), "too large: 30000x30000 pixels, limit 50 megapixels (max_megapixels)"),
        (
            encode_png(10000, 9000),
            "too large: 10000x9000 pixels, limit 50 megapixels (max_megapixels)",
        ),  # Pillow would only warn
        (encode_png(10, 10, encode_chunk(b"IDAT", zlib.compress(bytes(100)))), "truncated"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"BM" + bytes(50), "cannot be decoded: Unsupported BMP header type (0)"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        PreprocessingSpec(4, 4).decode(data)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    "error",
    [OSError("x"), SyntaxError("x"), ValueError("x"), struct.error("x"), MemoryError(), EOFError(), KeyError("x"),
     IndexError(), TypeError("x"), OverflowError("x"), zlib.error("x"), AttributeError("x"), RecursionError("x"),
     NotImplementedError("x"), AssertionError(), Image.DecompressionBombError("x"), Image.DecompressionBombWarning("x"),
     UnicodeDecodeError("ascii", b"\xff", 0, 1, "x")],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)  # fmt: skip
def test_whatever_pillow_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def reader(_: Any) -> Any:
        raise error

    monkeypatch.setitem(formats.FORMATS, "PNG", (b"\x89PNG", reader))
    for read in (PreprocessingSpec(4, 4).decode, inspect_image):
        with pytest.raises(ImageError, match=r"truncated|cannot be decoded: \S") as caught:
            read(encode_png(1, 1))
        assert caught.value.__cause__ is error


def test_interrupts_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.FORMATS, "PNG", (b"\x89PNG", reader))
    with pytest.raises(KeyboardInterrupt):
        inspect_image(encode_png(1, 1))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_file_is_refused_or_complete(name: str) -> None:
    data, preprocess = SAMPLES[name], PreprocessingSpec(30, 40)
    whole = preprocess.decode(data)
    spread = range(0, len(data), max(1, len(data) // 150))
    for length in {*spread, *range(100, 260), *range(len(data) - 20, len(data))}:  # 100..260: where headers end
        try:
            pixels = preprocess.decode(data[:length])
        except ImageError:
            continue
        assert length > len(data) - 30  # only data after the pixels was cut off
        np.testing.assert_array_equal(pixels, whole)


def decode_small_preview(data: bytes | bytearray, side: int = 8) -> NDArray[np.uint8]:
    return decode_preview(data, side)[1]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(data[:12] for data in SAMPLES.values())]))
def test_random_bytes_only_ever_raise_image_error(noise: bytes, start: bytes) -> None:
    for read in (PreprocessingSpec(8, 8).decode, inspect_image, decode_small_preview):
        with suppress(ImageError):
            read(start + noise)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_only_ever_raise_image_error(name: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(SAMPLES[name])
    for place, value in changes:
        data[int(place * min(len(data), 400))] = value  # mostly in the header, where damage matters
    for read in (PreprocessingSpec(8, 8).decode, inspect_image, decode_small_preview):
        with suppress(ImageError):
            read(data)


def test_inspect_reads_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("loaded"))
    for data in SAMPLES.values():
        header = inspect_image(data)
        assert (header.width, header.height, header.frames, header.orientation) == (40, 30, 1, 1)


# --- warnings, threads, memory ---------------------------------------------------------------------------------------

NOISY = encode_png(
    1, 1, encode_chunk(b"acTL", struct.pack(">II", 0, 0)), encode_chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
)


def test_warnings_stay_inside() -> None:
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(NOISY))
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        assert PreprocessingSpec(1, 1).decode(NOISY).tolist() == [[[1, 2, 3]]]
        assert inspect_image(NOISY).frames == 1
        assert not caught_warnings
        warnings.warn("mine", stacklevel=1)
        assert [str(warning.message) for warning in caught_warnings] == ["mine"]


def test_no_filter_stays_whatever_another_thread_does_to_the_filters() -> None:
    before = list(warnings.filters)
    with translate_errors():
        others = warnings.catch_warnings()
        others.__enter__()
        warnings.simplefilter("error")
    others.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_warnings_of_other_threads_are_left_alone() -> None:
    messages: list[str] = []

    def other() -> None:
        try:
            warnings.warn("from another thread", stacklevel=1)
        except UserWarning as warning:
            messages.append(str(warning))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with translate_errors():
            warnings.warn("not shown", stacklevel=1)
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert messages == ["from another thread"]


def test_threads_agree_with_one() -> None:
    preprocess, files = PreprocessingSpec(20, 20), [*SAMPLES.values(), NOISY, SAMPLES["png"][:200]] * 6

    def read(data: bytes) -> bytes:
        try:
            return preprocess.decode(data).tobytes()
        except ImageError as error:
            return str(error).encode()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, files)) == [read(data) for data in files]


@pytest.mark.parametrize("large", [True, False])
def test_large_images_decode_one_at_a_time(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    inside, most, fit = 0, 0, PreprocessingSpec._convert_and_resize
    together = threading.Barrier(4)

    def slow(self: PreprocessingSpec, *args: Any) -> NDArray[np.uint8]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if large:
            time.sleep(0.02)
        else:
            together.wait(60)
        inside -= 1
        return fit(self, *args)

    monkeypatch.setattr(PreprocessingSpec, "_convert_and_resize", slow)
    monkeypatch.setattr(spec, "LARGE_PIXELS", 1199 if large else 1200)  # SAMPLES are 40x30
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(PreprocessingSpec(8, 8).decode, [SAMPLES["png"]] * 4))
    assert (most == 1) == large


def test_import_leaves_pillow_as_it_was() -> None:
    code = (
        "from PIL import Image, ImageFile; before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES\n"
        "import sightline.preprocessing\n"
        "assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == (89478485, False)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the value -------------------------------------------------------------------------------------------------------


def test_to_dict_is_pinned() -> None:
    assert PreprocessingSpec().to_dict() == {
        "schema": 2, "height": 224, "width": 224, "channels": 3, "resize": "stretch", "interpolation": "bilinear",
        "value_range": None, "page": 1, "max_megapixels": 50,
    }  # fmt: skip


@given(
    st.integers(1, 4096), st.integers(1, 4096), st.sampled_from([1, 3]), st.sampled_from(["stretch", "crop", "pad"]),
    st.sampled_from(FILTERS),
)  # fmt: skip
def test_round_trip_through_json(height: int, width: int, channels: Any, resize: Any, kind: Any) -> None:
    preprocess = PreprocessingSpec(height, width, channels, resize, kind)
    again = PreprocessingSpec.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert again == preprocess
    assert hash(again) == hash(preprocess)


@pytest.mark.parametrize(
    ("name", "value"),
    [("height", 0), ("height", 4097), ("width", -1), ("width", 22.0), ("width", True), ("channels", 4),
     ("channels", True), ("channels", "3"), ("resize", "fit"), ("resize", None), ("interpolation", "BOX"),
     ("interpolation", 2)],
)  # fmt: skip
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be (one of|an integer in 1..4096).*, got {value!r}$"):
        PreprocessingSpec(**{name: value})
    with pytest.raises(ModelError, match=f"^preprocess: {name} must be "):
        PreprocessingSpec.from_dict(PreprocessingSpec().to_dict() | {name: value})


@pytest.mark.parametrize(
    "change", [{"mean": 0.5}, *({name: ...} for name in PreprocessingSpec().to_dict() if name != "schema")]
)
def test_wrong_keys_are_refused(change: dict[str, Any]) -> None:
    values = {name: value for name, value in (PreprocessingSpec().to_dict() | change).items() if value is not ...}
    with pytest.raises(ModelError, match=r"preprocess must have the keys .*height.*, got "):
        PreprocessingSpec.from_dict(values)


@pytest.mark.parametrize("schema", [1, None])
def test_another_schema_is_refused(schema: int | None) -> None:
    with pytest.raises(ModelError, match=rf"^preprocess has the schema {schema}; this version of .* reads 2 only$"):
        PreprocessingSpec.from_dict(PreprocessingSpec().to_dict() | {"schema": schema})


def test_it_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PreprocessingSpec().height = 3  # type: ignore[misc]


# --- real files ------------------------------------------------------------------------------------------------------


def test_every_odd_image_is_decoded_or_refused_as_indexed(odd: Path) -> None:
    with (odd / "INDEX.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 300
    wrong = []
    for row in rows:
        data = (odd / row["path"]).read_bytes()
        try:
            assert PreprocessingSpec(32, 32).decode(data).shape == (32, 32, 3)
            header = inspect_image(data)
            sound = (header.format, header.mode, str(header.frames)) == (row["format"], row["mode"], row["frames"])
        except ImageError:
            sound = row["decode"] != "ok"
        if not sound:
            wrong.append(row)
    assert not wrong


def test_a_glance_sees_what_decoding_sees(odd: Path) -> None:
    def slowly(data: bytes, side: int) -> tuple[ImageHeader, NDArray[np.uint8]]:
        header = inspect_image(data)
        return header, PreprocessingSpec(min(header.height, side), min(header.width, side), 1).decode(data)[..., 0]

    def tried(how: Callable[[bytes, int], tuple[ImageHeader, NDArray[np.uint8]]], data: bytes) -> Any:
        try:
            return how(data, 128)
        except ImageError as error:
            return str(error)

    contents = [path.read_bytes() for path in sorted(odd.rglob("*.*"))]
    contents += [data[: len(data) * 9 // 10] for data in contents[::7]]
    for data in contents:
        results = tried(decode_preview, data), tried(slowly, data)
        if isinstance(results[1], str):
            assert results[0] == results[1]
        else:
            (header, pixels), (expected, whole) = results
            assert (header, pixels.shape) == (expected, whole.shape)
            assert np.abs(pixels.astype(int) - whole).mean() < 3


@pytest.mark.parametrize("series", ["Landscape", "Portrait"])
@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_eight_orientations_look_the_same(odd: Path, series: str, resize: Any) -> None:
    preprocess = PreprocessingSpec(224, 224, resize=resize)
    files = [(odd / "exif_orientation" / f"{series}_{o}.jpg").read_bytes() for o in range(1, 9)]
    images = [preprocess.decode(data).astype(int) for data in files]
    apart = max(np.abs(a - b).mean() for a, b in itertools.combinations(images, 2))
    assert apart < 3  # each was compressed separately
    assert np.abs(images[0] - np.rot90(images[0])).mean() > 15
    assert len({(inspect_image(data).width, inspect_image(data).height) for data in files}) == 1


def test_memory_stays_bounded(odd: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("there is no /proc/self/status")
    code = """
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec

def read(path):
    try:
        return PreprocessingSpec().decode(path.read_bytes()).nbytes
    except ImageError as error:
        return str(error)

with ThreadPoolExecutor(2) as pool:
    done = list(pool.map(read, sorted(p for p in pathlib.Path(sys.argv[1]).rglob("*") if p.is_file())))
assert done.count(224 * 224 * 3) > 300, done
status = pathlib.Path("/proc/self/status").read_text()  # getrusage would count the memory of the parent process
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(odd)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 512 * 2**20
