"""What the name of a file or folder says: hidden, or an image."""

from __future__ import annotations

from pathlib import PurePosixPath

PICTURE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".avif", ".heic", ".heif", ".tga", ".ico",
})  # fmt: skip
"""A file named so must be a picture: one that cannot be read is a reject. Other names are tried, then passed over."""


def is_hidden(path: str) -> bool:
    """Tell whether a path is hidden or a system's leaving (``.DS_Store``, ``__MACOSX/``, ``Thumbs.db``).

    >>> is_hidden("cat/.DS_Store"), is_hidden("cat/1.jpg")
    (True, False)
    """
    parts = PurePosixPath(path).parts
    if not parts:  # a member of an archive may have no name
        return True
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1].lower() in {"thumbs.db", "desktop.ini"}


def is_picture_name(path: str) -> bool:
    """Tell whether a file is named as a picture.

    >>> is_picture_name("cat/1.JPG"), is_picture_name("README.md")
    (True, False)
    """
    return PurePosixPath(path).suffix.lower() in PICTURE_SUFFIXES
