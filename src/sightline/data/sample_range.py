"""The range of sample values that images of more than 8 bits use: 12-bit cameras store 0..4095 in 16 bits.

It is decided once, on training images alone, before any image is decoded for training, and stored with the model.
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

IMAGES = 256  # that are decoded to learn the range, the classes in turn
VALUES = 4096  # of each image
TAIL = 0.1  # percent of the values that are clipped at each end
FULL = (1, 255, 1023, 4095, 16383, 65535)  # floats 0..1; integers of 8, 10, 12, 14 and 16 bits
FILLED = 0.5  # a full range of which the values span this fraction is meant

Wanted = Literal["auto", "full"] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class SampleRange:
    """The values that become black and white; None: by each image's type alone. `how` says where they come from."""

    limits: tuple[float, float] | None
    how: str

    @property
    def text(self) -> str:
        """Return it in words, to stand behind a comma."""
        if self.limits is None:
            return f"read by the full range of their type ({self.how})"
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
    """Return the range for the images of `index` whose samples have more than 8 bits, by those in `training`.

    "auto": what the tags state, if all state something and 99.9% of the values lie inside; else from the 0.1 to the
    99.9 percentile of the values, or the full range of 8, 10, 12, 14 or 16 bits (of floats, also 0..1) if they span at
    least half of it. At most 256 images are decoded, as `how` reads them: each class gives as many, in the order of
    their hashes. The type alone counts ("full") where integers and floats are mixed, or all values are equal.
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
        except PictureError:  # it becomes a reject when all are decoded
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
    """Return up to `IMAGES` of the images of more than 8 bits, each content once, the classes in turn."""
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
            return SampleRange((least, most), "as their tags state")
    floats = values[0].dtype.kind == "f"
    if low == high:  # so few pixels differ that both percentiles miss them
        low, high = float(pool.min()), float(pool.max())
    low, high = (float(f"{v:.6g}") for v in (low, high)) if floats else (float(np.floor(low)), float(np.ceil(high)))
    if low >= high:
        return SampleRange(None, "all values are equal")
    images = plural(len(values), "image")
    top = next((t for t in FULL if high <= t and (floats or t > 1)), None)
    if low >= 0 and top is not None and high - low >= FILLED * top:
        return SampleRange((0.0, float(top)), f"the values of {images} span at least half of that range")
    return SampleRange((low, high), f"the {TAIL:g} and {100 - TAIL:g} percentiles of {images}")
