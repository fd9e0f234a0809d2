"""Predict a stream of images in order; threads decode ahead while the model runs."""

from __future__ import annotations

import glob
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import process
from sightline.config import LimitsConfig, resolve
from sightline.data.sources.filenames import is_hidden, is_picture_name
from sightline.data.sources.text import decode_text, has_mark
from sightline.data.stores import LIMITS, FolderStore, read_file
from sightline.errors import DataError, PictureError, UsageError
from sightline.prediction.base import NOT_FINITE, Predictor, filled, suitable_batch_size
from sightline.prediction.decide import decide, labels
from sightline.preprocess import Preprocess, find_format, inspect
from sightline.records import Candidate, Decision, Prediction, Thresholds

Decoded = NDArray[np.uint8] | str


@dataclass(frozen=True, slots=True)
class Item:
    """One image to predict: its path, and a function that reads its bytes or pixels."""

    path: str
    read: Callable[[], Any]


def file_limits(assignments: Sequence[str]) -> LimitsConfig:
    """Return the limits set by ``data.limits.file_mb=VALUE``; raises `UsageError` for any other setting."""
    for text in assignments:
        if not text.startswith("data.limits.file_mb="):
            raise UsageError(f"Only data.limits.file_mb can be set here, as data.limits.file_mb=512, not {text!r}.")
    return resolve(assignments=assignments).data.limits if assignments else LIMITS


def expand(
    arguments: Sequence[str | Path], stdin: Callable[[], bytes] | None = None, limits: LimitsConfig = LIMITS
) -> Iterator[Item]:
    """Yield the images that files, folders (all images below, sorted), globs and ``-`` (`stdin`) refer to.

    Standard input is the bytes of one image, or a list of paths, one per line. A path that does not exist is yielded
    too and becomes an unreadable row. Raises `DataError` for a folder without images or a glob without matches.
    """
    for argument in arguments:
        text = str(argument)
        if text == "-" and stdin is not None:
            yield from _from_stdin(stdin(), limits)
        elif Path(text).is_dir():
            yield from _from_folder(text, limits)
        elif not Path(text).exists() and glob.has_magic(text):
            found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207  # also absolute patterns
            if not found:
                raise DataError(f"No file matches {text!r}.")
            yield from expand(found, limits=limits)
        else:
            yield Item(text, partial(read_file, Path(text), limits, find_format))


def peek(items: Iterator[Item]) -> list[Item]:
    """Take the first item, if any, from `items`, so that its errors are raised early."""
    return list(islice(items, 1))


def _from_folder(folder: str, limits: LimitsConfig) -> Iterator[Item]:
    """Yield the images below a folder as indexing does: links are followed, other files are tried by content."""
    store = FolderStore(Path(folder), limits)
    empty = True
    for key in store.keys():  # noqa: SIM118  # not a dict
        if is_hidden(key) or not (is_picture_name(key) or _is_image(store, key)):
            continue
        empty = False
        yield Item(str(Path(folder, key)), partial(store.read, key, find_format))
    if empty:
        raise DataError(f"The folder {folder} contains no images.")


def _is_image(store: FolderStore, key: str) -> bool:
    try:
        inspect(store.read(key, find_format))
    except PictureError:
        return False
    return True


def _from_stdin(data: bytes, limits: LimitsConfig) -> Iterator[Item]:
    try:
        inspect(data)
        image = True
    except PictureError:
        image = b"\0" in data and not has_mark(data)  # a damaged image: only UTF-16 text contains zero bytes
    if image:
        yield Item("-", lambda: data)
    else:
        yield from expand([line.strip() for line in _list(data).split("\n") if line.strip()], limits=limits)


def _list(data: bytes) -> str:
    """Decode a list of paths: in the encoding of its byte order mark, else as UTF-8 with escapes, like paths."""
    if has_mark(data):
        try:
            return decode_text(data)
        except ValueError as error:
            raise DataError(f"The list on standard input cannot be read as text: {error}. Save it as UTF-8.") from error
    return data.decode("utf-8", "surrogateescape")


def as_items(pictures: Iterable[Any], limits: LimitsConfig = LIMITS) -> Iterator[Item]:
    """Yield items for paths, encoded bytes, uint8 arrays [H, W(, C)] or Pillow images, in any mixture."""
    for number, picture in enumerate(pictures):
        if isinstance(picture, str | Path):
            yield from expand([picture], limits=limits)
        else:
            yield Item(f"[{number}]", lambda value=picture: value)  # type: ignore[misc]  # mypy cannot infer a default


def predict(
    predictor: Predictor,
    items: Iterable[Item],
    *,
    top: int = 5,
    batch_size: int | None = None,
    threads: int | None = None,
    thresholds: Thresholds | None = None,
) -> Iterator[Prediction]:
    """Yield one `Prediction` for each item, in order; `error` is the reason if there is none.

    That is the case if the image cannot be read or the model returns NaN or infinity. `batch_size` None: one that suits
    the input size. With `thresholds`, each prediction has a `Decision`.
    """
    size = batch_size or suitable_batch_size(predictor.preprocess)
    workers = threads or process.cores()
    queue: deque[tuple[str, Future[Decoded]]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(workers) as pool:

        def fill() -> None:
            for item in islice(source, 3 * size - len(queue)):  # at most three batches ahead
                queue.append((item.path, pool.submit(_decode, predictor.preprocess, item)))

        fill()
        largest = 0
        while queue:
            taken = [queue.popleft() for _ in range(min(size, len(queue)))]
            decoded = [(path, future.result()) for path, future in taken]
            fill()
            largest = max(largest, len(taken))
            yield from _answer(predictor, decoded, top, largest, thresholds)


def _decode(preprocess: Preprocess, item: Item) -> Decoded:
    try:
        content = item.read()
        if isinstance(content, bytes | bytearray | memoryview):
            return preprocess.decode(content)
        return preprocess.fit(content)
    except PictureError as error:
        return str(error)


def _answer(
    predictor: Predictor,
    decoded: Sequence[tuple[str, Decoded]],
    top: int,
    size: int,
    thresholds: Thresholds | None,
) -> Iterator[Prediction]:
    good = [pixels for _, pixels in decoded if not isinstance(pixels, str)]
    answers = iter(_answers(predictor, np.stack(good), size, thresholds) if good else ())
    for path, pixels in decoded:
        if isinstance(pixels, str):
            yield Prediction(path, error=pixels)
            continue
        row, decision = next(answers)
        if not np.isfinite(row).all():
            yield Prediction(path, error=NOT_FINITE)
            continue
        order = np.argsort(-row, kind="stable")
        first = labels(row[None], predictor.classes, thresholds)[0]
        best = np.concatenate([[first], order[order != first]])[:top]
        candidates = tuple(Candidate(predictor.classes[i], float(row[i])) for i in best)
        yield Prediction(path, candidates[0].label, candidates[0].probability, candidates, decision=decision)


def _answers(
    predictor: Predictor, pixels: NDArray[np.uint8], size: int, thresholds: Thresholds | None
) -> list[tuple[NDArray[np.float32], Decision | None]]:
    """Return the probabilities [K] and the decision for each image."""
    if thresholds is None:
        return [(row, None) for row in filled(predictor.probabilities, pixels, size)]

    def both(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = predictor.outputs(rows)
        return np.stack([found.probabilities, found.logits], 1)

    found = filled(both, pixels, size)  # [N, 2, K]
    decisions = decide(found[:, 0], found[:, 1], predictor.classes, thresholds)
    return list(zip(found[:, 0], decisions, strict=True))
