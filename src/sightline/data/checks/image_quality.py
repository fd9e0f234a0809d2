"""Findings on single images: unreadable or misnamed files, unusual formats and sizes, exposure and blur."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from sightline.data.checks.finding import Finding, image_finding
from sightline.data.checks.image_stats import DatasetStats, ImageStats
from sightline.data.sample_range import NO_RANGE, SampleRange
from sightline.data.sources.filenames import holds_unread_images, is_placeholder
from sightline.data.sources.folder import NO_CLASS_REASONS
from sightline.data.types import ImageRecord, Index
from sightline.preprocessing import ImageHeader

EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"}, "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"}, "WEBP": {".webp"}, "GIF": {".gif"}, "BMP": {".bmp", ".dib"}, "TIFF": {".tif", ".tiff"},
    "PPM": {".ppm", ".pgm", ".pbm", ".pnm", ".pfm"}, "JPEG2000": {".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"},
    "AVIF": {".avif", ".avifs", ".heif"}, "HEIF": {".heic", ".heif", ".hif", ".heics", ".heifs"},
}  # fmt: skip
UNUSUAL_MODES = {
    "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "LAB", "HSV": "HSV",
    "RGBA": "alpha", "LA": "alpha", "PA": "alpha", "La": "alpha", "RGBa": "alpha", "RGBX": "four channels",
}  # fmt: skip
_PAGE_ADVICE = "the first, or the one set by --set input.page=N. Save them as separate files if they matter."
MAX_DARK_LEVEL, MIN_BRIGHT_LEVEL = 48, 215  # gray levels: 95% of the pixels are darker, or brighter, than this
MIN_BLUR = 0.77  # least value of `image_stats.measure_blur`; docs/doctor.md explains the choice
MIN_SIDE = 16  # pixels
MIN_SIDE_FACTOR, MAX_SIDE_FACTOR = 4, 8  # factors relative to the median side
MAX_ASPECT_RATIO = 3.0  # least ratio of the long to the short side; at least half of this times the median ratio


def image_findings(index: Index, stats: DatasetStats, sample_range: SampleRange = NO_RANGE) -> list[Finding]:
    """Return the findings on single files and images.

    `sample_range` is the sample range of images of more than 8 bits.
    """
    pairs = [(p, stats.images[p.sha256]) for p in index.images]
    remarked_paths = {r.path for r in index.notes}  # have findings of their own kinds
    rejected = [(r.path, r.reason) for r in index.unreadable]
    classless = [(path, reason) for path, reason in rejected if reason in NO_CLASS_REASONS]
    unreadable = [row for row in rejected if row[1] not in NO_CLASS_REASONS and row[0] not in remarked_paths]
    unreadable += [(p.path, look.error) for p, look in pairs if look.error]
    unreadable.sort()
    readable = [(p, look) for p, look in pairs if not look.error]
    files = [(p, look.header) for p, look in readable if look.header is not None]
    return [
        *image_finding(
            "unreadable", "warning", ("file cannot be read", "files cannot be read"),
            "Replace or remove them; training ignores them.", unreadable,
        ),
        *image_finding(
            "unlabeled-images", "warning", ("image has no class", "images have no class"),
            "Move or rename them like the others; training ignores them.", classless,
        ),
        *image_finding(
            "not-images", "note", ("file is not an image", "files are not images"),
            "Nothing to do: they are ignored.",
            [path for path in index.other_files if not (is_placeholder(path) or holds_unread_images(path))],
        ),
        *_file_findings(files),
        *_bit_depth_findings(readable, sample_range),
        *_size_findings([p for p, _ in readable]),
        *_exposure_findings([(p, look) for p, look in readable if not p.is_kept]),
    ]  # fmt: skip


def _file_findings(files: Sequence[tuple[ImageRecord, ImageHeader]]) -> list[Finding]:
    def matching(describe: Callable[[ImageRecord, ImageHeader], str | None]) -> list[tuple[str, str]]:
        return [(p.path, reason) for p, header in files if (reason := describe(p, header))]

    rotated = matching(lambda _, h: f"orientation {h.orientation}" if h.orientation != 1 else None)
    fraction = len(rotated) / max(1, len(files))
    return [
        *image_finding(
            "wrong-extension", "warning",
            ("file has the extension of another format", "files have the extension of another format"),
            "Sightline detects the format from the content; rename them for programs that rely on the extension.",
            matching(_wrong_extension),
        ),
        *image_finding(
            "exif-rotated", "note",
            (f"image ({fraction:.0%}) is stored rotated, with an EXIF orientation tag",
             f"images ({fraction:.0%}) are stored rotated, with an EXIF orientation tag"),
            "Sightline applies the tag; programs that ignore it will see these images rotated.", rotated,
        ),
        *image_finding(
            "odd-modes", "note", ("image is not plain color or grayscale", "images are not plain color or grayscale"),
            "They are converted (see docs/data.md): make sure that no class is stored differently from the others.",
            matching(lambda _, h: UNUSUAL_MODES.get(h.mode)),
        ),
        *image_finding(
            "animated", "note", ("file has several frames", "files have several frames"),
            f"Only one frame of each is used: {_PAGE_ADVICE}",
            matching(lambda _, h: f"{h.frames} frames" if h.frames > 1 and h.format != "TIFF" else None),
        ),
        *image_finding(
            "multi-page", "warning", ("TIFF file has several pages", "TIFF files have several pages"),
            f"Only one page of each is used: {_PAGE_ADVICE}",
            matching(lambda _, h: f"{h.frames} pages" if h.frames > 1 and h.format == "TIFF" else None),
        ),
    ]  # fmt: skip


def _bit_depth_findings(readable: Sequence[tuple[ImageRecord, ImageStats]], sample_range: SampleRange) -> list[Finding]:
    kinds = {"F": "floating point", "I": "32-bit"}
    deep_images = [
        (p.path, kinds.get(look.header.mode, "16-bit"))
        for p, look in readable
        if p.high_bit_depth and look.header is not None
    ]
    description = f"more than 8 bits per sample, {sample_range.description}"
    return image_finding(
        "high-bit-depth", "note",
        (f"image has {description}", f"images have {description}"),
        "Values outside the range are clipped. Training stores the range with the model; change it with "
        "--set input.value_range=[LOW,HIGH].",
        deep_images,
    )  # fmt: skip


def _wrong_extension(image: ImageRecord, header: ImageHeader) -> str | None:
    suffix = PurePosixPath(image.path).suffix.lower()
    expected = EXTENSIONS.get(header.format)
    if not suffix or expected is None:  # table rows have no extension
        return None
    return None if suffix in expected else f"is {header.format}"


def _size_findings(images: Sequence[ImageRecord]) -> list[Finding]:
    if not images:
        return []
    side = statistics.median(min(p.width, p.height) for p in images)
    shape = statistics.median(_aspect_ratio(p) for p in images)
    questioned = [p for p in images if not p.is_kept]
    sizes = [
        p
        for p in questioned
        if (shorter := min(p.width, p.height)) < side / MIN_SIDE_FACTOR
        or shorter < MIN_SIDE <= side
        or max(p.width, p.height) > MAX_SIDE_FACTOR * side
    ]
    aspects = [p for p in questioned if _aspect_ratio(p) > max(MAX_ASPECT_RATIO, MAX_ASPECT_RATIO / 2 * shape)]
    return [
        *image_finding(
            "extreme-size", "warning",
            (f"image is far smaller or larger than the median of {side:g} pixels",
             f"images are far smaller or larger than the median of {side:g} pixels"),
            "Small images show little detail when enlarged: check whether they belong in the data set.",
            [(p.path, f"{p.width}x{p.height}") for p in sizes],
        ),
        *image_finding(
            "extreme-aspect", "warning",
            (f"image has an aspect ratio above {MAX_ASPECT_RATIO:g}",
             f"images have an aspect ratio above {MAX_ASPECT_RATIO:g}"),
            "Stretching distorts them: crop them, or train with --set input.resize=pad.",
            [(p.path, f"{p.width}x{p.height}") for p in aspects],
        ),
    ]  # fmt: skip


def _aspect_ratio(image: ImageRecord) -> float:
    return max(image.width, image.height) / max(1, min(image.width, image.height))


def _exposure_findings(readable: Sequence[tuple[ImageRecord, ImageStats]]) -> list[Finding]:
    blank = [p.path for p, look in readable if look.is_blank]
    nonblank = [(p.path, look) for p, look in readable if not look.is_blank]
    blurred = [(path, f"blur {look.blur:.2f}") for path, look in nonblank if look.blur >= MIN_BLUR]
    advice = "Review them: keep them only if images in production will look like this."
    return [
        *image_finding(
            "blank", "warning", ("image is blank: a single tone", "images are blank: a single tone"),
            "A model can learn nothing from them but class frequencies: drop them (--write-fixes proposes it).", blank,
        ),
        *image_finding(
            "dark", "warning", ("image is very dark", "images are very dark"), advice,
            [path for path, look in nonblank if look.gray_levels[3] < MAX_DARK_LEVEL],
        ),
        *image_finding(
            "bright", "warning", ("image is very bright", "images are very bright"), advice,
            [path for path, look in nonblank if look.gray_levels[1] > MIN_BRIGHT_LEVEL],
        ),
        *image_finding(
            "blurred", "warning",
            ("image is blurred, even at 128 pixels", "images are blurred, even at 128 pixels"), advice, blurred,
        ),
    ]  # fmt: skip
