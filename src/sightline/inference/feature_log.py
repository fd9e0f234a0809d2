"""A server's log of model outputs: the features and probabilities of each image, not the image itself.

    FILE      the newest images; FILE.1, FILE.2, ... have older ones. Each file is JSON lines in UTF-8.

The first line of a file identifies the model; each other line is an image. Numbers are little-endian, in base64:

    {"schema": 1, "log": "features", "model": "...", "classes": ["cat", "dog"]}
    {"id": "9f0c...", "time": "2026-11-26T21:52:19Z", "features": "<float16 [F]>", "probabilities": "<float32 [K]>"}

For segmentation, probabilities are means over the pixels, and a line has ``quality``, the expected IoU of the mask. Ids
are random. A last line without a line feed is incomplete.
"""

from __future__ import annotations

import base64
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _locks, jsonio
from sightline.errors import ModelError, OutputError, first_line

SCHEMA = 1
FILES = 4  # number of files of a log: the oldest quarter is dropped at a time
MAX_WAITING = 4096  # limit on images waiting to be written; further images are dropped
MAX_LINE = 1 << 24  # bytes per line
OWNER_ONLY = 0o600  # features reveal part of what an image shows
START = b'{"schema": '
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")  # gzip, zstd, xz, bzip2: from logrotate
FEATURES, PROBABILITIES = np.dtype("<f2"), np.dtype("<f4")
_LOG = logging.getLogger(__name__)

AddImage = Callable[[NDArray[np.float32], NDArray[np.float32], float | None], str]
"""Logs the features [F] and probabilities [K] of an image, and the expected IoU of its mask if any; returns its id."""


