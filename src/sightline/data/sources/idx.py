"""Images and labels in idx files, as MNIST ships them."""

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

from sightline.config import LimitsConfig
from sightline.data.archives import LIMITS, check_size
from sightline.data.sources.arrays import array_entries
from sightline.data.sources.listing import Entry, Listing
from sightline.errors import DataError, plural
from sightline.files import open_regular
from sightline.records import Part


def is_idx(path: Path) -> bool:
    """Tell whether a file name is that of idx pictures or labels, as MNIST ships (``...-idx3-ubyte[.gz]``)."""
    return re.search(r"[-.]idx[13]", path.name) is not None


def idx_labels(pictures: Path) -> Path:
    """Return where the labels of idx pictures are expected.

    >>> idx_labels(Path("t10k-images-idx3-ubyte.gz")).name
    't10k-labels-idx1-ubyte.gz'
    """
    return pictures.with_name(pictures.name.replace("images", "labels").replace("idx3", "idx1"))


def idx_files(paths: Sequence[Path], limits: LimitsConfig = LIMITS) -> Listing:
    """Read idx pictures with their labels; ``t10k`` or ``test`` in a name makes the test part, ``train`` the training.

    Classes are the label numbers, padded with zeros so that their order is that of the numbers.
    """
    entries: list[Entry] = []
    images = [p for p in paths if "idx3" in p.name or "images" in p.name]
    if not images:
        raise DataError(f"{paths[0]} holds labels but no pictures; give the idx3 file beside it too.")
    for path in images:
        label_path = idx_labels(path)
        if not label_path.exists() or label_path == path:
            raise DataError(f"{path} has no labels: expected {label_path.name} beside it.")
        pixels, labels = _read_idx(path, 3, limits), _read_idx(label_path, 1, limits)
        if len(pixels) != len(labels):
            raise DataError(
                f"{path} holds {plural(len(pixels), 'image')} but {label_path.name} {plural(len(labels), 'label')}."
            )
        part: Part | None = "train" if "train" in path.name else None
        part = "test" if "t10k" in path.name or "test" in path.name else part
        entries += array_entries(pixels, labels, path.name, part)
    return Listing(entries)


def _read_idx(path: Path, dimensions: int, limits: LimitsConfig) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes (format: Y. LeCun, "The MNIST database")."""
    unsigned_byte = 0x08
    try:
        with open_regular(path) as packed:
            file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
            zero, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            size = math.prod(shape)
            check_size(path, size, limits)
            data = file.read(size + 1)  # one more shows that the header is wrong
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} cannot be read as an idx file: {error}.") from error
    if zero != 0 or kind != unsigned_byte or rank != dimensions or len(data) != size:
        raise DataError(f"{path} is not an idx file of {dimensions}-dimensional bytes, or it is cut off.")
    return np.frombuffer(data, np.uint8).reshape(shape)
