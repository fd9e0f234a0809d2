"""What frozen layers made of pictures, kept on disk beside the decoded pixels: a second run need not compute it again.

A folder of the cache named by the hash of all that made the features, with ``features.npy`` and ``meta.json``. It is
only a convenience: where it cannot be written, nothing is said and nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.data import cache
from sightline.records import Samples

SHARE = 4  # features may take this part of the cache's limit


def key(samples: Samples, *made_by: bytes | str | int | None) -> str:
    """Return the name for the features of `samples`, whose pixels are hashed, made by all that `made_by` says."""
    digest = hashlib.sha256(repr([cache.SCHEMA, samples.pixels.shape[1:], str(samples.pixels.dtype)]).encode())
    for part in made_by:
        digest.update(hashlib.sha256(part if isinstance(part, bytes) else repr(part).encode()).digest())
    for start in range(0, len(samples), cache.CHUNK):
        digest.update(samples.take(slice(start, start + cache.CHUNK)).data)
    return digest.hexdigest()[:32]


def load(name: str, threads: int | None = None) -> NDArray[np.float32] | None:
    """Return the features kept under `name`, mapped from the disk; None where there are none or they are damaged."""
    target = cache.folder() / name
    with suppress(Exception):  # whatever is wrong with the files means to compute the features anew
        checks: list[int] = json.loads((target / "meta.json").read_text(encoding="utf-8"))["checks"]
        array: NDArray[np.float32] = np.load(target / "features.npy", mmap_mode="r", allow_pickle=False)
        if array.dtype == np.float32 and cache.verified(array, checks, threads):
            with suppress(OSError):  # a cache that can only be read serves all the same
                os.utime(target)  # marks it as used lately
            return array
    shutil.rmtree(target, ignore_errors=True)
    return None


def save(name: str, array: NDArray[np.float32]) -> None:
    """Keep `array` under `name`, if the disk and the cache's limit have room for it."""
    root = cache.folder()
    if array.nbytes * SHARE > cache.limit():
        return
    work: Path | None = None
    with suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{name}.part-", dir=root))
        cache.make_room(root, array.nbytes)
        np.save(work / "features.npy", array, allow_pickle=False)
        starts = range(0, len(array), cache.CHUNK)
        meta: dict[str, Any] = {"checks": [zlib.crc32(array[at : at + cache.CHUNK].data) for at in starts]}
        (work / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        cache.publish(work, root / name)
    if work is not None:
        shutil.rmtree(work, ignore_errors=True)
