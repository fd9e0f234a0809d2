"""Pixel cache on disk: each image is decoded once, in threads, into one memory-mapped uint8 array.

A cache is a folder, named by a hash over the images' hashes and the preprocessing spec, with ``pixels.npy``
(uint8 [N, H, W, C]) and ``meta.json`` (checksums, and the reason for each image that could not be decoded). It is built
under a temporary name and renamed when complete, so two runs may build the same cache at once; the run that finishes
second uses the cache of the first.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed, jsonio, process
from sightline.callbacks import Progress, no_progress
from sightline.errors import ImageError, OutputError, UsageError
from sightline.preprocessing import PreprocessingSpec

SCHEMA = 1
CHUNK_ROWS = 32  # images per decoding task and per checksum
# caches up to this size are verified in full when opened, larger ones by an evenly spaced sample
VERIFY_BYTES = 1 << 30
RELEASED_CHUNKS = 256  # chunks verified before a file's memory is released: 40 MB for 1,280 features per image
DEFAULT_LIMIT_BYTES = 20 << 30
_ENTRY = re.compile(r"[0-9a-f]{32}|remote/[0-9a-f]{64}")  # never remove anything else
_UNFINISHED = re.compile(r"[0-9a-f]{32}\.part-.*|remote/download\d+-\d+")
_ABANDONED = 24 * 3600  # seconds without a change after which an unfinished entry is treated as abandoned

ReadImage = Callable[[int], bytes | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class CachedPixels:
    """Decoded images: `array` is uint8 [N, H, W, C]; `failures` maps each row without an image to the reason.

    `hit` is true if they came from an existing cache.
    """

    array: NDArray[np.uint8]
    failures: dict[int, str]
    hit: bool


@contextmanager
def explain_cache_failure(folder: Path, *, keep: bool = True) -> Iterator[None]:
    """Raise `OutputError` if the cache folder, or without `keep` the folder of temporary files, cannot be written."""
    try:
        yield
    except OSError as error:
        place, variable = ("The cache folder", "SIGHTLINE_CACHE") if keep else ("The temporary folder", "TMPDIR")
        raise OutputError(
            f"{place} {folder} cannot be written: {error.strerror or error}. Free some space, or set "
            f"{variable} to another folder."
        ) from error


def cache_folder() -> Path:
    """Return the cache folder: ``$SIGHTLINE_CACHE``, or ``sightline`` in the user's cache folder."""
    override = os.environ.get("SIGHTLINE_CACHE")
    if override:
        return _io.expand_home(override)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else process.find_home() / ".cache") / "sightline"


def size_limit() -> int:
    """Return the size limit of pixels, features and downloads: ``$SIGHTLINE_CACHE_LIMIT`` bytes, or 20 GiB."""
    text = os.environ.get("SIGHTLINE_CACHE_LIMIT") or str(DEFAULT_LIMIT_BYTES)
    if not text.isdecimal():
        raise UsageError(
            f"SIGHTLINE_CACHE_LIMIT is {text!r}: expected a number of bytes, such as {DEFAULT_LIMIT_BYTES}."
        )
    return int(text)


