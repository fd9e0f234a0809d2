"""One look at every picture of a source: what its file says of itself, how bright and sharp it is, what it resembles.

Each content is decoded once, to at most 128x128 gray pixels; nothing larger is kept than 32x32 of them.
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

SIDE = 128  # pixels; what a picture shows at this size is what is judged here
BLANK = 8  # grey levels: a picture whose lightest and darkest percents are no further apart shows nothing
WINDOW = 9  # pixels over which the blur measure blurs once more
CHUNK = 32  # pictures per task


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a picture tells.

    `header` is None for arrays and for what cannot be decoded. `levels` are the 1st, 5th, 50th, 95th and 99th
    percentile of its grey levels, 0..255. `blur` runs from 0 (sharp) to 1. `error` says why the pixels cannot be
    decoded; all else is then zero.
    """

    header: Header | None
    levels: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    blur: float = 0.0
    error: str = ""

    @property
    def blank(self) -> bool:
        """Whether it shows nothing at all."""
        return not self.error and self.levels[4] - self.levels[0] <= BLANK


@dataclass(frozen=True, slots=True)
class Survey:
    """Looks at the pictures of an index, one for each content, by its sha256.

    `near` gives each picture's group of near duplicates, by the smallest sha256 in it; identical files and those alone
    in their group are a group of their own.
    """

    looks: dict[str, Look]
    near: dict[str, str]


def survey(
    index: Index,
    progress: Progress = no_progress,
    threads: int | None = None,
    how: Preprocess | None = None,
) -> Survey:
    """Look at every image of `index`, each content once, in threads; `how` has the page and the range that count."""
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
                progress("looking", len(looks), len(contents))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    telling = np.array([i for i, look in enumerate(looks) if not look.error and not look.blank], np.int64)
    near = dict(zip(contents, contents, strict=True))
    if len(telling):
        near |= by_name([contents[i] for i in telling], np.concatenate(small)[telling])
    return Survey(dict(zip(contents, looks, strict=True)), near)


def by_name(names: Sequence[str], small: NDArray[np.uint8]) -> dict[str, str]:
    """Return the smallest name in the near-duplicate group of each of the sorted `names`.

    `small` are their gray images, uint8 [N, 32, 32], as `tiny` makes them.
    """
    leaders = groups(hashes.perceptual(small), small)
    return {name: names[leader] for name, leader in zip(names, leaders.tolist(), strict=True)}


def _look(read: Read, i: int, how: Preprocess) -> tuple[Look, NDArray[np.uint8]]:
    """Return the look at picture `i` and its 32x32 grey pixels."""
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
    """Return the 32x32 gray pixels that near duplicates are found by."""
    return np.asarray(image.convert("L").resize((hashes.SIDE, hashes.SIDE), Image.Resampling.BILINEAR))


def blur(grey: NDArray[np.uint8]) -> float:
    """Return how blurred a grey picture uint8 [H, W] is, 0..1, whatever its contrast; 0 for one too small to tell.

    It is the share of the differences of neighbours that a further blur leaves, on the axis where it leaves most
    (F. Crete et al., "The Blur Effect: Perception and Estimation with a New No-reference Perceptual Blur Metric").
    """
    if min(grey.shape) < SIDE:
        return 0.0
    found = []
    for lines in (grey[::2].T, grey[:, ::2]):  # every other line is enough
        values = np.ascontiguousarray(lines, np.int16)  # differences run along the first axis
        # The difference of two neighbouring means of WINDOW values is that of the values at their ends, by WINDOW.
        left = np.abs(values[WINDOW:] - values[:-WINDOW])
        middle = values[WINDOW // 2 : WINDOW // 2 + len(left) + 1]
        sharp = np.abs(middle[1:] - middle[:-1])
        total = WINDOW * int(sharp.sum())
        found.append(int(np.minimum(WINDOW * sharp, left).sum()) / total if total else 0.0)
    return max(found)