def round_features(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return features as stored in a log: rounded to float16, as float32 of the same shape."""
    limit = float(np.finfo(np.float16).max)
    rounded: NDArray[np.float32] = np.clip(features, -limit, limit).astype(np.float16).astype(np.float32)
    return rounded


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line of a file: the id of the model (see `inference.embeddings`) and its classes."""

    model: str
    classes: tuple[str, ...]
    schema: int = SCHEMA
    log: Literal["features"] = "features"

    def to_line(self) -> bytes:
        """Return the header as a line."""
        return _format_object(self, "schema", "log", "model", "classes")

    @classmethod
    def from_line(cls, line: bytes) -> LogHeader:
        """Parse the header from a line; raises `ValueError` or `ModelError` if it is not one."""
        if line.startswith(COMPRESSED):
            raise ValueError("it is compressed: unpack it first, as `gunzip` does for gzip")
        if not line.startswith(START) or not line.endswith(b"\n"):
            raise ValueError("its first line does not state that it is a log of features")
        header = jsonio.build(cls, jsonio.loads(line), "its first line")
        if header.schema != SCHEMA:
            raise ValueError(f"it has schema {header.schema}, and this version reads schema {SCHEMA} only")
        return header


@dataclass(frozen=True, slots=True)
class LogLine:
    """The line of an image: its id, the time of its prediction, its features and probabilities in base64.

    The quality is the expected IoU of a mask.
    """

    id: str
    time: str
    features: str
    probabilities: str
    quality: float | None = None


def _format_object(value: Any, *names: str) -> bytes:
    return jsonio.encode_text(jsonio.dumps({name: getattr(value, name) for name in names}) + "\n")


class FeatureLog:
    """Writes a log in a thread of its own: `add` never blocks, not even on the disk.

    The files take up at most `max_bytes` bytes; beyond that, the oldest quarter is dropped. Images that cannot be
    written, for instance because the disk is full, are dropped too, and counted in `dropped`. The log of another model
    is renamed to ``FILE.1``, even when a server replaces its model (`use_model`). Only one process at a time can write
    to a log.
    """

    def __init__(self, path: Path, model: str, classes: Sequence[str], max_bytes: int) -> None:
        """Open the log at `path`; `model` is the id of the model.

        Raises `OutputError` if one of the files is not a log of Sightline's, or cannot be written.
        """
        self.path, self.dropped = path, 0
        self._header, self._file_bytes = LogHeader(model, tuple(classes)), max_bytes // FILES
        self._is_failing = False
        self._queue: queue.Queue[_WaitingImage | None] = queue.Queue(MAX_WAITING)
        self._generation = self._latest = 0  # model whose images are being written, and the newest model
        if path.is_dir():
            raise OutputError(f"The log {path} cannot be written: it is a folder. Name a file in it.")
        _io.refuse_links_in_run(path.parent)
        with ExitStack() as stack:
            stack.enter_context(_locks.hold_lock(path.with_name(f"{path.name}.lock"), f"The log {path}"))
            self._file = self._open()
            self._lock = stack.pop_all()
        self._thread = threading.Thread(target=self._run, name="feature log", daemon=True)
        self._thread.start()

    def add(
        self, features: NDArray[np.float32], probabilities: NDArray[np.float32], quality: float | None = None
    ) -> str:
        """Log an image of the first model, and return its id; see `AddImage`."""
        return self._add(self._header, 0, features, probabilities, quality)

    def use_model(self, model: str, classes: Sequence[str]) -> AddImage:
        """Return the function that logs an image of a model that replaces the previous one.

        Its first image starts a new file, unless the log is of the same model; later images of the previous model are
        dropped.
        """
        self._latest += 1
        return partial(self._add, LogHeader(model, tuple(classes)), self._latest)

    def _add(
        self,
        header: LogHeader,
        generation: int,
        features: NDArray[np.float32],
        probabilities: NDArray[np.float32],
        quality: float | None,
    ) -> str:
        image = _WaitingImage(features, probabilities, quality, header, generation)
        try:
            self._queue.put_nowait(image)
        except queue.Full:
            self.dropped += 1
        return image.id

    def close(self) -> None:
        """Write the waiting images, and release the files."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()
        self._lock.close()

    def _run(self) -> None:
        while (image := self._queue.get()) is not None:
            if image.generation < self._generation:
                self.dropped += 1
                continue
            try:
                if image.generation > self._generation:
                    self._switch(image)
                self._write(image.to_line())
                self._is_failing = False
            except OSError as error:
                self.dropped += 1
                if not self._is_failing:
                    _LOG.error("%s cannot be written: %s. Images are not logged.", self.path, error.strerror or error)
                self._is_failing = True

    def _write(self, line: bytes) -> None:
        self._follow_name()
        end = os.fstat(self._file.fileno()).st_size
        if not end:  # another program has truncated it
            end = _append(self._file, self._header.to_line(), 0)
        if end + len(line) > self._file_bytes and end > len(self._header.to_line()):
            self._rotate()
            end = os.fstat(self._file.fileno()).st_size
        _append(self._file, line, end)

    def _follow_name(self) -> None:
        """Start a new file if another program has moved or deleted the old one, or replaced it with an empty file."""
        with suppress(FileNotFoundError):
            state = self.path.stat()
            if state.st_size or os.path.samestat(state, os.fstat(self._file.fileno())):
                return
        self._reopen()

    def _reopen(self) -> None:
        """Switch to the file that now has the name of the log; on an error, keep writing to the old one."""
        if not os.fstat(self._file.fileno()).st_nlink:  # deleted, but it occupies space on a full disk while it is open
            os.ftruncate(self._file.fileno(), 0)
        old, self._file = self._file, self._create_or_continue()
        old.close()

    def _switch(self, image: _WaitingImage) -> None:
        """Switch to the model of `image`; on an error, keep the previous model."""
        before, self._header = self._header, image.header
        try:
            if before != self._header:
                self._rotate()
        except BaseException:
            self._header = before
            raise
        self._generation = image.generation

    def _open(self) -> IO[bytes]:
        """Open the log for writing at its end; raises `OutputError`."""
        path = self.path
        try:
            for path in list_files(self.path):
                with _io.open_regular(path) as file:
                    header = read_header(file)
                if path == self.path and header not in (None, self._header):
                    _shift(self.path)
            return self._create_or_continue()
        except (ValueError, ModelError) as error:
            reason = first_line(error).rstrip(".")
            raise OutputError(f"{path} exists and is not a log of features ({reason}): name another file.") from error
        except OSError as error:
            raise OutputError(
                f"The log {self.path} cannot be written: {error.strerror or error}. Check its folder and its "
                "permissions, or name another file."
            ) from error

    def _create_or_continue(self) -> IO[bytes]:
        file = _io.open_in_place(self.path, new=True)
        try:
            if not os.fstat(file.fileno()).st_size:
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), OWNER_ONLY)
                _append(file, self._header.to_line(), 0)
            else:
                _cut_incomplete_line(file)
        except BaseException:
            file.close()
            raise
        return file

    def _rotate(self) -> None:
        """Start a new file; on an error, keep writing to the old one if possible."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):  # not if the last try failed halfway
                _shift(self.path)
        self._reopen()


@dataclass(frozen=True, slots=True, eq=False)
class _WaitingImage:
    features: NDArray[Any]
    probabilities: NDArray[Any]
    quality: float | None
    header: LogHeader
    generation: int
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_line(self) -> bytes:
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        features = _encode(round_features(self.features).astype(FEATURES))
        line = LogLine(self.id, time, features, _encode(self.probabilities.astype(PROBABILITIES)), self.quality)
        names = ("id", "time", "features", "probabilities")
        return _format_object(line, *names, *(() if self.quality is None else ("quality",)))


def _encode(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _append(file: IO[bytes], line: bytes, end: int) -> int:
    """Write a line at `end`, completely or not at all, and return the new end."""
    descriptor, written = file.fileno(), 0
    try:
        os.lseek(descriptor, end, os.SEEK_SET)
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, end)
        raise
    return end + written


def _cut_incomplete_line(file: IO[bytes]) -> None:
    """Remove an incomplete last line, left by a killed process."""
    start = end = file.seek(0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        start = max(0, start - MAX_LINE)
        file.seek(start)
        tail = file.read(end - start)
    if not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def number_file(path: Path, number: int) -> Path:
    """Return the path of file `number` of the log, from 0, the newest, to `FILES` - 1, the oldest."""
    return path.parent / f"{path.name}.{number}" if number else path


def _shift(path: Path) -> None:
    """Rename FILE to FILE.1, FILE.1 to FILE.2, and so on; the last file is overwritten."""
    for number in range(FILES - 1, 0, -1):
        with suppress(FileNotFoundError):
            number_file(path, number - 1).replace(number_file(path, number))


def list_files(path: Path) -> list[Path]:
    """Return the existing files of the log, newest first."""
    return [file for number in range(FILES) if os.path.lexists(file := number_file(path, number))]


def read_header(file: BufferedReader) -> LogHeader | None:
    """Return the header of a file; None for an empty file, which was just created."""
    line = file.readline(MAX_LINE)
    return LogHeader.from_line(line) if line else None
