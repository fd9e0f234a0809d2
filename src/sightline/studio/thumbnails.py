"""`Versions`: small and large versions of files, encoded on request; `Thumbnails`: versions of images as WebP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import final

from sightline.data.types import Index
from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec, fit_size
from sightline.report.doctor_page import encode_thumbnail

SMALL, LARGE = 160, 1024  # pixels of the longer side
KEPT = 2000  # small versions in memory, about 5 kB each


class Versions(ABC):
    """Small and large versions of files by their content hash; methods may be called from any thread."""

    def __init__(self, hashes: dict[int, str]) -> None:
        """`hashes` are by position, for positions that have a file; of equal files, the first is decoded."""
        self._positions = {sha256: position for position, sha256 in reversed(hashes.items())}
        self._encode_small = lru_cache(KEPT)(self._encode)

    @final
    def encode(self, sha256: str, *, large: bool = False) -> bytes | None:
        """Return a version of the file with this hash; None if there is no such file or it cannot be decoded."""
        position = self._positions.get(sha256)
        if position is None:
            return None
        return self._encode(position, LARGE) if large else self._encode_small(position, SMALL)

    @abstractmethod
    def _encode(self, position: int, side: int) -> bytes | None: ...


class Thumbnails(Versions):
    """Versions of images, as WebP files."""

    def __init__(self, index: Index, preprocess: PreprocessingSpec) -> None:
        """Decode as specified by `preprocess`, except for its size."""
        super().__init__({i: image.sha256 for i, image in enumerate(index.images)})
        self._index, self._preprocess = index, preprocess

    def _encode(self, position: int, side: int) -> bytes | None:
        image = self._index.images[position]
        width, height = fit_size(image.width, image.height, side)
        spec = self._preprocess.with_size(height, width)
        try:
            return encode_thumbnail(spec.convert(self._index.read(position)))
        except (ImageError, OSError):
            return None
