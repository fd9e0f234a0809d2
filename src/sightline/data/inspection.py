"""Read the files of a listing: each once for its hash and header, and again when its content is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline import preprocessing, process
from sightline.callbacks import Progress
from sightline.data.file_records import FileRecords, Header
from sightline.data.masks import inspect_mask
from sightline.data.remote_folder import DOWNLOADS, RemoteFolder
from sightline.data.sources.filenames import is_image_name
from sightline.data.sources.listing import SourceItem
from sightline.data.storage import FolderStore, GeneratedStore, Store
from sightline.data.types import ImageRecord, InvalidMask, MaskRecord, UnreadableImage
from sightline.errors import DataError, ImageError


def inspect_items(
    entries: Sequence[SourceItem], progress: Progress, threads: int | None, records: FileRecords | None
) -> list[ImageRecord | UnreadableImage | None]:
    """Return the record of each image, or of an unreadable one; None for a file that turned out not to be an image."""
    results: list[ImageRecord | UnreadableImage | None] = []
    is_remote = any(isinstance(entry.store, RemoteFolder) for entry in entries)
    step = 1 if is_remote else 256  # entries per task: few enough to show progress, enough to limit overhead
    chunks = [entries[i : i + step] for i in range(0, len(entries), step)]
    with ThreadPoolExecutor(DOWNLOADS if is_remote else threads or process.count_cores()) as pool:
        for batch in pool.map(lambda chunk: [_inspect_mask(e, _inspect(e, records)) for e in chunk], chunks):
            results += batch
            progress("indexing", len(results), len(entries))
    if records is not None:
        records.save()
    return results


def _inspect(entry: SourceItem, records: FileRecords | None) -> ImageRecord | UnreadableImage | None:
    if isinstance(entry.store, GeneratedStore):
        height, width, channels = entry.store.shape
        return _make_record(entry, (entry.store.identity(entry.key), width, height, channels == 1, False, None))
    watched = records.watch(entry.store, entry.key) if records is not None else None
    if watched is not None and watched.header is not None:
        return _make_record(entry, watched.header)
    try:
        content = entry.store.read(entry.key, preprocessing.detect_format)
        if isinstance(content, np.ndarray):
            return _record_array(entry, content)
        header = preprocessing.inspect_image(content)
    except ImageError as error:
        if not (entry.declared or is_image_name(entry.key)):
            return None
        return UnreadableImage(entry.path, str(error), entry.label)
    digest = _hash_content(content)
    gray = header.mode in {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F"}
    values = digest, header.width, header.height, gray, header.high_bit_depth, header.stated_range
    if watched is not None:
        watched.record(values)
    return _make_record(entry, values)


def _make_record(entry: SourceItem, header: Header) -> ImageRecord:
    sha256, width, height, is_gray, is_deep, stated_range = header
    return ImageRecord(
        entry.path, sha256, entry.label, entry.split, width, height, is_gray, entry.extra, is_deep, stated_range,
        to_label=entry.to_label,
    )  # fmt: skip


def _inspect_mask(
    entry: SourceItem, image: ImageRecord | UnreadableImage | None
) -> ImageRecord | UnreadableImage | None:
    """Return the record of an image with its mask and the label from the mask; unchanged if it has no mask."""
    if entry.mask is None or not isinstance(image, ImageRecord):
        return image
    if entry.mask.label:
        return replace(image, mask=MaskRecord(entry.mask.path, image.sha256), mask_label=entry.mask.label)
    try:
        content = bytes(entry.store.read(entry.mask.key, preprocessing.detect_format))
        label = inspect_mask(content, (image.width, image.height), entry.mask.classes)
    except ImageError as error:
        return InvalidMask(entry.path, f"its mask {entry.mask.path}: {error}")
    return replace(image, label=label, mask=MaskRecord(entry.mask.path, _hash_content(content)))


def _record_array(entry: SourceItem, pixels: NDArray[np.uint8]) -> ImageRecord:
    gray = pixels.ndim == 2 or pixels.shape[-1] == 1
    return _make_record(entry, (_hash_content(pixels), pixels.shape[1], pixels.shape[0], gray, False, None))


def _hash_content(content: bytes | NDArray[np.uint8]) -> str:
    """Return the SHA-256 of encoded bytes, or of the dtype, shape and values of pixels."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(f"{content.dtype}{content.shape}".encode() + content.tobytes()).hexdigest()
    return hashlib.sha256(content).hexdigest()


def _read_unchanged(store: Store, key: str, path: str, sha256: str) -> bytes | NDArray[np.uint8]:
    """Return the content that was indexed; raises `DataError` if it has changed since.

    Pixels, features and splits are stored under the hash from the index: changed bytes would poison those caches.
    """
    advice = "wait until nothing writes to them, then run again."
    try:
        content = store.read(key)
    except ImageError as error:  # it was readable during indexing
        raise DataError(f"{path} changed while the images were being read ({error}): {advice}") from error
    if not isinstance(store, GeneratedStore) and _hash_content(content) != sha256:
        raise DataError(f"{path} changed while the images were being read: {advice}")
    return content


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Reads the files of the images of an index by position."""

    images: Sequence[tuple[SourceItem, ImageRecord]]

    def read(self, i: int) -> bytes | NDArray[np.uint8]:
        """Return the encoded bytes or the pixels of an image."""
        item, image = self.images[i]
        return _read_unchanged(item.store, item.key, item.path, image.sha256)

    def read_mask(self, i: int) -> bytes:
        """Return the encoded mask of an image that has one."""
        item, image = self.images[i]
        assert item.mask is not None
        assert image.mask is not None
        return bytes(_read_unchanged(item.store, item.mask.key, item.mask.path, image.mask.sha256))

    def find_file(self, i: int) -> Path | None:
        """Return the file of an image; None if it is not a file on this machine."""
        item = self.images[i][0]
        return item.store.root / item.key if isinstance(item.store, FolderStore) else None
