"""Leakage between splits: identical files and near duplicates, found once by `train` and stored in the run.

Near duplicates are compared by 32x32 gray pixels of the network's input (see `near_duplicates`). A run stores these
small images of its training and validation splits, so that other images can be compared with them later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import _io, _packed, process
from sightline.data.checks import duplicates, perceptual_hash
from sightline.data.checks.duplicates import spans_splits
from sightline.data.checks.finding import Group
from sightline.data.checks.image_stats import group_by_name, shrink_gray
from sightline.data.dataset import DecodedDataset
from sightline.data.recorded_images import ImageRow
from sightline.data.types import SPLITS, ImageRecord, Split
from sightline.errors import ModelError

_MAX_COMPRESSION = 1000  # limit on the compression ratio of the stored file, high because blank images compress well
MAX_IMAGES = 20_000  # limit on images searched for near duplicates: a few seconds

LeakKind = Literal["identical", "near_duplicates"]


@dataclass(frozen=True, slots=True)
class Leak:
    """A group of identical files or of near duplicates that spans more than one split."""

    kind: LeakKind
    images: tuple[ImageRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the leak as JSON values."""
        return {"kind": self.kind, "images": [row.to_dict() for row in self.images]}


@dataclass(frozen=True, slots=True)
class SmallImages:
    """Small versions of images for finding near duplicates: `pixels` uint8 [N, 32, 32], sorted by content `sha256`.

    Images of a single gray level are left out, because they match anything.
    """

    sha256: tuple[str, ...]
    pixels: NDArray[np.uint8]

    def save(self, file: IO[bytes]) -> None:
        """Write the images to a new file."""
        np.savez_compressed(file, allow_pickle=False, sha256=np.array(self.sha256, np.str_), pixels=self.pixels)

    @classmethod
    def load(cls, path: Path) -> SmallImages:
        """Read a file written by `save`; raises `ModelError` if it is damaged."""
        try:
            with _io.open_regular(path) as file:
                arrays = _packed.load_arrays(file, _MAX_COMPRESSION)
            return cls._from_arrays(arrays["sha256"], arrays["pixels"])
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{path} cannot be read: {error}. Delete it to continue without the search for near duplicates."
            ) from error

    @classmethod
    def _from_arrays(cls, names: NDArray[Any], pixels: NDArray[Any]) -> SmallImages:
        shape = (names.size, perceptual_hash.SIDE, perceptual_hash.SIDE)
        if names.dtype.kind != "U" or pixels.dtype != np.uint8 or names.ndim != 1 or pixels.shape != shape:
            raise ValueError(f"its arrays are {pixels.dtype} {list(pixels.shape)}, expected uint8 {list(shape)}")
        return cls(tuple(names.tolist()), pixels)

    def select(self, contents: set[str]) -> SmallImages:
        """Return the images with these contents."""
        at = [i for i, sha in enumerate(self.sha256) if sha in contents]
        return SmallImages(tuple(self.sha256[i] for i in at), self.pixels[at])

    def union(self, other: SmallImages) -> SmallImages:
        """Return the images of both, with each content once."""
        rows = dict(zip(other.sha256, other.pixels, strict=True)) | dict(zip(self.sha256, self.pixels, strict=True))
        contents = sorted(rows)
        return _stack(contents, [rows[sha] for sha in contents])

    def find_groups(self) -> dict[str, str]:
        """Map each sha256 to the smallest sha256 of its group of near duplicates."""
        return group_by_name(self.sha256, self.pixels) if self.sha256 else {}


def make_small_images(
    pixels: NDArray[np.uint8], rows: NDArray[np.int64], contents: Sequence[str], threads: int | None = None
) -> SmallImages | None:
    """Downscale images, each content once; return None if there are more than `MAX_IMAGES`.

    Image i is ``pixels[rows[i]]`` (uint8 [M, H, W, C]) with the sha256 ``contents[i]``.
    """
    row_of = dict(zip(contents, rows.tolist(), strict=True))
    if len(row_of) > MAX_IMAGES:
        return None
    names = sorted(row_of)
    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        small = list(pool.map(lambda sha: shrink_gray(_to_pillow(pixels[row_of[sha]])), names))
    informative = [i for i, image in enumerate(small) if np.ptp(image) > 0]
    return _stack([names[i] for i in informative], [small[i] for i in informative])


def _stack(contents: Sequence[str], small: Sequence[NDArray[np.uint8]]) -> SmallImages:
    empty = np.zeros((0, perceptual_hash.SIDE, perceptual_hash.SIDE), np.uint8)
    return SmallImages(tuple(contents), np.stack(small) if len(small) else empty)


def _to_pillow(pixels: NDArray[np.uint8]) -> Image.Image:
    whole = np.asarray(pixels)
    return Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole)


def find_leaks(data: DecodedDataset, near: Mapping[str, str] | None = None) -> tuple[Leak, ...]:
    """Return the groups of duplicates that span several splits of `data`, identical files first.

    `near` maps each sha256 to its group of near duplicates, as `SmallImages.find_groups` returns it.
    """
    images = [replace(p, split=split) for p, split in zip(data.images, data.splits, strict=True)]
    groups = duplicates.find_duplicates(images, near)
    kinds: tuple[tuple[LeakKind, tuple[Group, ...]], ...] = (
        ("identical", groups.identical),
        ("near_duplicates", groups.near),
    )
    return tuple(
        Leak(kind, tuple(map(_to_image_row, group)))
        for kind, groups in kinds
        for group in groups
        if spans_splits(group)
    )


def _to_image_row(image: ImageRecord) -> ImageRow:
    assert image.split is not None  # set by `find_leaks`
    return ImageRow(image.path, image.sha256, image.label, image.split)


def training_contents(data: DecodedDataset) -> set[str]:
    """Return the sha256 of all training and validation images of `data`."""
    return {p.sha256 for p, split in zip(data.images, data.splits, strict=True) if split != "test"}


def leaked_contents(leaks: Sequence[Leak], split: Split) -> dict[str, LeakKind]:
    """Return the contents of a split that also occur in earlier ones: training for validation, both for test."""
    earlier_splits = SPLITS[: SPLITS.index(split)]
    leaks_by_content: dict[str, LeakKind] = {}
    for leak in leaks:
        earlier = {row.sha256 for row in leak.images if row.split in earlier_splits}
        for row in leak.images:
            if row.split != split:
                continue
            if row.sha256 in earlier:
                leaks_by_content[row.sha256] = "identical"
            elif earlier:
                leaks_by_content.setdefault(row.sha256, "near_duplicates")
    return leaks_by_content


def find_near_contents(known: SmallImages, new: SmallImages) -> set[str]:
    """Return the contents of `new` that are near duplicates of a different content in `known`."""
    group = known.union(new).find_groups()
    known_by_group: dict[str, set[str]] = {}
    for sha in known.sha256:
        known_by_group.setdefault(group[sha], set()).add(sha)
    return {sha for sha in new.sha256 if known_by_group.get(group[sha], set()) - {sha}}
