"""File names: hidden files, image files, and names that a file system treats as equal."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from pathlib import PurePosixPath

IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".avif", ".heic", ".heif", ".tga", ".ico",
})  # fmt: skip
"""Extensions of image files. Such a file is reported if it cannot be read; other files are tried, then skipped."""


_SYSTEM_FOLDERS = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
}  # fmt: skip
"""Folders of macOS, Synology, Windows and Linux, some of which contain thumbnails or deleted images."""


def fold_name(name: str) -> str:
    """Return a name with case and the encoding of accents normalized, for comparison."""
    return unicodedata.normalize("NFC", name).casefold()


def is_hidden(path: str) -> bool:
    """Return whether a path is hidden or a system path (``.DS_Store``, ``__MACOSX/``, ``@eaDir/``, ``Thumbs.db``).

    >>> is_hidden("cat/.DS_Store"), is_hidden("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"), is_hidden("cat/1.jpg")
    (True, True, False)
    """
    return are_hidden(split_path(path))


def are_hidden(parts: tuple[str, ...]) -> bool:
    """Return whether a path with these parts is hidden, as is an archive member without a name."""
    if not parts:
        return True
    return _is_hidden_name(parts[-1]) or parts[-1].lower() in {"thumbs.db", "desktop.ini"} or _is_in_hidden(parts[:-1])


def is_image_name(path: str) -> bool:
    """Return whether a file has the extension of an image.

    >>> is_image_name("cat/1.JPG"), is_image_name("README.md")
    (True, False)
    """
    name = path.rpartition("/")[2]
    if name in {"", "."}:  # the name would be before the slash
        name = PurePosixPath(path).name
    stem, dot, suffix = name.rpartition(".")
    return bool(stem) and (dot + suffix).lower() in IMAGE_SUFFIXES


UNREAD_SUFFIXES = frozenset({
    ".nef", ".cr2", ".cr3", ".arw", ".dng", ".raf", ".orf", ".rw2", ".dcm", ".dicom", ".nii", ".psd", ".svg", ".eps",
    ".jxl", ".exr", ".hdr", ".npy", ".npz", ".mp4", ".mov", ".avi", ".mkv", ".webm",
})  # fmt: skip
"""Extensions of image files that are not read: from cameras and scanners, arrays, drawings and videos."""


def holds_unread_images(path: str) -> bool:
    """Return whether a file has the extension of an image or video format that is not read.

    >>> holds_unread_images("cat/1.NEF"), holds_unread_images("cats-train.tfrecord-00000-of-00002")
    (True, True)
    """
    suffix = PurePosixPath(path).suffix.lower()
    return (suffix in UNREAD_SUFFIXES or suffix.startswith(".tfrec")) and not is_hidden(path)


def is_placeholder(path: str) -> bool:
    """Return whether a file is a placeholder for an image that is only in iCloud.

    >>> is_placeholder("cat/.1.jpg.icloud"), is_placeholder("cat/.notes.txt.icloud"), is_placeholder("cat/1.jpg")
    (True, False, False)
    """
    return path.endswith(".icloud") and is_image_name(path.removesuffix(".icloud"))


def split_path(path: str) -> tuple[str, ...]:
    """Return ``PurePosixPath(path).parts``, in a fifth of the time if the folder has been seen before.

    >>> split_path("cat/a/1.jpg"), split_path("/cat//./1.jpg")
    (('cat', 'a', '1.jpg'), ('/', 'cat', '1.jpg'))
    """
    folder, _, name = path.rpartition("/")
    if name in {"", "."} or path.startswith("/"):
        return PurePosixPath(path).parts
    return (*_split_folder(folder), name)


@lru_cache(maxsize=4096)
def _split_folder(folder: str) -> tuple[str, ...]:
    return PurePosixPath(folder).parts


@lru_cache(maxsize=4096)
def _is_in_hidden(folders: tuple[str, ...]) -> bool:
    return any(map(_is_hidden_name, folders))


def _is_hidden_name(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS
