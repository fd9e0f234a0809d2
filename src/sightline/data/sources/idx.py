"""Read images and labels from IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sightline._io import open_regular
from sightline.config import LimitsConfig
from sightline.data.archives import check_size
from sightline.data.sources.arrays import list_array_items
from sightline.data.sources.listing import SourceItem, SourceListing
from sightline.data.storage import LIMITS
from sightline.data.types import Split
from sightline.errors import DataError, plural


def is_idx(path: Path) -> bool:
    """Return whether a file is named as the idx images or labels of MNIST (``...-idx3-ubyte[.gz]``)."""
    return re.search(r"[-.]idx[13]", path.name) is not None


def get_labels_path(images_path: Path) -> Path:
    """Return the expected path of the labels for a file of idx images.

    >>> get_labels_path(Path("t10k-images-idx3-ubyte.gz")).name
    't10k-labels-idx1-ubyte.gz'
    """
    return images_path.with_name(images_path.name.replace("images", "labels").replace("idx3", "idx1"))


def drop_label_files(sources: Sequence[str | Path | SourceListing]) -> list[str | Path | SourceListing]:
    """Return `sources` without the label files of image files among them, which find their labels by name."""
    paths = [Path(source) for source in sources if not isinstance(source, SourceListing) and is_idx(Path(source))]
    labels = {get_labels_path(path) for path in paths if get_labels_path(path) != path}
    return [source for source in sources if isinstance(source, SourceListing) or Path(source) not in labels]


def read_idx_files(paths: Sequence[Path], limits: LimitsConfig = LIMITS) -> SourceListing:
    """Read idx images with their labels.

    ``train`` in a name means the training split, ``t10k`` or ``test`` the test split. Classes are the label numbers.
    """
    items: list[SourceItem] = []
    image_paths = [p for p in paths if "idx3" in p.name or "images" in p.name]
    if not image_paths:
        raise DataError(f"{paths[0]} holds labels but no images: also pass the IDX3 file next to it.")
    for path in image_paths:
        label_path = get_labels_path(path)
        if not label_path.exists() or label_path == path:
            raise DataError(f"{path} has no labels: expected {label_path.name} next to it.")
        pixels, labels = _read_idx(path, 3, limits), _read_idx(label_path, 1, limits)
        if len(pixels) != len(labels):
            raise DataError(
                f"{path} holds {plural(len(pixels), 'image')} but {label_path.name} {plural(len(labels), 'label')}."
            )
        split: Split | None = "train" if "train" in path.name else None
        split = "test" if "t10k" in path.name or "test" in path.name else split
        items += list_array_items(pixels, labels, path.name, split)
    return SourceListing(items)


def _read_idx(path: Path, dimensions: int, limits: LimitsConfig) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes (format: Y. LeCun, "The MNIST database")."""
    unsigned_byte = 0x08
    try:
        with open_regular(path) as raw_file:
            file = gzip.GzipFile(fileobj=raw_file) if path.suffix == ".gz" else raw_file
            zero, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            check_size(path, size, limits)
            data = file.read(size + 1)  # one extra byte reveals a wrong header
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} cannot be read as an IDX file: {error}.") from error
    if zero != 0 or kind != unsigned_byte or rank != dimensions or len(data) != size:
        raise DataError(f"{path} is not an IDX file of {dimensions}-dimensional bytes, or it is truncated.")
    return np.frombuffer(data, np.uint8).reshape(shape)
