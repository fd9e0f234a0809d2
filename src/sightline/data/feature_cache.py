"""Feature cache: the outputs of frozen layers, kept on disk next to the decoded pixels, so later runs can reuse them.

Features are a folder in the cache, named by a hash over everything that determines them, with ``features.npy`` and
``meta.json``. While they are computed, rows are appended to ``<name>.part-begun/rows``, so that a killed run continues
where it stopped. The cache is best effort: if it is not writable, features are silently not cached.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _locks, jsonio
from sightline.data import cache
from sightline.data.batches import iterate_slices
from sightline.data.types import Subset
from sightline.errors import OutputError

_BLOCK_HEADER = struct.Struct("<QI")  # header of each block of rows: the index after its last row, and a checksum
MAX_MEMORY_BYTES = 1 << 29  # larger features go to a temporary file while they are computed
LIMIT_DIVISOR = 4  # features may take up to 1/LIMIT_DIVISOR of the cache limit


def feature_key(samples: Subset, *provenance: bytes | str | int | None) -> str:
    """Return the cache name for the features of `samples`: a hash over its pixels and all of `provenance`."""
    digest = hashlib.sha256(repr([cache.SCHEMA, samples.pixels.shape[1:], str(samples.pixels.dtype)]).encode())
    for item in provenance:
        digest.update(hashlib.sha256(item if isinstance(item, bytes) else repr(item).encode()).digest())
    for rows in iterate_slices(len(samples), cache.CHUNK_ROWS):
        digest.update(samples.take(rows).data)
    return digest.hexdigest()[:32]


def has_room(size: int) -> bool:
    """Return whether the cache limit allows features of `size` bytes."""
    return size * LIMIT_DIVISOR <= cache.size_limit()


def is_complete(name: str) -> bool:
    """Return whether the complete features `name` are in the cache."""
    return (cache.cache_folder() / name).exists()


def is_begun(name: str) -> bool:
    """Return whether the features `name`, or some of their rows, are in the cache."""
    return is_complete(name) or (cache.cache_folder() / f"{name}.part-begun").exists()


def load_features(name: str, threads: int | None = None) -> NDArray[np.float32] | None:
    """Return the features [N, ...] cached under `name`, memory-mapped; None if there are none or they are damaged."""
    target = cache.cache_folder() / name
    if not target.is_dir():
        return None  # nothing is removed, as in `cache`
    with suppress(Exception):  # after any error in the files, the features are computed again
        checks: list[int] = jsonio.read_object(target / "meta.json", jsonio.MAX_FILE_BYTES)["checks"]
        array: NDArray[np.float32] = cache.open_array(target / "features.npy")
        if array.dtype == np.float32 and cache.checksums_match(array, checks, threads):
            with suppress(OSError):  # a read-only cache is usable too
                os.utime(target)  # marks it as recently used
            return array
    shutil.rmtree(target, ignore_errors=True)
    return None


@contextmanager
def resumable_features(
    name: str | None, array: NDArray[np.float32]
) -> Iterator[tuple[int, Callable[[int, int], None]]]:
    """Store the rows of `array` while the block computes them, so that an interrupted run can continue.

    Yields the number of leading rows already restored into `array`, and a function to call with the start and stop of
    each block of rows computed after them. Nothing is stored if `name` is None, if the features are too large for
    the cache, or while another process computes the same features.
    """
    with ExitStack() as stack:
        partial = cache.cache_folder() / f"{name}.part-begun"
        file = _open_partial(partial, stack) if name is not None and has_room(array.nbytes) else None
        if file is None:
            yield 0, lambda _start, _stop: None
            return

        def store(start: int, stop: int) -> None:
            rows = np.ascontiguousarray(array[start:stop])
            with suppress(OSError, ValueError):  # after a failed write the file is closed and nothing more is stored
                try:
                    file.write(_BLOCK_HEADER.pack(stop, zlib.crc32(rows.data)))
                    file.write(rows.data)
                    file.flush()
                    os.utime(partial)  # so that make_room does not remove it as a leftover
                except OSError:
                    file.close()

        yield _restore_rows(file, array), store
    shutil.rmtree(partial, ignore_errors=True)


def _open_partial(partial: Path, stack: ExitStack) -> IO[bytes] | None:
    try:
        partial.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locks.hold_lock(partial / "lock", str(partial)))
        return stack.enter_context(_io.open_in_place(partial / "rows", new=True))
    except (OSError, OutputError):
        return None


def _restore_rows(file: IO[bytes], array: NDArray[np.float32]) -> int:
    """Read all complete rows into `array`, truncate the file after them, and return their number."""
    done = end = 0
    while len(head := file.read(_BLOCK_HEADER.size)) == _BLOCK_HEADER.size:
        stop, checksum = _BLOCK_HEADER.unpack(head)
        if not done < stop <= len(array):
            break
        data = file.read(array[done:stop].nbytes)
        if len(data) != array[done:stop].nbytes or zlib.crc32(data) != checksum:
            break
        array[done:stop] = np.frombuffer(data, np.float32).reshape(array[done:stop].shape)
        done, end = stop, file.tell()
    file.seek(end)
    file.truncate()
    return done


def save_features(name: str, array: NDArray[np.float32]) -> None:
    """Save `array` under `name`, if the disk and the cache limit have room for it."""
    root = cache.cache_folder()
    if not has_room(array.nbytes):
        return
    temporary: Path | None = None
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{name}.part-", dir=root))
        cache.make_room(array.nbytes)
        meta: dict[str, Any] = {"checks": _write_array(temporary / "features.npy", array)}
        (temporary / "meta.json").write_text(jsonio.dumps(meta, ensure_ascii=True), encoding="utf-8")
        cache.publish(temporary, root / name)
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_array(path: Path, array: NDArray[np.float32]) -> list[int]:
    """Write a file as `np.save` does, a block of rows at a time, and return the checksum of each."""
    checks = []
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        for number, start in enumerate(range(0, len(array), cache.CHUNK_ROWS)):
            if number % cache.RELEASED_CHUNKS == 0:
                cache.release_pages(array)
            rows = np.ascontiguousarray(array[start : start + cache.CHUNK_ROWS])
            checks.append(zlib.crc32(rows.data))
            file.write(rows.data)
    return checks


def allocate_features(shape: tuple[int, ...], limit: int | None = None) -> NDArray[np.float32]:
    """Return an array for features: in memory up to `limit` (or `MAX_MEMORY_BYTES`) bytes, else in a temporary file.

    Raises `OutputError` if there is no room for the file.
    """
    size = 4 * math.prod(shape)
    if size <= (MAX_MEMORY_BYTES if limit is None else limit):
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:  # unlinked; the memory map keeps it open
            _io.reserve_space(file.fileno(), size)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"The features of the frozen layers need {size / 2**30:.1f} GiB in {tempfile.gettempdir()} and cannot be "
            f"written: {error.strerror or error}. Free some space, or set TMPDIR to another folder."
        ) from error
