"""`explain`: heat maps of the evidence for a class, with figures and a faithfulness check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sightline import files
from sightline.errors import OutputError, PictureError, UsageError, suggest
from sightline.explanation import heat as heat_map
from sightline.explanation.check import check
from sightline.explanation.maps import Method, heat_maps, method_for
from sightline.explanation.result import Explanation, Region
from sightline.prediction.base import NOT_FINITE, Predictor, filled, suitable_batch_size
from sightline.prediction.stream import Item
from sightline.preprocess import Preprocess, inspect
from sightline.records import Progress, no_progress
from sightline.report.heat import explained
from sightline.workflow import signed

LARGEST = 2000  # maximum side of an image in a figure, in pixels; larger images are scaled down


@dataclass(frozen=True, slots=True)
class _Read:
    """One image: its content (encoded or in memory), its displayed size, and the model's input pixels."""

    content: Any
    width: int
    height: int
    pixels: NDArray[np.uint8]


def explain(
    predictor: Predictor,
    items: Sequence[Item],
    *,
    method: str | None = None,
    label: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Iterator[Explanation]:
    """Yield one `Explanation` per image, in order; for an unreadable image, one with its `error`.

    `method` is gradcam, gradcam++, occlusion or rise (None: gradcam, or occlusion for an exported model); `label` is
    the class to explain (None: the predicted class of each image). With `out`, a folder, a PNG file per image is
    written there. Raises `UsageError` for an unknown method or class, `OutputError` if the folder is not writable.
    """
    chosen = method_for(method, predictor)
    if label is not None and label not in predictor.classes:
        raise UsageError(f"The model has no class {label!r}.{suggest(label, predictor.classes)}")
    if out is not None:
        _make(out)
    return _explained(predictor, items, chosen, label, _Figures(out), seed, progress)


def _explained(
    predictor: Predictor,
    items: Sequence[Item],
    method: Method,
    label: str | None,
    figures: _Figures,
    seed: int,
    progress: Progress,
) -> Iterator[Explanation]:
    last, size = ("", 0), suitable_batch_size(predictor.preprocess)
    for start in range(0, len(items), size):
        found = [_read(predictor.preprocess, item) for item in items[start : start + size]]
        good = [one for one in found if not isinstance(one, str)]

        def advance(task: str, done: int, total: int, *, start: int = start, count: int = len(good)) -> None:
            nonlocal last
            each = total // count  # per image
            last = (task, len(items) * each)
            if start * each + done < last[1]:
                progress(task, start * each + done, last[1])

        answers = iter(_answers(predictor, good, method, label, seed, advance) if good else ())
        for item, one in zip(items[start : start + size], found, strict=False):
            if isinstance(one, str):
                yield Explanation(item.path, method, error=one)
            else:
                answer = replace(next(answers), path=item.path)
                yield figures.draw(answer, one, predictor.preprocess)
    if last[1]:
        progress(last[0], last[1], last[1])


def _read(preprocess: Preprocess, item: Item) -> _Read | str:
    try:
        content = item.read()
        if isinstance(content, bytes | bytearray | memoryview):
            header = inspect(content, preprocess.page, preprocess.max_megapixels)
            return _Read(content, header.width, header.height, preprocess.decode(content))
        pixels = preprocess.fit(content)
        if isinstance(content, Image.Image):
            width, height = ImageOps.exif_transpose(content).size
        else:
            height, width = content.shape[:2]
        return _Read(content, width, height, pixels)
    except PictureError as error:
        return str(error)


def _answers(
    predictor: Predictor, good: Sequence[_Read], method: Method, label: str | None, seed: int, progress: Progress
) -> Iterator[Explanation]:
    """Yield the explanations of the readable images, without path and figure."""
    pixels = np.stack([one.pixels for one in good])
    found = filled(predictor.probabilities, pixels, min(suitable_batch_size(predictor.preprocess), len(pixels)))
    sure = np.isfinite(found).all(1)
    best = np.where(sure, np.nan_to_num(found).argmax(1), 0)
    numbers = best if label is None else np.full(len(pixels), predictor.classes.index(label))
    maps = heat_maps(predictor, pixels, numbers, method, seed=seed, progress=progress)
    for one, row, number, fine, heat in zip(good, found, numbers.tolist(), sure, maps, strict=True):
        if not fine:
            yield Explanation("", method, error=NOT_FINITE)
            continue
        width, height = _shown(one)
        hottest = heat_map.region(heat_map.onto(heat, predictor.preprocess, width, height))
        yield Explanation(
            "",
            method,
            predictor.classes[number],
            float(row[number]),
            heat,
            hottest and _scaled(hottest, one.width / width, one.height / height),
            None if hottest is None else check(predictor, one.pixels, heat, number, float(row[number]), seed),
        )


def _shown(one: _Read) -> tuple[int, int]:
    """Return the width and height at which an image is drawn: its own, unless it is very large."""
    scale = min(1.0, LARGEST / max(one.width, one.height))
    return max(1, round(scale * one.width)), max(1, round(scale * one.height))


def _scaled(region: Region, across: float, down: float) -> Region:
    left, right = int(region.left * across), round(region.right * across)
    top, bottom = int(region.top * down), round(region.bottom * down)
    return Region(left, top, max(right, left + 1), max(bottom, top + 1), region.share)


def _make(folder: Path) -> None:
    files.refuse_links_in_run(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {folder} for the figures cannot be created: {error.strerror}. Choose another with --out."
        ) from error


class _Figures:
    """Draws explanations to a folder, each with a unique name; does nothing without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def draw(self, found: Explanation, one: _Read, preprocess: Preprocess) -> Explanation:
        """Draw the figure and return `found` with its path; raises `OutputError` if another file exists there."""
        if self._folder is None or found.heat is None:
            return found
        path = self._folder / self._name(found)
        if path.exists() and not signed.is_ours(path):
            raise OutputError(f"{path} exists and was not written by Sightline: choose another folder with --out.")
        width, height = _shown(one)
        original = preprocess.sized(height, width)
        encoded = isinstance(one.content, bytes | bytearray | memoryview)
        picture = original.decode(one.content) if encoded else original.fit(one.content)
        laid = heat_map.onto(found.heat, preprocess, width, height)
        seen, _ = preprocess.placement(width, height)
        hottest = found.region and _scaled(found.region, width / one.width, height / one.height)
        signed.save(path, explained(picture, laid, hottest, _title(found), _verdict(found), seen))
        return replace(found, figure=str(path))

    def _name(self, found: Explanation) -> str:
        base = files.stem(Path(found.path).stem).strip("-") or "picture"
        stem = name = f"{base}-{files.stem(str(found.label))}-{found.method}"
        number = 1
        while name in self._taken:
            number += 1
            name = f"{stem}-{number}"
        self._taken.add(name)
        return f"{name}.png"


def _title(found: Explanation) -> str:
    return f"{found.label}  {found.probability:.3f}  ({found.method})"


def _verdict(found: Explanation) -> str:
    if found.check is None or found.probability is None:
        return "no evidence for this class in the image"
    without, elsewhere = (found.probability - fall for fall in (found.check.fall, found.check.random_fall))
    return f"{without:.3f} with the hottest {found.check.hidden:.0%} masked, {elsewhere:.3f} with random masking"
