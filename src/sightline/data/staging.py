"""Local copies of archives and tables at addresses, each downloaded once into the cache and named by its content."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from threading import Event

from sightline import _io, jsonio
from sightline.config import LimitsConfig
from sightline.data.cache import cache_folder, explain_cache_failure, make_room
from sightline.data.remote import RemotePath, describe_file, retry
from sightline.errors import DataError, ModelError
from sightline.escaping import hide_secrets

_CHUNK = 1 << 20
_MAX_RECORD_BYTES = 1 << 12  # limit on the record of a staged file, which contains a hash


def stage(source: RemotePath, limits: LimitsConfig, stop: Event | None = None) -> Path:
    """Return a file's copy in the cache, named by its content; the file is downloaded if it is new or has changed.

    Raises `DataError` if `stop` is set before the download ends.
    """
    info = source.describe()
    facts, size = describe_file(info), int(info.get("size") or 0)
    folder = cache_folder() / "remote"
    record = folder / f"{hashlib.sha256(jsonio.dumps([source.url, facts], sort_keys=True).encode()).hexdigest()}.json"
    with suppress(ModelError, KeyError):
        staged = folder / str(jsonio.read_object(record, _MAX_RECORD_BYTES)["sha256"]) / safe_name(source.name)
        if staged.is_file():
            with suppress(OSError):
                os.utime(staged.parent)  # marks it as recently used
            return staged
    aside = folder / f"download{os.getpid()}-{secrets.randbits(64)}"

    def download() -> str:
        digest = hashlib.sha256()
        copy.seek(0)
        copy.truncate()
        with source.open_stream() as content:
            while chunk := content.read(_CHUNK):
                if stop is not None and stop.is_set():
                    raise DataError(f"The download of {hide_secrets(source.url)} was stopped.")
                digest.update(chunk)
                with explain_cache_failure(folder):
                    _write_all(copy, chunk)
                _check_total(source.url, copy.tell(), limits)
        return digest.hexdigest()

    _check_total(source.url, size, limits)  # before other files are removed to make room
    try:
        with explain_cache_failure(folder):
            make_room(size)
            folder.mkdir(parents=True, exist_ok=True)
            copy = _io.create_exclusive(aside).detach()  # unbuffered, as buffered writes would fail later
        with copy:
            digest = retry(source.url, download)
        staged = folder / digest / safe_name(source.name)
        with explain_cache_failure(folder):
            staged.parent.mkdir(exist_ok=True)
            aside.replace(staged)
    finally:
        with suppress(OSError):
            aside.unlink()
    _io.write_atomic(record, jsonio.dumps({"sha256": digest}).encode())
    return staged


def _write_all(file: RawIOBase, content: bytes) -> None:
    """Write all of `content` to an unbuffered file, which may accept only a part per call."""
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[file.write(remaining) or 0 :]


def _check_total(url: str, size: int, limits: LimitsConfig) -> None:
    if size > limits.archive_gb * 2**30:
        raise DataError(
            f"{hide_secrets(url)} is larger than {limits.archive_gb:g} GiB. Split it, or raise data.limits.archive_gb."
        )


def safe_name(path: str) -> str:
    """Return a safe name for a staged file, with its suffixes, which show its type; its folder names its content."""
    name = path.rstrip("/").rpartition("/")[2].partition("?")[0]
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip(".-")[-100:] or "file"
