"""Statistics of every image of a source: file header, brightness, blur and near duplicates.

Each content is decoded once, to at most 128x128 gray pixels, of which 32x32 are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightline import preprocessing, process
from sightline.callbacks import Progress, no_progress
from sightline.data.cache import ReadImage
from sightline.data.checks import perceptual_hash
from sightline.data.checks.near_duplicates import group_near_duplicates
from sightline.data.types import Index
from sightline.errors import ImageError
from sightline.preprocessing import ImageHeader, PreprocessingSpec

INSPECTION_SIDE = 128  # pixels; the size at which images are inspected
MAX_BLANK_RANGE = 8  # gray levels: an image whose 1st and 99th percentiles are this close is blank
BLUR_WINDOW = 9  # width in pixels of the additional blur in the blur metric
IMAGES_PER_TASK = 32  # images per task


@dataclass(frozen=True, slots=True)
class ImageStats:
    """Statistics of one image.

    `header` is None for arrays and for undecodable files. `gray_levels` are the 1st, 5th, 50th, 95th and 99th
    percentiles of the gray levels, 0..255. `measure_blur` ranges from 0 (sharp) to 1. `error` says why the image cannot
    be decoded, in which case all other fields are zero.
    """

    header: ImageHeader | None
    gray_levels: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    blur: float = 0.0
    error: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether the image has practically a single tone."""
        return not self.error and self.gray_levels[4] - self.gray_levels[0] <= MAX_BLANK_RANGE


@dataclass(frozen=True, slots=True)
class DatasetStats:
    """Statistics of the images of an index, by the sha256 of their content.

    `near_duplicates` maps each sha256 to the smallest sha256 of its group of near duplicates; a content without near
    duplicates is a group of its own. `hashes` are perceptual ones, of 64 bits.
    """

    images: dict[str, ImageStats]
    near_duplicates: dict[str, str]
    hashes: dict[str, int] = field(default_factory=dict)


def compute_image_stats(
    index: Index, progress: Progress = no_progress, threads: int | None = None, spec: PreprocessingSpec | None = None
) -> DatasetStats:
    """Compute statistics of every image of `index`, each content once, in threads, decoding with the spec `spec`."""
    spec = spec or PreprocessingSpec()
    first_position = {index.images[i].sha256: i for i in reversed(range(len(index.images)))}
    contents = sorted(first_position)
    stats: list[ImageStats] = []
    small: list[NDArray[np.uint8]] = []
    starts = range(0, len(contents), IMAGES_PER_TASK)

    def inspect_chunk(start: int) -> list[tuple[ImageStats, NDArray[np.uint8]]]:
        return [_inspect(index.read, first_position[sha], spec) for sha in contents[start : start + IMAGES_PER_TASK]]

    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for results in pool.map(inspect_chunk, starts):
            stats += [look for look, _ in results]
            small.append(np.stack([tiny for _, tiny in results]))
            progress("inspecting", len(stats), len(contents))
    informative = np.array([i for i, look in enumerate(stats) if not look.error and not look.is_blank], np.int64)
    near_duplicates = dict(zip(contents, contents, strict=True))
    if len(informative):
        near_duplicates |= group_by_name([contents[i] for i in informative], np.concatenate(small)[informative])
    hashes = perceptual_hash.perceptual_hash(np.concatenate(small)).tolist() if small else []
    by_content = dict(zip(contents, stats, strict=True))
    return DatasetStats(by_content, near_duplicates, dict(zip(contents, hashes, strict=True)))


def group_by_name(names: Sequence[str], small: NDArray[np.uint8]) -> dict[str, str]:
    """Map each of the sorted `names` to the smallest name in its group of near duplicates.

    `small` are their gray images, uint8 [N, 32, 32], from `shrink_gray`.
    """
    leaders = group_near_duplicates(perceptual_hash.perceptual_hash(small), small)
    return {name: names[leader] for name, leader in zip(names, leaders.tolist(), strict=True)}


def _inspect(read: ReadImage, i: int, spec: PreprocessingSpec) -> tuple[ImageStats, NDArray[np.uint8]]:
    """Return the statistics of image `i` and its 32x32 gray pixels."""
    header = None
    try:
        content = read(i)
        if isinstance(content, np.ndarray):
            height, width = content.shape[:2]
            gray = spec.with_size(min(height, INSPECTION_SIDE), min(width, INSPECTION_SIDE), 1).apply(content)[..., 0]
        else:
            header, gray = preprocessing.decode_preview(content, INSPECTION_SIDE, spec)
    except ImageError as error:
        return ImageStats(None, error=str(error)), np.zeros((perceptual_hash.SIDE, perceptual_hash.SIDE), np.uint8)
    image = Image.fromarray(gray)
    cumulative = np.cumsum(image.histogram()) / gray.size
    p1, p5, p50, p95, p99 = (int(x) for x in np.searchsorted(cumulative, (0.01, 0.05, 0.5, 0.95, 0.99)))
    return ImageStats(header, (p1, p5, p50, p95, p99), measure_blur(gray)), shrink_gray(image)


def shrink_gray(image: Image.Image) -> NDArray[np.uint8]:
    """Return the image as the 32x32 gray pixels, uint8, that are compared to find near duplicates."""
    return np.asarray(
        image.convert("L").resize((perceptual_hash.SIDE, perceptual_hash.SIDE), Image.Resampling.BILINEAR)
    )


def measure_blur(gray: NDArray[np.uint8]) -> float:
    """Return the blur of a gray image uint8 [H, W], 0..1, regardless of contrast; 0 if it is too small.

    This is the fraction of the differences between neighboring pixels that survives an additional blur, on the axis
    where it is larger (F. Crete et al., "The Blur Effect: Perception and Estimation with a New No-reference Perceptual
    Blur Metric", 2007).
    """
    if min(gray.shape) < INSPECTION_SIDE:
        return 0.0
    ratios = []
    for lines in (gray[::2].T, gray[:, ::2]):  # every other line is enough
        values = np.ascontiguousarray(lines, np.int16)  # differences run along the first axis
        # Two neighboring means of WINDOW values differ by the difference of their end values divided by WINDOW.
        blurred = np.abs(values[BLUR_WINDOW:] - values[:-BLUR_WINDOW])
        center = values[BLUR_WINDOW // 2 : BLUR_WINDOW // 2 + len(blurred) + 1]
        sharp = np.abs(center[1:] - center[:-1])
        total = BLUR_WINDOW * int(sharp.sum())
        ratios.append(int(np.minimum(BLUR_WINDOW * sharp, blurred).sum()) / total if total else 0.0)
    return max(ratios)
