"""Decoded pixels on disk: each picture is decoded once, in threads, into one memory-mapped uint8 array.

A cache is a folder named by the hash of the pictures' hashes and the picture contract, with ``pixels.npy``
(uint8 [N, H, W, C]) and ``meta.json`` (checksums, and the reason of each picture that could not be decoded). It is
built under another name and renamed when complete, so two runs may build the same one at once; whoever ends second
takes the first one's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import files, jsonio, process
from sightline.errors import OutputError, PictureError, UsageError
from sightline.preprocess import Preprocess
from sightline.records import Progress, no_progress

SCHEMA = 1
CHUNK = 32  # pictures per decoding task and per checksum
VERIFY_BYTES = 1 << 30  # caches up to this size are verified whole when reopened, larger ones by an even sample
DEFAULT_LIMIT = 20 << 30

Read = Callable[[int], bytes | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded pictures: `array` uint8 [N, H, W, C], `failed` the reason for each row that holds no picture."""

    array: NDArray[np.uint8]
    failed: dict[int, str]
    hit: bool


def folder() -> Path:
    """Return ``$SIGHTLINE_CACHE``, or ``sightline`` in the user's cache folder."""
    chosen = os.environ.get("SIGHTLINE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "sightline"


def limit() -> int:
    """Return the most bytes that all caches together may take: ``$SIGHTLINE_CACHE_LIMIT`` or 20 GiB."""
    text = os.environ.get("SIGHTLINE_CACHE_LIMIT") or str(DEFAULT_LIMIT)
    if not text.isdecimal():
        raise UsageError(f"SIGHTLINE_CACHE_LIMIT is {text!r}: expected a number of bytes, such as {DEFAULT_LIMIT}.")
    return int(text)


def key(hashes: Sequence[str], preprocess: Preprocess) -> str:
    """Return the name of the cache for pictures with these hashes, in this order, under this contract."""
    text = jsonio.dumps([SCHEMA, preprocess.to_dict(), list(hashes)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def pixels(
    hashes: Sequence[str],
    read: Read,
    preprocess: Preprocess,
    *,
    keep: bool = True,
    progress: Progress = no_progress,
    threads: int | None = None,
) -> Pixels:
    """Return the decoded pixels of pictures with these content hashes, from the cache or by decoding them.

    `read(i)` gives the bytes or pixels of picture ``i``. With ``keep=False`` a temporary file is used, and gone at
    exit. Raises `OutputError` if the cache folder cannot be written or its disk is full.
    """
    root = folder() if keep else Path(tempfile.gettempdir())
    target = root / key(hashes, preprocess)
    if keep:
        found = _open(target, len(hashes), threads)
        if found is not None:
            return found
    shape = (len(hashes), preprocess.height, preprocess.width, preprocess.channels)
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=root))
    except OSError as error:
        raise OutputError(_advice(root, error, keep=keep)) from error
    try:
        if keep:
            make_room(root, int(np.prod(shape)))
        failed, checks = _build(work, shape, read, preprocess, progress, threads)
        if not keep:
            array = np.load(work / "pixels.npy", mmap_mode="r")
            return Pixels(array, failed, hit=False)  # the open map outlives its name, removed below
        _seal(work, shape, preprocess, failed, checks)
        publish(work, target)
    except OSError as error:
        raise OutputError(_advice(root, error, keep=keep)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    array = np.load(target / "pixels.npy", mmap_mode="r")
    return Pixels(array, failed, hit=False)


def _advice(root: Path, error: OSError, *, keep: bool) -> str:
    way = "name another folder in SIGHTLINE_CACHE, or use --no-cache" if keep else "or name another folder in TMPDIR"
    return (
        f"The cache of decoded pictures in {root} cannot be written: {error.strerror or error}. Free some space, {way}."
    )


def _build(
    work: Path,
    shape: tuple[int, int, int, int],
    read: Read,
    preprocess: Preprocess,
    progress: Progress,
    threads: int | None,
) -> tuple[dict[int, str], list[int]]:
    """Decode into a file; return why pictures failed, by number, and the checksum of each task's pictures.

    Written as any file, not through a map, whose pages the system hands out one by one: some percent of the time.
    """
    place = work / "pixels.npy"
    start = np.lib.format.open_memmap(place, mode="w+", dtype=np.uint8, shape=shape).offset  # the header's length
    with place.open("rb+") as file:
        files.reserve(file.fileno(), place.stat().st_size)
    failed: dict[int, str] = {}
    black = np.zeros(shape[1:], np.uint8)

    def decode(first: int) -> int:
        check = 0
        with place.open("rb+") as file:
            file.seek(start + first * black.nbytes)
            for i in range(first, min(first + CHUNK, shape[0])):
                try:
                    picture = _decoded(read(i), preprocess)
                except PictureError as error:
                    failed[i], picture = str(error), black
                file.write(picture.data)
                check = zlib.crc32(picture.data, check)
        return check

    checks = []
    starts = range(0, shape[0], CHUNK)
    with ThreadPoolExecutor(threads or process.cores()) as pool:
        try:
            for done, check in enumerate(pool.map(decode, starts), 1):
                checks.append(check)
                progress("decoding", min(done * CHUNK, shape[0]), shape[0])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed, checks


def _decoded(content: bytes | NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    return preprocess.fit(content) if isinstance(content, np.ndarray) else preprocess.decode(content)


def _seal(
    work: Path, shape: tuple[int, ...], preprocess: Preprocess, failed: dict[int, str], checks: list[int]
) -> None:
    """Bring the pixels to the disk, up to a tenth of the time of decoding them, then say what they are."""
    with (work / "pixels.npy").open("rb+") as file:
        os.fsync(file.fileno())
    meta = {"schema": SCHEMA, "shape": shape, "preprocess": preprocess.to_dict(), "checks": checks, "failed": failed}
    (work / "meta.json").write_text(jsonio.dumps(meta, ensure_ascii=True), encoding="utf-8")


def publish(work: Path, target: Path) -> None:
    """Give the complete cache `work` its name, unless another run was first with the same."""
    try:
        work.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # another run finished the same cache first: use that one


def _open(target: Path, count: int, threads: int | None) -> Pixels | None:
    """Open a complete cache; None where there is none or where it does not match its checksums (it is removed)."""
    with suppress(Exception):  # NumPy and json raise all kinds for a damaged file; any of them means to build it anew
        meta: dict[str, Any] = jsonio.loads((target / "meta.json").read_text(encoding="utf-8"))
        array: NDArray[np.uint8] = np.lib.format.open_memmap(target / "pixels.npy", mode="r")
        failed = {int(i): str(reason) for i, reason in meta["failed"].items()}
        fits = array.dtype == np.uint8 and list(array.shape) == meta["shape"] and len(array) == count
        if fits and verified(array, meta["checks"], threads):
            with suppress(OSError):  # a cache that can only be read serves all the same
                os.utime(target)  # marks it as used lately, for make_room
            return Pixels(array, failed, hit=True)
    shutil.rmtree(target, ignore_errors=True)
    return None


def verified(array: NDArray[Any], checks: Sequence[int], threads: int | None) -> bool:
    """Tell whether the `CHUNK` rows behind each of `checks` have that checksum; of large arrays an even sample."""
    every = max(1, -(-array.nbytes // VERIFY_BYTES))
    chunks = range(0, len(checks), every)

    def good(i: int) -> bool:
        return zlib.crc32(array[i * CHUNK : (i + 1) * CHUNK].data) == checks[i]

    with ThreadPoolExecutor(threads or process.cores()) as pool:
        return len(checks) == -(-len(array) // CHUNK) and all(pool.map(good, chunks))


def make_room(root: Path, needed: int) -> None:
    """Remove the caches that were not used for the longest time until `needed` more bytes fit the limit."""
    day, most = 86_400, limit()
    caches = []
    for entry in root.iterdir():
        name = re.fullmatch(r"[0-9a-f]{32}(\.part-.*)?", entry.name)  # nothing else here is ours to remove
        if name is None or entry.is_symlink():
            continue
        with suppress(OSError):  # another run has renamed or removed it meanwhile
            age = time.time() - entry.stat().st_mtime
            if name[1] is None:
                caches.append((age, sum(file.stat().st_size for file in entry.glob("*.npy")), entry))
            elif age > day:  # left behind by a run that was killed
                shutil.rmtree(entry, ignore_errors=True)
    total = needed + sum(size for _, size, _ in caches)
    for _, size, entry in sorted(caches, key=lambda c: -c[0]):
        if total <= most:
            return
        shutil.rmtree(entry, ignore_errors=True)
        total -= size