def cache_key(hashes: Sequence[str], preprocess: PreprocessingSpec) -> str:
    """Return the name of the cache for images with these hashes, in this order, and this preprocessing spec."""
    text = jsonio.dumps([SCHEMA, preprocess.to_dict(), list(hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def load_pixels(
    hashes: Sequence[str],
    read: ReadImage,
    preprocess: PreprocessingSpec,
    *,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> CachedPixels:
    """Return the decoded pixels of images with these content hashes, from the cache or by decoding them.

    `read(i)` returns the bytes or pixels of image ``i``. With ``keep=False`` nothing is cached: a temporary file is
    used and removed. Raises `OutputError` if the cache folder is not writable or its disk is full.
    """
    root = cache_folder() if keep else Path(tempfile.gettempdir())
    target = root / cache_key(hashes, preprocess)
    if keep:
        cached = _open_cache(target, len(hashes), threads)
        if cached is not None:
            return cached
    shape = (len(hashes), preprocess.height, preprocess.width, preprocess.channels)
    with explain_cache_failure(root, keep=keep):
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=root))
        try:
            if keep:
                make_room(int(np.prod(shape)), hashes)
            failures, checks = _decode_all(temporary, shape, read, preprocess, progress, threads, keep=keep)
            if not keep:
                array = open_array(temporary / "pixels.npy")
                # the memory map stays valid after its file is removed below
                return CachedPixels(array, failures, hit=False)
            _finish(temporary, shape, preprocess, failures, checks)
            publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return CachedPixels(open_array(target / "pixels.npy"), failures, hit=False)


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map the array in a cache file; raises OSError or ValueError."""
    with _io.open_regular(path) as file:
        return _packed.map_array(file)


def _decode_all(
    temporary: Path,
    shape: tuple[int, int, int, int],
    read: ReadImage,
    preprocess: PreprocessingSpec,
    progress: Progress,
    threads: int | None,
    *,
    keep: bool,
) -> tuple[dict[int, str], list[int]]:
    """Decode into a file; return the reason for each failed image, by row, and with `keep` one checksum per task.

    Plain writes are a few percent faster than a memory map, whose pages the system allocates one by one.
    """
    path = temporary / "pixels.npy"
    offset = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).offset  # header length
    with path.open("rb+") as file:
        _io.reserve_space(file.fileno(), path.stat().st_size)
    failures: dict[int, str] = {}
    blank = np.zeros(shape[1:], np.uint8)

    def decode(first: int) -> int:
        checksum = 0
        with path.open("rb+") as file:
            file.seek(offset + first * blank.nbytes)
            for i in range(first, min(first + CHUNK_ROWS, shape[0])):
                try:
                    image = preprocess.convert(read(i))
                except ImageError as error:
                    failures[i], image = str(error), blank
                file.write(image.data)
                checksum = zlib.crc32(image.data, checksum) if keep else 0
        return checksum

    checks = []
    starts = range(0, shape[0], CHUNK_ROWS)
    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        for finished, check in enumerate(pool.map(decode, starts), 1):  # on exit, cancels pending tasks
            checks.append(check)
            progress("decoding", min(finished * CHUNK_ROWS, shape[0]), shape[0])
    return dict(sorted(failures.items())), checks  # threads fail in any order


def _finish(
    temporary: Path, shape: tuple[int, ...], preprocess: PreprocessingSpec, failures: dict[int, str], checks: list[int]
) -> None:
    """Flush the pixels to disk, which takes up to a tenth of the decoding time, then write ``meta.json``."""
    with (temporary / "pixels.npy").open("rb+") as file:
        os.fsync(file.fileno())
    meta = {"schema": SCHEMA, "shape": shape, "preprocess": preprocess.to_dict(), "checks": checks, "failed": failures}
    (temporary / "meta.json").write_text(jsonio.dumps(meta, ensure_ascii=True), encoding="utf-8")


def publish(temporary: Path, target: Path) -> None:
    """Rename the complete cache `temporary` to `target`, unless another run has already created it."""
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # another run finished the same cache first, so use that one


def _open_cache(target: Path, count: int, threads: int | None) -> CachedPixels | None:
    """Open a complete cache; return None if there is none. A damaged cache is removed, and None is returned."""
    if not target.is_dir():
        return None  # nothing is removed: another run may create it at this moment
    with suppress(Exception):  # NumPy and json raise many kinds of errors for damaged files; rebuild after any
        meta = jsonio.read_object(target / "meta.json", jsonio.MAX_FILE_BYTES)
        array: NDArray[np.uint8] = open_array(target / "pixels.npy")
        failures = {int(i): str(reason) for i, reason in meta["failed"].items()}
        matches = array.dtype == np.uint8 and list(array.shape) == meta["shape"] and len(array) == count
        if matches and checksums_match(array, meta["checks"], threads):
            with suppress(OSError):  # a read-only cache is usable too
                os.utime(target)  # marks it as recently used, for make_room
            return CachedPixels(array, failures, hit=True)
    shutil.rmtree(target, ignore_errors=True)
    return None


def checksums_match(array: NDArray[Any], checks: Sequence[int], threads: int | None) -> bool:
    """Return whether each chunk of `CHUNK_ROWS` rows has its checksum in `checks`; large arrays are sampled evenly."""
    stride = max(1, -(-array.nbytes // VERIFY_BYTES))
    chunks = range(0, len(checks), stride)

    def chunk_matches(i: int) -> bool:
        if i // stride % RELEASED_CHUNKS == 0:
            release_pages(array)
        return zlib.crc32(array[i * CHUNK_ROWS : (i + 1) * CHUNK_ROWS].data) == checks[i]

    with ThreadPoolExecutor(threads or process.count_cores()) as pool:
        return len(checks) == -(-len(array) // CHUNK_ROWS) and all(pool.map(chunk_matches, chunks))


def release_pages(array: NDArray[Any]) -> None:
    """Release the memory of an array mapped from a file; later reads load it from the file again."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        array.base.madvise(mmap.MADV_DONTNEED)


def make_room(needed: int, in_use: Iterable[str] = ()) -> None:
    """Remove the least recently used entries until `needed` more bytes fit, and the leftovers of killed runs.

    Downloads in progress in other processes count toward the limit. Downloaded files with the hashes `in_use` are kept
    even beyond the limit, because they would only be downloaded again.
    """
    root, limit, total, entries, names_in_use = cache_folder(), size_limit(), needed, [], set(in_use)
    for entry in [*root.glob("*"), *root.glob("remote/*")]:
        name = entry.relative_to(root).as_posix()
        with suppress(OSError):  # another run may have renamed or removed it
            state = entry.lstat()
            if _UNFINISHED.fullmatch(name) and state.st_mtime < time.time() - _ABANDONED:
                _remove(entry)
            elif _UNFINISHED.fullmatch(name) and entry.is_file():
                total += state.st_size
            elif _ENTRY.fullmatch(name) and not entry.is_symlink():
                size = sum(file.stat().st_size for file in entry.iterdir())
                total += size
                if entry.name not in names_in_use:
                    entries.append((state.st_mtime, entry, size))
    for _, entry, size in sorted(entries):
        if total <= limit:
            return
        _remove(entry)
        total -= 0 if entry.exists() else size  # on Windows, another process may be reading it


def _remove(entry: Path) -> None:
    with suppress(OutputError):  # another process is also removing it, or on Windows reading it
        _io.remove(entry)
