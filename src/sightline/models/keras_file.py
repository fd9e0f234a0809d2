"""Limits on the size of a ``.keras`` file, checked before Keras reads it.

Such a file is a zip of two JSON files and one HDF5 file, which Keras stores uncompressed. An untrusted file may be
compressed and fill memory when read: JSON full of spaces, or weights of an absurd shape.
"""

from __future__ import annotations

import io
import math
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sightline import _io, _packed, backend, jsonio
from sightline._keras.graphs import allocate, shapes_only
from sightline.errors import ModelError
from sightline.models import keras_h5

MAX_MEMBER_BYTES = {"config.json": 64 << 20, "metadata.json": 1 << 20, "model.weights.h5": 16 << 30}
"""The members of the zip, and the maximum size of each in bytes."""
_MIN_MEMBER_LIMIT = 1 << 20  # bytes that any member may decompress to


@contextmanager
def open_keras_file(path: Path) -> Iterator[Path]:
    """Check a ``.keras`` file, and yield a name of the checked file for Keras to open; raises `ModelError`."""
    try:
        file = _io.open_regular(path)
    except OSError as error:
        raise ModelError(f"The model {path} cannot be loaded: {error}. Train it again.") from error
    with file, _io.name_open_file(file, path) as name:
        _check(file, path)
        yield name


def read_shapes(path: Path) -> list[tuple[int, ...]]:
    """Return the shapes of the weights in a checked ``.keras`` file."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        return keras_h5.read_shapes(_open_member(file, archive.getinfo("model.weights.h5")))


def read_config(path: Path) -> dict[str, Any]:
    """Return Keras' configuration of the network in a checked ``.keras`` file, {} if it has none."""
    with suppress(ValueError, KeyError, TypeError), zipfile.ZipFile(path) as archive:
        return dict(jsonio.loads(archive.read("config.json"))["config"])
    return {}


def drop_keys(config: Any, *names: str) -> Any:
    """Return a Keras layer configuration without the keys `names` at any level.

    Drop ``compile_config`` before building with shapes only: an optimizer has variables, which have values.
    """
    if isinstance(config, dict):
        return {key: drop_keys(value, *names) for key, value in config.items() if key not in names}
    return [drop_keys(value, *names) for value in config] if isinstance(config, list) else config


def read_model(path: Path) -> Any:
    """Return the uncompiled model in a checked ``.keras`` file, loaded in Keras' safe mode.

    Raises `ValueError` before allocation if its layers have more weights than the file contains: Keras' own function
    allocates all weights before reading any, and a layer of a million units would fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        config = jsonio.loads(archive.read("config.json"))
    config = drop_keys(config, "compile_config", "lora_rank", "lora_alpha")  # LoRA is merged into the stored kernels
    keras = backend.keras()  # before `shapes_only`, which would import it on Keras' default backend, with its messages
    with shapes_only():
        model: Any = keras.saving.deserialize_keras_object(config, safe_mode=True)
    count, stored = (sum(map(math.prod, shapes)) for shapes in ([v.shape for v in model.weights], read_shapes(path)))
    if count > stored:
        raise ValueError(f"its layers have {count:,} weights, and it holds {stored:,}")
    allocate(model)
    load_weights(model, path)
    return model


def load_weights(model: Any, path: Path) -> None:
    """Load the weights of a checked ``.keras`` file.

    They are copied out of the zip first: to seek backwards inside it, Keras would read everything before the position
    again. If there is no room for the copy, as in the small ``/tmp`` of a container, Keras reads the zip.
    """
    with tempfile.TemporaryDirectory(prefix="sightline-") as folder:
        source = str(path)
        with suppress(OSError), zipfile.ZipFile(path) as archive:
            source = archive.extract("model.weights.h5", folder)
        model.load_weights(source)


def check_keras_file(path: Path) -> None:
    """Raise `ModelError` for a ``.keras`` file that decompresses to more than its size or has other members."""
    with open_keras_file(path):
        pass


def _check(file: IO[bytes], path: Path) -> None:
    try:
        with _packed.open_zip(file) as archive:
            for info in archive.infolist():
                maximum = MAX_MEMBER_BYTES.get(info.filename)
                if maximum is None:
                    raise ModelError(f"The model {path} contains {info.filename!r}, which Sightline never writes.")
                if info.file_size > min(maximum, max(_MIN_MEMBER_LIMIT, info.compress_size)):
                    raise ModelError(
                        f"The model {path} cannot be used: {info.filename} decompresses from {info.compress_size:,} "
                        f"bytes to {info.file_size:,}. Train it again."
                    )
                if info.compress_type != zipfile.ZIP_STORED:  # Keras would read all of it, whatever its stated size
                    raise ModelError(
                        f"The model {path} cannot be used: {info.filename} is compressed, as Keras never writes it. "
                        "Train it again."
                    )
            weights = archive.getinfo("model.weights.h5")
            size = _measure_weights(_open_member(file, weights), path)
    except (OSError, KeyError, TypeError, *_packed.ZIP_ERRORS) as error:
        raise ModelError(f"The model {path} cannot be loaded: {error}. Train it again.") from error
    if size > weights.file_size:
        raise ModelError(
            f"The model {path} cannot be used: its weights take {size:,} bytes, more than the file contains."
        )


class _FileRange(io.RawIOBase):
    """A range of an open file as a file, for inspecting weights without reading them all."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(min(len(buffer), max(self._size - self._at, 0)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _open_member(file: IO[bytes], info: zipfile.ZipInfo) -> Any:
    """Return an uncompressed member of a zip as a file, without copying it."""
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    return _FileRange(file, info.header_offset + 30 + name + extra, info.file_size)


def _measure_weights(content: Any, path: Path) -> int:
    import h5py  # a dependency of Keras

    try:
        with h5py.File(content) as file:
            return keras_h5.measure_arrays(file)
    except ValueError as error:
        raise ModelError(f"The model {path} cannot be used: {error}. Train it again.") from error
