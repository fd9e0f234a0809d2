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
from sightline.callbacks import Progress, no_progress
from sightline.data.types import Index
from sightline.errors import ImageError, plural
from sightline.preprocessing import PreprocessingSpec

MAX_IMAGES = 256  # limit on images decoded to determine the range, taken from the classes in turn
VALUES_PER_IMAGE = 4096  # sampled values per image
CLIPPED_PERCENT = 0.1  # percent of the values to clip at each end
FULL_RANGES = (1, 255, 1023, 4095, 16383, 65535)  # floats in 0..1; integers of 8, 10, 12, 14 and 16 bits
MIN_FILLED_FRACTION = 0.5  # if the values span this fraction of a full range, that range is used

RangeSetting = Literal["auto", "full"] | tuple[float, float]


@dataclass(frozen=True, slots=True)
class SampleRange:
    """The sample values of black and white, or None for the full range of each image's type; `reason` says why."""

    limits: tuple[float, float] | None
    reason: str

    @property
    def description(self) -> str:
        """A description that can follow a comma in a sentence."""
        if self.limits is None:
            return f"read with the full range of their type ({self.reason})"
        low, high = self.limits
        return f"read with {low:g} as black and {high:g} as white ({self.reason})"


NO_RANGE = SampleRange(None, "as set")


def resolve_range(
    index: Index,
    training: Sequence[int],
    setting: RangeSetting,
    spec: PreprocessingSpec,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> SampleRange:
    """Determine the sample range for the images of `index` with more than 8 bits, from those in `training`.

    "auto" uses the range in the images' tags, if all have one and it covers 99.8% of the values; otherwise the full
    range of 8, 10, 12, 14 or 16 bits (for floats also 0..1) if the values span at least half of it; otherwise the 0.1
    and 99.9 percentiles. At most 256 images are decoded, as `spec` reads them: equally many of each class, in the order
    of their hashes. If integers and floats are mixed, or all values are equal, the range of the type is used ("full").
    """
    if setting != "auto":
        return SampleRange(None, "as set") if setting == "full" else SampleRange(setting, "as set")
    sampled = _sample_images(index, training)
    if not sampled:
        return SampleRange(None, "no training image has more than 8 bits")

    def read(i: int) -> NDArray[Any] | None:
        content = index.read(i)
        try:
            return None if isinstance(content, np.ndarray) else spec.sample_values(content, VALUES_PER_IMAGE)
        except ImageError:  # rejected later, when all images are decoded
            return None

    values: list[NDArray[Any]] = []
    tag_ranges: list[tuple[float, float] | None] = []
    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for done, (i, image_values) in enumerate(zip(sampled, pool.map(read, sampled), strict=True), 1):
            if image_values is not None and image_values.size:
                values.append(image_values)
                tag_ranges.append(index.images[i].stated_range)
            progress("reading the range of values", done, len(sampled))
    return _choose_range(values, tag_ranges)


def _sample_images(index: Index, training: Sequence[int]) -> list[int]:
    """Return up to `MAX_IMAGES` images of more than 8 bits, each content once, from the classes in turn."""
    classes: dict[str, dict[str, int]] = {}
    for i in training:
        image = index.images[i]
        if image.high_bit_depth:
            classes.setdefault(image.label, {}).setdefault(image.sha256, i)
    columns = [[i for _, i in sorted(contents.items())] for _, contents in sorted(classes.items())]
    interleaved = (i for row in zip_longest(*columns) for i in row if i is not None)
    return list(islice(interleaved, MAX_IMAGES))


def _choose_range(values: list[NDArray[Any]], tag_ranges: list[tuple[float, float] | None]) -> SampleRange:
    if not values:
        return SampleRange(None, "no training image of more than 8 bits can be decoded")
    if len({v.dtype.kind == "f" for v in values}) > 1:
        return SampleRange(None, "integers and floats are mixed")
    pool = np.concatenate(values).astype(np.float64)
    low, high = (float(v) for v in np.percentile(pool, [CLIPPED_PERCENT, 100 - CLIPPED_PERCENT]))
    tags = [s for s in tag_ranges if s is not None]
    if len(tags) == len(tag_ranges):
        lowest, highest = min(s[0] for s in tags), max(s[1] for s in tags)
        if lowest <= low and high <= highest:
            return SampleRange((lowest, highest), "from their tags")
    floats = values[0].dtype.kind == "f"
    if low == high:  # both percentiles miss the few pixels that differ
        low, high = float(pool.min()), float(pool.max())
    low, high = (float(f"{v:.6g}") for v in (low, high)) if floats else (float(np.floor(low)), float(np.ceil(high)))
    if low >= high:
        return SampleRange(None, "all values are equal")
    images = plural(len(values), "image")
    top = next((t for t in FULL_RANGES if high <= t and (floats or t > 1)), None)
    if low >= 0 and top is not None and high - low >= MIN_FILLED_FRACTION * top:
        return SampleRange((0.0, float(top)), f"the values of {images} span at least half of that range")
    return SampleRange((low, high), f"the {CLIPPED_PERCENT:g} and {100 - CLIPPED_PERCENT:g} percentiles of {images}")
