"""Read the images of a log written by `feature_log`, even while a server is writing it."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, jsonio
from sightline.errors import DataError, ModelError, first_line
from sightline.inference.embeddings import ROWS, shorten_id
from sightline.inference.feature_log import (
    FEATURES,
    FILES,
    MAX_LINE,
    PROBABILITIES,
    START,
    LogHeader,
    LogLine,
    number_file,
    read_header,
)


@dataclass(frozen=True, slots=True, eq=False)
class LoggedImages:
    """Images from a log, in order: `features` float32 [N, F], `probabilities` float32 [N, K], ids and times (UTC).

    `quality` float64 [N] is the expected IoU of each mask, NaN for other models.
    """

    ids: tuple[str, ...]
    times: tuple[str, ...]
    features: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    quality: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


def read_log(
    path: Path, model: str, classes: Sequence[str], on_message: Callable[[str], None]
) -> Iterator[LoggedImages]:
    """Yield the images of the model with the id `model` in batches, oldest first, even while the log is written.

    `on_message` receives the number of files of other models that were left out. Raises `DataError` if the file is not
    a log, is damaged, or has no image of this model.
    """
    with ExitStack() as stack:
        files: list[tuple[Path, BufferedReader]] = []
        others: list[LogHeader] = []
        file_path = path
        try:
            for file_path, file in _open_files(path, stack):
                header = read_header(file)
                if header == LogHeader(model, tuple(classes)):
                    files.append((file_path, file))
                elif header is not None:
                    others.append(header)
        except (OSError, ValueError, ModelError) as error:
            file_path = getattr(error, "filename", None) or file_path
            reason = (getattr(error, "strerror", None) or first_line(error)).rstrip(".")
            raise DataError(
                f"{file_path} cannot be read as a log of features: {reason}. `sightline serve MODEL --log-features "
                "FILE` writes one."
            ) from error
        if not files and others:
            if all(header.model != model for header in others):
                raise DataError(
                    f"{path} is the log of another model ({shorten_id(others[0].model)}, not {shorten_id(model)}), and "
                    "the features of two models cannot be compared: give the model that was served."
                )
            raise DataError(f"{path} is the log of a model with other classes: give the model that was served.")
        if others:
            on_message(f"{len(others)} of the files of {path} are from another model and were left out")
        for file_path, file in reversed(files):
            yield from _read_images(file_path, file, LogHeader(model, tuple(classes)))


def _open_files(path: Path, stack: ExitStack) -> Iterator[tuple[Path, BufferedReader]]:
    """Yield each file of a log once, opened, newest first; raises `OSError` if there is none.

    Rotating a log only raises the numbers of its files, so none is missed when reading from the lowest number up.
    """
    inodes = set()
    for number in range(FILES):
        file_path = number_file(path, number)
        try:
            file = stack.enter_context(_io.open_regular(file_path))
        except FileNotFoundError:
            continue
        state = os.fstat(file.fileno())
        if (identity := (state.st_dev, state.st_ino)) not in inodes:  # otherwise the file was renamed in between
            inodes.add(identity)
            yield file_path, file
    if not inodes:
        stack.enter_context(_io.open_regular(path))


def _read_images(path: Path, file: BufferedReader, header: LogHeader) -> Iterator[LoggedImages]:
    lines, classes = _iter_lines(path, file, header.to_line()), len(header.classes)
    size = None
    while batch := [_parse_line(path, number, line, classes) for number, line in islice(lines, ROWS)]:
        ids, times, features, probabilities, quality = zip(*batch, strict=True)
        sizes = {len(row) for row in features} | ({size} if size else set())
        if len(sizes) > 1:
            raise DataError(f"{path} is damaged: its images have {' and '.join(map(str, sorted(sizes)))} features.")
        size = sizes.pop()
        yield LoggedImages(ids, times, np.stack(features), np.stack(probabilities), np.array(quality))


def _iter_lines(path: Path, file: BufferedReader, header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and text of each line that is an image; concatenated files have several headers."""
    for number in count(2):
        line = file.readline(MAX_LINE)
        if not line.endswith(b"\n"):  # the last line is still being written
            if len(line) == MAX_LINE:
                raise DataError(f"{path} is damaged: line {number} is longer than {MAX_LINE:,} bytes.")
            return
        if line.startswith(START) and line != header:
            raise DataError(f"{path} joins the logs of several models: line {number} starts that of another one.")
        if line != header:
            yield number, line


def _parse_line(
    path: Path, number: int, line: bytes, classes: int
) -> tuple[str, str, NDArray[np.float32], NDArray[np.float32], float]:
    try:
        values = jsonio.build(LogLine, jsonio.loads(line), "it")
        features, probabilities = _decode(values.features, FEATURES), _decode(values.probabilities, PROBABILITIES)
        is_valid = len(features) and len(probabilities) == classes
        if not is_valid or not np.isfinite(features).all() or not np.isfinite(probabilities).all():
            reason = (
                f"{len(features)} features and {len(probabilities)} probabilities, or NaN; expected {classes} classes"
            )
            raise ValueError(reason)  # noqa: TRY301  # as its parts raise
        if values.quality is not None and not 0 <= values.quality <= 1:
            raise ValueError(f"a quality of {values.quality}; expected 0 to 1")  # noqa: TRY301  # as its parts raise
    except (ValueError, ModelError) as error:
        raise DataError(f"{path} is damaged: line {number}: {first_line(error)}") from error
    return values.id, values.time, features, probabilities, math.nan if values.quality is None else values.quality


def _decode(text: str, dtype: np.dtype[Any]) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype).astype(np.float32)
