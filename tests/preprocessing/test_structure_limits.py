"""Files made to overload a decoder are refused by their structure, or decoded within limits of time and memory."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import hostile_images
from hostile_images import GIB, HOSTILE, LARGE, PAGES, SECONDS, encode_blank
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec, counts, inspect_image, structure_limits

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"
DECODED = {
    "JPEG of 12 scans, 49 megapixels", "TIFF of 20000 directories", "TIFF of 400000 directories",
    "TIFF whose directories are a ring", "GIF of 500000 frames", "PNG of 7000x7000", "PNG of 65535x740",
    "PNG of 740x65535", "PPM of 8 MB of text", "PGM of 16 megapixels with 255 levels", "BMP of 8 MB in runs",
    "JPEG 2000 of 65025 tiles", "WebP of 7 million chunks", "WebP of a million frames", "WebP of 60 MB of XMP",
    "WebP of 60 MB of color profile", "WebP of 3000 groups of codes",
}  # fmt: skip
REFUSED_LARGE = {"AVIF of 81 megapixels that states 64x64", "WebP of RGBA, 49 megapixels and 63 MB"}
DECODED_PAGES = {
    "page 400000 of a TIFF", "page 1000 of a GIF", "page 900 of a GIF of a megapixel outside", "page 10000 of a WebP",
    "page 200 of a PNG", "page 200 of an AVIF",
}  # fmt: skip
FEW = {
    "JPEG of 2000 scans behind a comment", "TIFF of huge tiles", "TIFF of long tiles",
    "TIFF of 2 million resolutions", "TIFF of 4000 tags in one place", "TIFF of 20000 directories",
    "TIFF whose directories are a ring", "TIFF of 65535 strips of the same bytes",
    "TIFF of 62 strips of the same 94 scans", "TIFF of 4096 long tiles of the same bytes",
    "GIF of 20 MB of stray bytes", "PPM of 5 MB of comment",
    "JPEG 2000 of precincts of a pixel", "JPEG 2000 of 4x4 blocks, 49 megapixels", "AVIF of 60000 items",
    "WebP of 65536 groups of codes behind a transform", "WebP of 65536 groups of codes for alpha",
    "WebP of 3000 groups of codes", "AVIF of 268 megapixels that states 64x64", "AVIF of 40 megapixels in 9 frames",
    "AVIF of a track with 64000 descriptions", "AVIF of 2000 tracks of the same bytes",
}  # fmt: skip
"""Those that are made and decoded at once; the others are slow."""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited, and measured, as Linux does")
@pytest.mark.parametrize("is_quick", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["few", "many"])
def test_every_hostile_file_is_refused_or_decoded_in_time_and_memory(tmp_path: Path, is_quick: bool) -> None:
    check_all(tmp_path, {name: (1, make) for name, make in HOSTILE.items() if (name in FEW) == is_quick}, DECODED)


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in LARGE])
def test_the_most_pixels_and_bytes_are_decoded_in_time_and_memory(tmp_path: Path, name: str) -> None:
    check_all(tmp_path, {name: (1, LARGE[name])}, LARGE.keys() - REFUSED_LARGE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_every_page_is_refused_or_decoded_in_time_and_memory(tmp_path: Path) -> None:
    check_all(tmp_path, PAGES, DECODED_PAGES)


@pytest.mark.parametrize(
    ("what", "files", "decoded"),
    [
        ("images made to exhaust time or memory", HOSTILE, DECODED),
        ("images of 49 megapixels, or of noise up to 62 MB, and an AVIF of 81 that declares fewer", LARGE,
         LARGE.keys() - REFUSED_LARGE),
        ("late pages of TIFF, GIF, WebP, PNG and AVIF", PAGES, DECODED_PAGES),
    ],
    ids=["hostile", "large", "pages"],
)  # fmt: skip
def test_the_page_states_how_many_were_tried(what: str, files: Collection[str], decoded: Collection[str]) -> None:
    assert set(files) >= set(decoded)
    _, row = SECURITY.read_text(encoding="utf-8").split(f"| {what} | ")
    tried, outcome = row.split(" | ")[:2]
    assert int(tried.split()[0]) == len(files)
    assert outcome == f"{len(decoded)} decoded, {len(files) - len(decoded)} refused"


def test_the_page_names_images_that_were_tried() -> None:
    table = SECURITY.read_text(encoding="utf-8").split("## Images, one by one")[1].split("\n## ")[0]
    heading, *rows = re.findall(r"(?m)^These are (\d+) of the images made |^\| ([A-Z].*?)(?: \+)? \|", table)
    names = {name for _, name in rows}
    together = "WebP of 65536 groups of codes, for colors, behind a transform, or for alpha"
    assert names - HOSTILE.keys() == {together}, "one row for three files"
    assert int(heading[0]) == len(rows) + 2


def check_all(folder: Path, files: Mapping[str, tuple[int, Callable[[], bytes]]], decoded: Collection[str]) -> None:
    """Read a page of each file in a process of its own, and compare what is decoded with those named `decoded`."""
    lines = []
    for number, (page, make) in enumerate(files.values()):
        (folder / f"{number}.bin").write_bytes(make())
        assert (folder / f"{number}.bin").stat().st_size < 64 << 20
        lines.append(f"{page} {folder / f'{number}.bin'}\n")
    done = subprocess.run(
        [sys.executable, hostile_images.__file__, folder],
        input="".join(lines), capture_output=True, text=True, check=True,
    )  # fmt: skip
    ended: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for name, one in zip(files, ended, strict=True):
        sys.stdout.write(f"{name}: {one}\n")
        assert one["code"] == 0, name
        assert (one["reason"] == "") == (name in decoded), f"{name}: {one['reason']}"
        assert one["seconds"] < 2 * SECONDS, f"{name}: checked and decoded in {one['seconds']:.1f} s"
        assert one["bytes"] < GIB, name


def test_the_reason_of_a_rejection_is_reported() -> None:
    def reason(data: bytes) -> str:
        with pytest.raises(ImageError) as error:
            inspect_image(data)
        return str(error.value)

    assert reason(hostile_images.many_scans(8, 400)) == "more than 300 scans, which no ordinary file has"
    assert reason(HOSTILE["TIFF of huge tiles"]()) == "tiles of 46000x46000 pixels for an image of 10x10"
    assert reason(HOSTILE["TIFF of 65535 strips of the same bytes"]()) == (
        "strips or tiles of 65,535,131,070 bytes in a file of 1,524,404"
    )
    assert reason(HOSTILE["PNG of 1x49000000"]()) == "too long: 1x49000000 pixels, limit 65535 on each side"
    assert reason(b"P2 9 9 255 " + b"1 " * (5 << 20)) == (
        "more than 8 MiB of numbers as text, which take too long to decode: save it as binary"
    )


def test_a_few_strips_may_have_the_same_bytes() -> None:
    strip = b"\x81\0"  # 128 zeros in PackBits
    assert not PreprocessingSpec(8, 8).decode(hostile_images.shared_strips((128, 64), 1, strip, 32_773)).any()
    data = hostile_images.strips_of_nothing()
    for lengths in (struct.pack("<HHII", 280, 4, 65_535, 0), struct.pack("<HHII", 279, 4, 65_535, 1 << 31)):
        known = data.index(struct.pack("<HHI", 279, 4, 65_535))
        with pytest.raises(ImageError, match="strips or tiles of"):  # libtiff would take the length of the file
            inspect_image(data[:known] + lengths + data[known + 12 :])


def test_frames_are_counted_up_to_a_limit() -> None:
    assert inspect_image(hostile_images.chained(3)).frames == 3
    assert inspect_image(hostile_images.gif(3)).frames == 3
    assert inspect_image(hostile_images.gif(20_000)).frames == counts.MAX_COUNTED_FRAMES
    assert inspect_image(hostile_images.chained(20_000)).frames == counts.MAX_COUNTED_FRAMES


def test_a_page_that_is_read_is_checked_too() -> None:
    good, bad = hostile_images.gray(4, 4), hostile_images.gray(1, 1 << 20, 1 << 20, 1)
    data = hostile_images.tiff(good, bad)
    assert inspect_image(data).frames == 2
    with pytest.raises(ImageError, match="more than 65,536 strips or tiles"):
        PreprocessingSpec(4, 4, page=2).decode(data)
    with pytest.raises(ImageError, match="has no page 3, only 2"):
        PreprocessingSpec(4, 4, page=3).decode(data)


def test_frames_before_the_one_that_is_read_are_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes them all: 252 bytes took 14 s and 1.2 GB before the size was checked."""
    data = bytearray(hostile_images.gif(3))
    assert PreprocessingSpec(4, 4, page=3).decode(bytes(data)).shape == (4, 4, 3)
    data[6:10] = struct.pack("<HH", 17_000, 17_000)  # the canvas
    for read in (PreprocessingSpec(4, 4, page=2).decode, lambda d: inspect_image(d, 2)):
        with pytest.raises(ImageError, match=r"too large: 17000x17000 pixels, limit 50 megapixels"):
            read(bytes(data))
    data[6:10] = struct.pack("<HH", 7_000, 7_000)
    monkeypatch.setattr(structure_limits, "_MAX_FRAME_PIXELS", 100_000_000)
    with pytest.raises(ImageError, match="page 3 follows 2 pages of 7000x7000 pixels, too many to decode"):
        PreprocessingSpec(4, 4, page=3).decode(bytes(data))


def test_large_tags_of_ordinary_files_pass() -> None:
    """A panorama's metadata, a profile in pieces, the previews that a camera appends."""
    photo = encode_blank((64, 48), "JPEG", "RGB", "red")
    extended = b"\xff\xe1" + struct.pack(">H", 65_000) + b"http://ns.adobe.com/xmp/extension/\0".ljust(64_998, b"x")
    profile = b"\xff\xe2" + struct.pack(">H", 65_000) + b"ICC_PROFILE\0".ljust(64_998, b"x")
    for data in (photo[:2] + extended * 200 + profile * 20 + photo[2:], photo + photo * 40):
        assert inspect_image(data).width == 64
    stream = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(stream, "TIFF", compression="tiff_lzw", strip_size=1)  # a strip a row
    assert inspect_image(stream.getvalue()).height == 2000
