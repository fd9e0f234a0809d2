"""Formats that need an optional package, and files of several pages."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from sightline.errors import ImageError, UsageError
from sightline.preprocessing import PreprocessingSpec, decode_preview, inspect_image
from synthetic_images import EMPTY_HEIF, NO_HEIF, draw_scene, encode

COLORS = ("red", "lime", "blue")


def encode_pages(kind: str, **options: Any) -> bytes:
    first, *rest = (Image.new("RGB", (8, 8), color) for color in COLORS)
    return encode(first, kind, save_all=True, append_images=rest, **options)


@pytest.mark.parametrize(
    ("kind", "options"), [("TIFF", {}), ("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})], ids=str
)
def test_the_page_of_the_spec_is_read(kind: str, options: dict[str, Any]) -> None:
    data = encode_pages(kind, **options)
    for page, color in enumerate(np.identity(3, np.uint8) * 255, 1):
        assert (PreprocessingSpec(4, 4, page=page).decode(data) == color).all()
        assert inspect_image(data, page).frames == 3
    assert decode_preview(data, 4, PreprocessingSpec(page=2))[1].max() == 150  # the luma of lime
    for read in (
        PreprocessingSpec(page=4).decode,
        lambda d: inspect_image(d, 4),
        lambda d: decode_preview(d, 8, PreprocessingSpec(page=4)),
    ):
        with pytest.raises(ImageError, match=r"^has no page 4, only 3$"):
            read(data)


def test_pages_of_several_depths_and_sizes() -> None:
    deep = Image.fromarray(np.full((3, 5), 2048, np.uint16))
    data = encode(Image.new("L", (8, 8), 9), "TIFF", save_all=True, append_images=[deep])
    assert PreprocessingSpec(3, 5, 1, value_range=(0, 4096), page=2).decode(data).max() == 128
    assert (
        inspect_image(data).high_bit_depth,
        inspect_image(data, 2).high_bit_depth,
        inspect_image(data, 2).width,
    ) == (False, True, 5)


def test_a_single_image_has_one_page() -> None:
    with pytest.raises(ImageError, match=r"^has no page 2, only 1$"):
        PreprocessingSpec(page=2).decode(encode(draw_scene(1), "JPEG"))
    with pytest.raises(UsageError, match="page must be an integer in 1"):
        PreprocessingSpec(page=0)


def test_without_its_package_heic_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)
    mif1 = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic"
    for data in (EMPTY_HEIF, mif1, EMPTY_HEIF.replace(b"heic", b"heix"), EMPTY_HEIF.replace(b"heic", b"hevc")):
        with pytest.raises(ImageError) as caught:
            inspect_image(data)
        assert str(caught.value) == NO_HEIF


def test_avif_without_its_decoder_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda _: False)
    for brands in (b"ftypavif\0\0\0\0", b"ftypmif1\0\0\0\0mif1miafavif"):
        with pytest.raises(ImageError, match="AVIF images need a Pillow that was built with AVIF"):
            inspect_image(b"\0\0\0\x1c" + brands)


def encode_heic(image: Image.Image, **options: Any) -> bytes:
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    heif.register_heif_opener()  # for writing; Sightline reads without it
    return encode(image, "HEIF", **options)


@pytest.mark.installed
def test_heic_is_read_where_pillow_heif_is_installed() -> None:
    image = draw_scene(1, 96, 64)
    data = encode_heic(image, quality=90)
    header = inspect_image(data)
    assert (header.format, header.mode, header.width, header.height, header.frames) == ("HEIF", "RGB", 96, 64, 1)
    pixels = PreprocessingSpec(64, 96).decode(data).astype(int)
    assert np.abs(pixels - np.asarray(image)).mean() < 12
    with pytest.raises(ImageError, match=r"^truncated$"):
        PreprocessingSpec().decode(data[: len(data) // 2])


@pytest.mark.installed
def test_heic_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 32), "white")
    image.paste("black", (0, 0, 16, 32))
    data = encode_heic(image, quality=-1, exif=exif.tobytes())
    assert (inspect_image(data).width, inspect_image(data).height, inspect_image(data).orientation) == (32, 64, 1)
    pixels = PreprocessingSpec(64, 32).decode(data)
    assert pixels[:12].max() < 40  # the left edge is on top
    assert pixels[20:].min() > 215
