"""A folder of labeled images at an address: its files are downloaded once and cached by their content.

CACHE/remote/
<sha256>/cat.jpg    the content of a file, shared by all its addresses
<sha256>.files      the record of a folder; one line per file: the hashes of its storage metadata and of its content
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from sightline import _io, jsonio
from sightline.config import LimitsConfig
from sightline.data.cache import cache_folder, explain_cache_failure, make_room
from sightline.data.remote import RemotePath
from sightline.data.staging import safe_name
from sightline.data.storage import HEADER_BYTES, CheckHeader, accept_any, check_file_size
from sightline.errors import DataError
from sightline.escaping import hide_secrets

DOWNLOADS = 16  # concurrent downloads


class RemoteFolder:
    """The files below a folder at an address, as first listed; reading a file downloads it if it is new or has changed.

    Raises `DataError` if the folder does not exist or cannot be listed, and when a file cannot be read after several
    attempts.
    """

    def __init__(self, source: RemotePath, limits: LimitsConfig) -> None:
        self.name = PurePosixPath(source.path).name
        self._limits, self._folder = limits, cache_folder() / "remote"
        self._files = {file.url.removeprefix(source.url).lstrip("/"): file for file in source.walk(with_facts=True)}
        self._record = self._folder / f"{_hash(source.url)}.files"
        self._contents = self._read_record()
        self._lock = threading.Lock()
        self._has_room = False

    def keys(self) -> Sequence[str]:
        """Return the sorted relative paths."""
        return sorted(self._files)

    def folders(self) -> Sequence[str]:
        """Return no folders: in most storages they exist only as parts of file names."""
        return ()

    def contains(self, key: str) -> bool:
        """Return whether there was a file with this relative path."""
        return key in self._files

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        """Return the content of a file, after `check` has accepted its first bytes."""
        content = self._read_copy(key)
        if content is None:
            return self._download(key, check)
        check(content[:HEADER_BYTES])
        check_file_size(len(content), self._limits)
        return content

    def locate(self, key: str) -> RemotePath:
        """Return the address of a file."""
        return self._files[key]

    def _read_copy(self, key: str) -> bytes | None:
        digest = self._contents.get(self._identify(key))
        if digest is None:
            return None
        path = self._locate(digest, key)
        try:
            content = _io.read_regular(path, int(self._limits.file_mb * 2**20))
        except OSError:  # removed since to make room, or larger than allowed, which the download reports
            return None
        with suppress(OSError):
            os.utime(path.parent)  # marks it as recently used
        return content if hashlib.sha256(content).hexdigest() == digest else None

    def _download(self, key: str, check: CheckHeader) -> bytes:
        file = self._files[key]
        content = file.download(self._limits, check)
        digest = hashlib.sha256(content).hexdigest()
        with explain_cache_failure(self._folder):
            with self._lock:
                if not self._has_room:
                    self._has_room = True
                    make_room(self._count_missing_bytes(), self._contents.values())
            path = self._locate(digest, key)
            _io.write_atomic(path, content)  # may replace a damaged copy
            with self._lock, _io.open_in_place(self._record, new=True, append=True) as record:
                record.write(f"{self._identify(key)} {digest}\n".encode("ascii"))
        self._contents[self._identify(key)] = digest
        return content

    def _identify(self, key: str) -> str:
        return _hash(jsonio.dumps([key, self._files[key].facts], sort_keys=True))

    def _locate(self, digest: str, key: str) -> Path:
        return self._folder / digest / safe_name(key)

    def _count_missing_bytes(self) -> int:
        sizes = (
            str(file.facts.get("size", "")) for key, file in self._files.items()
            if (digest := self._contents.get(self._identify(key))) is None or not self._locate(digest, key).exists()
        )  # fmt: skip
        return sum(int(size) for size in sizes if size.isdecimal())

    def _read_record(self) -> dict[str, str]:
        """Return the content hash of each file downloaded before; truncated lines, of another length, are ignored."""
        try:
            lines = _io.read_regular(self._record, jsonio.MAX_FILE_BYTES).decode("ascii", "replace").splitlines()
        except OSError:
            return {}
        return dict(line.split(" ") for line in lines if len(line) == 129 and line.count(" ") == 1)


def open_remote_folder(source: RemotePath, limits: LimitsConfig) -> RemoteFolder:
    """Return the folder of labeled images, archives or tables at an address; raises `DataError` if there is none."""
    if not source.is_folder():
        raise DataError(
            f"{hide_secrets(source.url)} is not a source of labeled images: expected a folder of class folders, a .zip "
            "or .tar of one, or a .parquet or .arrow file with images."
        )
    return RemoteFolder(source, limits)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
