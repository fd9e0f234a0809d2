"""The sample range of images with more than 8 bits: a 12-bit camera, for example, stores 0..4095 in 16 bits.

It is determined once, from training images only, before any image is decoded for training, and stored with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.errors import PictureError, plural
from sightline.preprocess import Preprocess
from sightline.records import Index, Progress, no_progress

IMAGES = 256  # most images decoded to determine the range, taken from the classes in turn
VALUES = 4096  # sampled values per image
TAIL = 0.1  # percent of the values to clip at each end
FULL = (1, 255, 1023, 4095, 16383, 65535)  # floats in 0..1; integers of 8, 10, 12, 14 and 16 bits
FILLED = 0.5  # if the values span this fraction of a full range, that range is used

Wanted = Literal["auto", "full"] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class SampleRange:
    """The sample values of black and white, or None for the full range of each image's type; `how` says why."""

    limits: tuple[float, float] | None
    how: str

    @property
    def text(self) -> str:
        """A description that can follow a comma in a sentence."""
        if self.limits is None:
            return f"read with the full range of their type ({self.how})"
        low, high = self.limits
        return f"read with {low:g} as black and {high:g} as white ({self.how})"


NO_RANGE = SampleRange(None, "as set")


def resolve_range(
    index: Index,
    training: Sequence[int],
    wanted: Wanted,
    how: Preprocess,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> SampleRange:
    """Determine the sample range for the images of `index` with more than 8 bits, from those in `training`.

    "auto" uses the range in the images' tags, if all have one and it covers 99.8% of the values; otherwise the full
    range of 8, 10, 12, 14 or 16 bits (for floats also 0..1) if the values span at least half of it; otherwise the 0.1
    and 99.9 percentiles. At most 256 images are decoded, as `how` reads them: equally many of each class, in the order
    of their hashes. If integers and floats are mixed, or all values are equal, the range of the type is used ("full").
    """
    if wanted != "auto":
        return SampleRange(None, "as set") if wanted == "full" else SampleRange(wanted, "as set")
    chosen = _in_turn(index, training)
    if not chosen:
        return SampleRange(None, "no training image has more than 8 bits")

    def read(i: int) -> NDArray[Any] | None:
        content = index.read(i)
        try:
            return None if isinstance(content, np.ndarray) else how.values(content, VALUES)
        except PictureError:  # it is rejected later, when all images are decoded
            return None

    values: list[NDArray[Any]] = []
    stated: list[tuple[float, float] | None] = []
    with ThreadPoolExecutor(threads or process.cores()) as pool:
        for done, (i, found) in enumerate(zip(chosen, pool.map(read, chosen), strict=True), 1):
            if found is not None and found.size:
                values.append(found)
                stated.append(index.pictures[i].stated_range)
            progress("reading the range of values", done, len(chosen))
    return _decide(values, stated)


def _in_turn(index: Index, training: Sequence[int]) -> list[int]:
    """Return up to `IMAGES` images of more than 8 bits, each content once, from the classes in turn."""
    classes: dict[str, dict[str, int]] = {}
    for i in training:
        picture = index.pictures[i]
        if picture.deep:
            classes.setdefault(picture.label, {}).setdefault(picture.sha256, i)
    columns = [[i for _, i in sorted(contents.items())] for _, contents in sorted(classes.items())]
    turns = (i for row in zip_longest(*columns) for i in row if i is not None)
    return list(islice(turns, IMAGES))


def _decide(values: list[NDArray[Any]], stated: list[tuple[float, float] | None]) -> SampleRange:
    if not values:
        return SampleRange(None, "no training image of more than 8 bits can be decoded")
    if len({v.dtype.kind == "f" for v in values}) > 1:
        return SampleRange(None, "integers and floats are mixed")
    pool = np.concatenate(values).astype(np.float64)
    low, high = (float(v) for v in np.percentile(pool, [TAIL, 100 - TAIL]))
    tags = [s for s in stated if s is not None]
    if len(tags) == len(stated):
        least, most = min(s[0] for s in tags), max(s[1] for s in tags)
        if least <= low and high <= most:
            return SampleRange((least, most), "from their tags")
    floats = values[0].dtype.kind == "f"
    if low == high:  # both percentiles miss the few pixels that differ
        low, high = float(pool.min()), float(pool.max())
    low, high = (float(f"{v:.6g}") for v in (low, high)) if floats else (float(np.floor(low)), float(np.ceil(high)))
    if low >= high:
        return SampleRange(None, "all values are equal")
    images = plural(len(values), "image")
    top = next((t for t in FULL if high <= t and (floats or t > 1)), None)
    if low >= 0 and top is not None and high - low >= FILLED * top:
        return SampleRange((0.0, float(top)), f"the values of {images} span at least half of that range")
    return SampleRange((low, high), f"the {TAIL:g} and {100 - TAIL:g} percentiles of {images}")
