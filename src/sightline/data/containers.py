"""Files that hold images: zip and tar archives, Parquet and Arrow tables."""

from __future__ import annotations

from pathlib import Path

from sightline.config import LimitsConfig
from sightline.data.archives import TarStore, ZipStore
from sightline.data.image_tables import TABLE_SUFFIXES, ImageTable

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
CONTAINER_SUFFIXES = (*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES)


def is_container(name: str) -> bool:
    """Return whether a file has the extension of an archive or of a table of images.

    >>> is_container("shard-0001.TAR"), is_container("train.parquet"), is_container("cat.jpg")
    (True, True, False)
    """
    return name.lower().endswith(CONTAINER_SUFFIXES)


def open_container(path: Path, limits: LimitsConfig, column: str = "") -> ZipStore | TarStore | ImageTable:
    """Open a file as a store; `column` is that of the images in a table.

    Raises `DataError` if it is damaged or beyond the limits.
    """
    name = path.name.lower()
    if name.endswith(TABLE_SUFFIXES):
        return ImageTable(path, limits, column)
    return ZipStore(path, limits) if name.endswith(".zip") else TarStore(path, limits)
