"""Recognize hidden files and image files by name."""

from __future__ import annotations

from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".avif", ".heic", ".heif", ".tga", ".ico",
})  # fmt: skip
"""Extensions of image files. Such a file is reported if it cannot be read; other files are tried, then passed over."""


def is_hidden(path: str) -> bool:
    """Return whether a path is hidden or a system file (``.DS_Store``, ``__MACOSX/``, ``Thumbs.db``).

    >>> is_hidden("cat/.DS_Store"), is_hidden("cat/1.jpg")
    (True, False)
    """
    parts = PurePosixPath(path).parts
    if not parts:  # a member of an archive may have no name
        return True
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1].lower() in {"thumbs.db", "desktop.ini"}


def is_image_name(path: str) -> bool:
    """Return whether a file has the extension of an image.

    >>> is_image_name("cat/1.JPG"), is_image_name("README.md")
    (True, False)
    """
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES
