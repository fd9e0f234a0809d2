"""The frames that streams in an AVIF or HEIF hold are measured, whatever the container states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hostile_boxes
import hostile_images
from hostile_boxes import avif_of_tracks, heic, hevc_settings, track
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec, box_limits, inspect_image
from sightline.preprocessing.stream_limits import StreamDemand, measure_streams
from synthetic_images import encode

LARGE = hevc_settings(16_384, 16_384)


@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"subsampling": "4:0:0"}, {"speed": 10}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_ordinary_avif_has_the_pixels_that_it_states(mode: str, options: dict[str, Any]) -> None:
    data = encode(Image.new(mode, (133, 70)), "AVIF", **options)
    assert measure_streams(data) == StreamDemand(133 * 70, 0)


def test_the_frames_that_an_animation_keeps_count() -> None:
    few, many = (measure_streams(hostile_images.animation("AVIF", count, 16)) for count in (3, 30))
    assert few.pixels == many.pixels == 256
    assert 0 < few.kept_bytes < many.kept_bytes == 8 * 256 * 5, "8 frames of 4:2:0, and of their alpha"


def test_the_limit_is_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hostile_boxes.avif_of_stream(16_384, 16_384)
    assert inspect_image(data).width == 64
    reason = "64x64 pixels that take 5,100 MB to decode, limit 1,050: save it as PNG or TIFF, or raise max_megapixels"
    with pytest.raises(ImageError, match=reason):
        PreprocessingSpec(8, 8).decode(data)
    assert PreprocessingSpec(8, 8).decode(hostile_boxes.avif_of_other_size(300)).shape == (8, 8, 3)
    monkeypatch.setattr(box_limits, "_MAX_MEGAPIXEL_BYTES", 1 << 20)
    with pytest.raises(ImageError, match="64x64 pixels that take"):
        PreprocessingSpec(8, 8, max_megapixels=1).decode(hostile_boxes.avif_of_other_size(300))


@pytest.mark.parametrize("data", [
    heic(settings=LARGE), heic(content=len(LARGE).to_bytes(4, "big") + LARGE),
    heic(b"hev1", content=len(LARGE).to_bytes(4, "big") + LARGE),
    heic(b"grid", content=b"\0\1\1\1" + (16_384).to_bytes(4, "big") * 2),
    heic(b"grid", content=b"\0\0\1\1" + (16_384).to_bytes(2, "big") * 2),
    heic(b"iovl", content=bytes(10) + (16_384).to_bytes(2, "big") * 2),
])  # fmt: skip
def test_a_heic_has_the_pixels_of_its_parameter_sets_or_its_canvas(data: bytes) -> None:
    assert measure_streams(data).pixels == 16_384**2
    with pytest.raises(ImageError, match="64x64 pixels that take 5,100 MB"):
        box_limits.check_memory("HEIF", data, 64, 64, 0, 50)


def test_an_ordinary_heic_passes() -> None:
    data = heic(settings=hevc_settings(4032, 3024), content=b"\0\0\0\5\x26\1\xaf\0\0")
    assert measure_streams(data) == StreamDemand(4032 * 3024, 0)
    box_limits.check_memory("HEIF", data, 4032, 3024, 0, 50)
    frames = heic(settings=hevc_settings(4032, 3024), content=b"\0\0\0\5\x26\1\xaf\0\0" * 20)
    with pytest.raises(ImageError, match="4032x3024 pixels that take 1,2"):
        box_limits.check_memory("HEIF", frames, 4032, 3024, 0, 50)


@pytest.mark.parametrize(("data", "reason"), [
    (heic(b"jpeg"), "an item coded as jpeg, where HEVC or AV1 can be read"),
    (heic(b"unci"), "an item coded as unci"),
])  # fmt: skip
def test_another_codec_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        box_limits.check_memory("HEIF", data, 64, 64, 0, 50)


@pytest.mark.parametrize("more", [[], [(b"cdsc", 3, 2)], [(b"thmb", 3, 2)], [(b"auxl", 3, 2)]])
@pytest.mark.parametrize("codec", [b"jpeg", b"avc1", b"j2k1"])
def test_a_thumbnail_may_be_in_any_codec(codec: bytes, more: list[tuple[bytes, int, int]]) -> None:
    """Cameras store a JPEG beside the HEVC."""
    data = heic(settings=hevc_settings(64, 64), other=codec, references=[(b"thmb", 2, 1), *more])
    assert measure_streams(data) == StreamDemand(64 * 64, 0)
    box_limits.check_memory("HEIF", data, 64, 64, 0, 50)


@pytest.mark.parametrize(("references", "primary"), [
    ([], 1), ([(b"cdsc", 2, 1)], 1), ([(b"dimg", 1, 2)], 1), ([(b"auxl", 2, 1)], 1), ([(b"thmb", 1, 2)], 1),
    ([(b"thmb", 2, 1)], 2), ([(b"thmb", 2, 1), (b"dimg", 1, 2)], 1), ([(b"auxl", 2, 1), (b"thmb", 2, 1)], 1),
    ([(b"thmb", 2, 2)], 1), ([(b"thmb", 2, 1), (b"base", 1, 2)], 1),
])  # fmt: skip
def test_an_item_that_may_be_decoded_has_a_codec_that_is_limited(
    references: list[tuple[bytes, int, int]], primary: int
) -> None:
    data = heic(settings=hevc_settings(64, 64), other=b"unci", references=references, primary=primary)
    with pytest.raises(ImageError, match="an item coded as unci, where HEVC or AV1 can be read"):
        measure_streams(data)


def test_an_item_of_two_codecs_is_refused() -> None:
    data = heic(settings=hevc_settings(64, 64), other=b"unci")
    assert data.count(b"\0\2\0\0unci") == 1
    with pytest.raises(ImageError, match="item 1 is described twice, with different codecs"):
        measure_streams(data.replace(b"\0\2\0\0unci", b"\0\1\0\0unci"))


def test_a_large_thumbnail_in_hevc_counts() -> None:
    data = heic(settings=LARGE, other=b"hvc1", references=[(b"thmb", 2, 1)])
    with pytest.raises(ImageError, match="64x64 pixels that take 5,100 MB"):
        box_limits.check_memory("HEIF", data, 64, 64, 0, 50)


@pytest.mark.parametrize(("tracks", "reason"), [
    ([track(b"mp4a", 64_000)], "more than 1,000 descriptions of frames"),
    ([track(b"mp4a", 600)] * 2, "more than 1,000 descriptions of frames"),
    ([track(b"hvc1")] * 2_000, "more than 400,000 frames"),
    ([track(b"av01", samples=250_000)] * 2, "more than 400,000 frames"),
    ([track(b"avc1")], "an item coded as avc1"),
])  # fmt: skip
def test_the_tracks_of_a_file_are_limited_together(tracks: list[bytes], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        measure_streams(avif_of_tracks(*tracks))


def test_the_bytes_that_tracks_refer_to_are_limited_together() -> None:
    one, two = (avif_of_tracks(*[track(b"av01", samples=100_000)] * count, size=60_000) for count in (1, 2))
    assert measure_streams(one).pixels >= 64 * 64
    with pytest.raises(ImageError, match=r"more than 12.,... bytes of items and frames, which no ordinary file has"):
        measure_streams(two)


def test_the_samples_of_other_tracks_are_not_read() -> None:
    """Sound, as beside an animation."""
    assert measure_streams(avif_of_tracks(*[track(b"mp4a", 2)] * 400)) == StreamDemand(64 * 64, 0)


def test_a_minimized_header_is_refused() -> None:
    with pytest.raises(ImageError, match="a minimized header, which cannot be read"):
        inspect_image(hostile_boxes.small_avif() + hostile_boxes.box(b"mini", b""))


@pytest.mark.parametrize("make", [
    hostile_boxes.small_avif, lambda: hostile_images.animation("AVIF", 3, 16), lambda: heic(settings=LARGE),
], ids=["avif", "animation", "heic"])  # fmt: skip
@given(at=st.integers(0, 1 << 16), value=st.binary(min_size=1, max_size=4))
def test_damage_raises_nothing_but_an_image_error(make: Callable[[], bytes], at: int, value: bytes) -> None:
    data = make()
    at %= len(data)
    for damaged in (data[:at] + value + data[at + len(value) :], data[:at]):
        try:
            assert measure_streams(damaged).pixels >= 0
        except ImageError:
            continue
