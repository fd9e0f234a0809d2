"""Findings on single pictures: files that are not what they seem, odd formats and sizes, darkness, blur."""

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
_PAGES = "the first, or the one in --set picture.page=N. Save them apart if they matter."
DARK, BRIGHT = 48, 215  # grey levels: nearly all is darker, or lighter, than this
BLURRED = 0.77  # of `survey.blur`; docs/doctor.md says how it was chosen
TINY = 16  # pixels
SMALLER, LARGER = 4, 8  # times than the median side
ASPECT = 3.0  # long side over short side, and more than this times the median's half


def findings(index: Index, survey: Survey, values: SampleRange = NO_RANGE) -> list[Finding]:
    """Return the findings on single files and images; `values`: the range in which those of over 8 bits are read."""
    pairs = [(p, survey.looks[p.sha256]) for p in index.pictures]
    told = {r.path for r in index.remarks}  # under their own kinds
    classless = [r for r in index.rejects if r.reason in CLASSLESS]
    bad = [(r.path, r.reason) for r in index.rejects if r.reason not in CLASSLESS and r.path not in told]
    bad += [(p.path, look.error) for p, look in pairs if look.error]
    bad.sort()
    seen = [(p, look) for p, look in pairs if not look.error]
    files = [(p, look.header) for p, look in seen if look.header is not None]
    return [
        *listed(
            "unreadable", "warning", ("file cannot be read", "files cannot be read"),
            "Replace them or remove them; training leaves them out.",
            [path for path, _ in bad], [reason for _, reason in bad],
        ),
        *listed(
            "stray-pictures", "warning", ("image has no class", "images have no class"),
            "Move or rename them as the others are; training leaves them out.",
            [r.path for r in classless], [r.reason for r in classless],
        ),
        *listed(
            "not-pictures", "note", ("file is no image", "files are no images"),
            "Nothing to do: they are passed over.", index.others,
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
            ("file is named as another format than it holds", "files are named as another format than they hold"),
            "Sightline goes by the content; rename them for programs that go by the name.", *told(_extension),
        ),
        *listed(
            "exif-rotated", "note",
            (f"image ({share:.0%}) is stored turned, with an orientation to undo it",
             f"images ({share:.0%}) are stored turned, with an orientation to undo it"),
            "Sightline turns them; a program that ignores the tag sees them lying. Keep it in mind elsewhere.", *turned,
        ),
        *listed(
            "odd-modes", "note", ("image is not plain color or grayscale", "images are not plain color or grayscale"),
            "They are converted (docs/data.md says how): make sure that no class is stored otherwise than the others.",
            *told(lambda _, h: ODD_MODES.get(h.mode)),
        ),
        *listed(
            "animated", "note", ("file holds several frames", "files hold several frames"),
            f"One frame of each is used: {_PAGES}",
            *told(lambda _, h: f"{h.frames} frames" if h.frames > 1 and h.format != "TIFF" else None),
        ),
        *listed(
            "multi-page", "warning", ("TIFF file holds several pages", "TIFF files hold several pages"),
            f"One page of each is used: {_PAGES}",
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
        "Values beyond that range are clipped. Training stores the range with the model; to change it: "
        "--set picture.range=[LOW,HIGH].",
        [path for path, _ in found], [kind for _, kind in found],
    )  # fmt: skip


def _extension(picture: Picture, header: Header) -> str | None:
    suffix = PurePosixPath(picture.path).suffix.lower()
    right = SUFFIXES.get(header.format)
    return f"holds {header.format}" if right is not None and suffix not in right else None


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
            "Small ones show little once enlarged: look whether they belong here.",
            [p.path for p in sizes], [f"{p.width}x{p.height}" for p in sizes],
        ),
        *listed(
            "extreme-aspect", "warning",
            (f"image is more than {ASPECT:g} times as long as wide",
             f"images are more than {ASPECT:g} times as long as wide"),
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
    look_at = "Look at them: keep them only if pictures in use will be like that."
    return [
        *listed(
            "blank", "warning", ("image shows nothing: one even tone", "images show nothing: one even tone"),
            "They teach nothing but their class's share: drop them (--fix proposes it).", blank,
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
            ("image is blurred, even when seen small", "images are blurred, even when seen small"), look_at,
            [path for path, _ in blurred], [said for _, said in blurred],
        ),
    ]  # fmt: skip
