"""Statistics of every image of a source: file header, brightness, blur and near duplicates.

Each content is decoded once, to at most 128x128 gray pixels, of which 32x32 are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import preprocess, process
from sightline.data import hashes
from sightline.data.cache import Read
from sightline.data.near import groups
from sightline.errors import PictureError
from sightline.preprocess import Header, Preprocess
from sightline.records import Index, Progress, no_progress

SIDE = 128  # pixels; the size at which images are inspected
BLANK = 8  # gray levels: an image whose 1st and 99th percentiles are this close is blank
WINDOW = 9  # width in pixels of the additional blur in the blur metric
CHUNK = 32  # images per task


@dataclass(frozen=True, slots=True)
class Look:
    """Statistics of one image.

    `header` is None for arrays and for undecodable files. `levels` are the 1st, 5th, 50th, 95th and 99th percentiles of
    the gray levels, 0..255. `blur` ranges from 0 (sharp) to 1. `error` says why the image cannot be decoded, in which
    case all other fields are zero.
    """

    header: Header | None
    levels: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    blur: float = 0.0
    error: str = ""

    @property
    def blank(self) -> bool:
        """Whether the image has practically a single tone."""
        return not self.error and self.levels[4] - self.levels[0] <= BLANK


@dataclass(frozen=True, slots=True)
class Survey:
    """Statistics of the images of an index, by the sha256 of their content.

    `near` maps each sha256 to the smallest sha256 of its group of near duplicates; a content without near duplicates is
    a group of its own.
    """

    looks: dict[str, Look]
    near: dict[str, str]


def survey(
    index: Index,
    progress: Progress = no_progress,
    threads: int | None = None,
    how: Preprocess | None = None,
) -> Survey:
    """Compute statistics of every image of `index`, each content once, in threads, decoding with the spec `how`."""
    how = how or Preprocess()
    first: dict[str, int] = {}
    for i, picture in enumerate(index.pictures):
        first.setdefault(picture.sha256, i)
    contents = sorted(first)
    looks: list[Look] = []
    small: list[NDArray[np.uint8]] = []
    starts = range(0, len(contents), CHUNK)

    def chunk(start: int) -> list[tuple[Look, NDArray[np.uint8]]]:
        return [_look(index.read, first[sha], how) for sha in contents[start : start + CHUNK]]

    with ThreadPoolExecutor(threads or process.cores()) as pool:
        try:
            for some in pool.map(chunk, starts):
                looks += [look for look, _ in some]
                small.append(np.stack([tiny for _, tiny in some]))
                progress("inspecting", len(looks), len(contents))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    telling = np.array([i for i, look in enumerate(looks) if not look.error and not look.blank], np.int64)
    near = dict(zip(contents, contents, strict=True))
    if len(telling):
        near |= by_name([contents[i] for i in telling], np.concatenate(small)[telling])
    return Survey(dict(zip(contents, looks, strict=True)), near)


def by_name(names: Sequence[str], small: NDArray[np.uint8]) -> dict[str, str]:
    """Map each of the sorted `names` to the smallest name in its group of near duplicates.

    `small` are their gray images, uint8 [N, 32, 32], from `tiny`.
    """
    leaders = groups(hashes.perceptual(small), small)
    return {name: names[leader] for name, leader in zip(names, leaders.tolist(), strict=True)}


def _look(read: Read, i: int, how: Preprocess) -> tuple[Look, NDArray[np.uint8]]:
    """Return the statistics of image `i` and its 32x32 gray pixels."""
    header = None
    try:
        content = read(i)
        if isinstance(content, np.ndarray):
            height, width = content.shape[:2]
            grey = how.sized(min(height, SIDE), min(width, SIDE), 1).fit(content)[..., 0]
        else:
            header, grey = preprocess.glance(content, SIDE, how)
    except PictureError as error:
        return Look(None, error=str(error)), np.zeros((hashes.SIDE, hashes.SIDE), np.uint8)
    image = Image.fromarray(grey)
    below = np.cumsum(image.histogram()) / grey.size
    one, five, half, most, last = (int(x) for x in np.searchsorted(below, (0.01, 0.05, 0.5, 0.95, 0.99)))
    return Look(header, (one, five, half, most, last), blur(grey)), tiny(image)


def tiny(image: Image.Image) -> NDArray[np.uint8]:
    """Return the image as the 32x32 gray pixels, uint8, that are compared to find near duplicates."""
    return np.asarray(image.convert("L").resize((hashes.SIDE, hashes.SIDE), Image.Resampling.BILINEAR))


def blur(grey: NDArray[np.uint8]) -> float:
    """Return the blur of a gray image uint8 [H, W], 0..1, regardless of contrast; 0 if it is too small.

    This is the fraction of the differences between neighboring pixels that survives an additional blur, on the axis
    where it is larger (F. Crete et al., "The Blur Effect: Perception and Estimation with a New No-reference Perceptual
    Blur Metric", 2007).
    """
    if min(grey.shape) < SIDE:
        return 0.0
    found = []
    for lines in (grey[::2].T, grey[:, ::2]):  # every other line is enough
        values = np.ascontiguousarray(lines, np.int16)  # differences run along the first axis
        # Two neighboring means of WINDOW values differ by the difference of their end values divided by WINDOW.
        left = np.abs(values[WINDOW:] - values[:-WINDOW])
        middle = values[WINDOW // 2 : WINDOW // 2 + len(left) + 1]
        sharp = np.abs(middle[1:] - middle[:-1])
        total = WINDOW * int(sharp.sum())
        found.append(int(np.minimum(WINDOW * sharp, left).sum()) / total if total else 0.0)
    return max(found)
