"""Reject files that contain more of something than any ordinary file."""

from __future__ import annotations

from sightline.errors import ImageError

MAX_COUNTED_FRAMES = 1000  # counting stops here
MAX_EXTENSION_BYTES = 4 << 20  # bytes of a GIF's comments and other extensions, or of EXIF as text
MAX_EXIF_SEGMENTS = 16  # joined by Pillow; usually one, a few if EXIF is large
_MAX_SLOW_BYTES = 8 << 20  # bytes of a text PPM or a run-length encoded BMP, which Pillow decodes in Python


def check_count(count: int, maximum: int, description: str) -> None:
    """Raise ImageError if `count` exceeds `maximum`; `description` names the counted things in the plural."""
    if count > maximum:
        raise ImageError(f"more than {maximum:,} {description}, which no ordinary file has")


def check_slow_size(data: bytes, description: str, advice: str, maximum: int = _MAX_SLOW_BYTES) -> None:
    """Raise ImageError if a file in a format that is slow to decode has more than `maximum` bytes."""
    if len(data) > maximum:
        raise ImageError(f"more than {maximum >> 20} MiB of {description}, which take too long to decode: {advice}")
