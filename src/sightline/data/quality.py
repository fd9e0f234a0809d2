"""Findings on single images: unreadable or misnamed files, unusual formats and sizes, exposure and blur."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from sightline.data.finding import Finding, listed
from sightline.data.sample_range import NO_RANGE, SampleRange
from sightline.data.sources.folder import CLASSLESS
from sightline.data.survey import Look, Survey
from sightline.preprocess import Header
from sightline.records import Index, Picture

SUFFIXES = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"}, "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"}, "WEBP": {".webp"}, "GIF": {".gif"}, "BMP": {".bmp", ".dib"}, "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}, "JPEG2000": {".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"},
    "AVIF": {".avif", ".avifs", ".heif"}, "HEIF": {".heic", ".heif", ".hif", ".heics", ".heifs"},
}  # fmt: skip
ODD_MODES = {
    "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV",
    "RGBA": "alpha", "LA": "alpha", "PA": "alpha", "La": "alpha", "RGBa": "alpha", "RGBX": "four channels",
}  # fmt: skip
_PAGES = "the first, or the one set by --set picture.page=N. Save them as separate files if they matter."
DARK, BRIGHT = 48, 215  # gray levels: 95% of the pixels are darker, or brighter, than this
BLURRED = 0.77  # least value of `survey.blur`; docs/doctor.md explains the choice
TINY = 16  # pixels
SMALLER, LARGER = 4, 8  # factors relative to the median side
ASPECT = 3.0  # least ratio of the long to the short side; at least half of this times the median ratio


def findings(index: Index, survey: Survey, values: SampleRange = NO_RANGE) -> list[Finding]:
    """Return the findings on single files and images; `values` is the sample range of images of more than 8 bits."""
    pairs = [(p, survey.looks[p.sha256]) for p in index.pictures]
    told = {r.path for r in index.remarks}  # these have findings of their own kinds
    classless = [r for r in index.rejects if r.reason in CLASSLESS]
    bad = [(r.path, r.reason) for r in index.rejects if r.reason not in CLASSLESS and r.path not in told]
    bad += [(p.path, look.error) for p, look in pairs if look.error]
    bad.sort()
    seen = [(p, look) for p, look in pairs if not look.error]
    files = [(p, look.header) for p, look in seen if look.header is not None]
    return [
        *listed(
            "unreadable", "warning", ("file cannot be read", "files cannot be read"),
            "Replace or remove them; training ignores them.",
            [path for path, _ in bad], [reason for _, reason in bad],
        ),
        *listed(
            "stray-pictures", "warning", ("image has no class", "images have no class"),
            "Move or rename them like the others; training ignores them.",
            [r.path for r in classless], [r.reason for r in classless],
        ),
        *listed(
            "not-pictures", "note", ("file is not an image", "files are not images"),
            "Nothing to do: they are ignored.", index.others,
        ),
        *_files(files),
        *_deep(seen, values),
        *_sizes([p for p, _ in seen]),
        *_levels(seen),
    ]  # fmt: skip


def _files(files: Sequence[tuple[Picture, Header]]) -> list[Finding]:
    def told(say: Callable[[Picture, Header], str | None]) -> tuple[list[str], list[str]]:
        found = [(p.path, said) for p, header in files if (said := say(p, header))]
        return [path for path, _ in found], [said for _, said in found]

    turned = told(lambda _, h: f"orientation {h.orientation}" if h.orientation != 1 else None)
    share = len(turned[0]) / max(1, len(files))
    return [
        *listed(
            "wrong-extension", "warning",
            ("file has the extension of another format", "files have the extension of another format"),
            "Sightline detects the format from the content; rename them for programs that rely on the extension.",
            *told(_extension),
        ),
        *listed(
            "exif-rotated", "note",
            (f"image ({share:.0%}) is stored rotated, with an EXIF orientation tag",
             f"images ({share:.0%}) are stored rotated, with an EXIF orientation tag"),
            "Sightline applies the tag; programs that ignore it will see these images rotated.", *turned,
        ),
        *listed(
            "odd-modes", "note", ("image is not plain color or grayscale", "images are not plain color or grayscale"),
            "They are converted (see docs/data.md): make sure that no class is stored differently from the others.",
            *told(lambda _, h: ODD_MODES.get(h.mode)),
        ),
        *listed(
            "animated", "note", ("file has several frames", "files have several frames"),
            f"Only one frame of each is used: {_PAGES}",
            *told(lambda _, h: f"{h.frames} frames" if h.frames > 1 and h.format != "TIFF" else None),
        ),
        *listed(
            "multi-page", "warning", ("TIFF file has several pages", "TIFF files have several pages"),
            f"Only one page of each is used: {_PAGES}",
            *told(lambda _, h: f"{h.frames} pages" if h.frames > 1 and h.format == "TIFF" else None),
        ),
    ]  # fmt: skip


def _deep(seen: Sequence[tuple[Picture, Look]], values: SampleRange) -> list[Finding]:
    kinds = {"F": "floating point", "I": "32-bit"}
    found = [(p.path, kinds.get(look.header.mode, "16-bit")) for p, look in seen if p.deep and look.header is not None]
    more = f"more than 8 bits per sample, {values.text}"
    return listed(
        "high-bit-depth", "note",
        (f"image has {more}", f"images have {more}"),
        "Values outside the range are clipped. Training stores the range with the model; change it with "
        "--set picture.range=[LOW,HIGH].",
        [path for path, _ in found], [kind for _, kind in found],
    )  # fmt: skip


def _extension(picture: Picture, header: Header) -> str | None:
    suffix = PurePosixPath(picture.path).suffix.lower()
    right = SUFFIXES.get(header.format)
    return f"is {header.format}" if right is not None and suffix not in right else None


def _sizes(pictures: Sequence[Picture]) -> list[Finding]:
    if not pictures:
        return []
    side = statistics.median(min(p.width, p.height) for p in pictures)
    shape = statistics.median(_aspect(p) for p in pictures)
    sizes = [p for p in pictures if _extreme(min(p.width, p.height), side) or max(p.width, p.height) > LARGER * side]
    aspects = [p for p in pictures if _aspect(p) > max(ASPECT, ASPECT / 2 * shape)]
    return [
        *listed(
            "extreme-size", "warning",
            (f"image is far smaller or larger than the median of {side:g} pixels",
             f"images are far smaller or larger than the median of {side:g} pixels"),
            "Small images show little detail when enlarged: check whether they belong in the data set.",
            [p.path for p in sizes], [f"{p.width}x{p.height}" for p in sizes],
        ),
        *listed(
            "extreme-aspect", "warning",
            (f"image has an aspect ratio above {ASPECT:g}",
             f"images have an aspect ratio above {ASPECT:g}"),
            "Stretching distorts them: crop them, or train with --set picture.resize=pad.",
            [p.path for p in aspects], [f"{p.width}x{p.height}" for p in aspects],
        ),
    ]  # fmt: skip


def _extreme(side: int, median: float) -> bool:
    return side < median / SMALLER or (side < TINY <= median)


def _aspect(picture: Picture) -> float:
    return max(picture.width, picture.height) / max(1, min(picture.width, picture.height))


def _levels(seen: Sequence[tuple[Picture, Look]]) -> list[Finding]:
    blank = [p.path for p, look in seen if look.blank]
    rest = [(p.path, look) for p, look in seen if not look.blank]
    blurred = [(path, f"blur {look.blur:.2f}") for path, look in rest if look.blur >= BLURRED]
    look_at = "Review them: keep them only if images in production will look like this."
    return [
        *listed(
            "blank", "warning", ("image is blank: a single tone", "images are blank: a single tone"),
            "A model can learn nothing from them but class frequencies: drop them (--fix proposes it).", blank,
        ),
        *listed(
            "dark", "warning", ("image is very dark", "images are very dark"), look_at,
            [path for path, look in rest if look.levels[3] < DARK],
        ),
        *listed(
            "bright", "warning", ("image is very bright", "images are very bright"), look_at,
            [path for path, look in rest if look.levels[1] > BRIGHT],
        ),
        *listed(
            "blurred", "warning",
            ("image is blurred, even at 128 pixels", "images are blurred, even at 128 pixels"), look_at,
            [path for path, _ in blurred], [said for _, said in blurred],
        ),
    ]  # fmt: skip
