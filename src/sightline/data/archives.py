"""Images in a zip or tar archive: read one by one, never extracted by name, within size limits.

An archive of a few kilobytes can unpack to terabytes or list millions of members, so the totals are checked against
`LimitsConfig` before any member is read. All members with the same name are kept: the second becomes
``cat/1 (2).jpg``.
"""

from __future__ import annotations

import lzma
import sys
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar

from sightline._io import open_regular
from sightline._packed import ZIP_ERRORS, open_zip
from sightline.config import LimitsConfig
from sightline.data.packed_tar import open_plain_tar
from sightline.data.storage import HEADER_BYTES, LIMITS, CheckHeader, accept_any, check_file_size
from sightline.data.zip_members import open_member
from sightline.errors import DataError, ImageError

Member = TypeVar("Member")
# bytes that any archive may unpack to, however small it is: a blank image compresses a thousandfold
_ALWAYS_ALLOWED = 256 << 20
_MAX_HEADER = 1 << 20  # limit in bytes on the headers of one tar member, which a reader loads into memory whole
_NAME_BYTES = 128  # bytes of memory per member name, averaged over the largest allowed number of members
_MAX_GLOBAL_HEADERS = 1_000  # per tar; `tarfile` copies them for each member


class ZipStore:
    """The members of a zip archive. Names without the UTF-8 flag are decoded as UTF-8 if possible, otherwise as GBK."""

    def __init__(self, path: Path, limits: LimitsConfig = LIMITS) -> None:
        self.name = path.name
        self._limits = limits
        try:
            file = open_regular(path)
            weakref.finalize(self, file.close)
            self._zip = open_zip(file, lambda count: check_count(path, count, limits))
        except (OSError, *ZIP_ERRORS) as error:
            raise DataError(f"{path} is not a readable zip archive: {error}.") from error
        infos = self._zip.infolist()
        check_count(path, len(infos), limits)
        check_size(path, sum(info.file_size for info in infos), limits)
        _check_names(path, sum(sys.getsizeof(info.filename) for info in infos), limits)
        self._members, self.repeated_names = make_names_unique(zip(_decode_names(infos), infos, strict=True))

    def keys(self) -> Sequence[str]:
        """Return the sorted paths of the files."""
        return sorted(name for name in self._members if not name.endswith("/"))

    def folders(self) -> Sequence[str]:
        """Return the sorted paths of the folders that have their own member, as empty folders do."""
        return sorted(name.rstrip("/") for name in self._members if name.endswith("/"))

    def contains(self, key: str) -> bool:
        """Return whether there is a file with this path."""
        return key in self._members and not key.endswith("/")

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        """Return the content of a file, after `check` has accepted its first bytes."""
        info = self._members[key]
        try:
            with open_member(self._zip, info) as file:
                start: bytes = file.read(HEADER_BYTES)
                check(start)
                check_file_size(info.file_size, self._limits)
                return start + bytes(file.read(info.file_size - len(start)))
        except MemoryError as error:
            raise ImageError("cannot be unpacked: it needs more memory than is available") from error
        except (RuntimeError, OSError) as error:  # encrypted, unknown compression method, or a disk error
            raise ImageError(f"cannot be unpacked: {error}") from error
        except ZIP_ERRORS as error:
            raise ImageError(f"damaged in the archive: {error}") from error


class _TarMember(NamedTuple):
    """The offset and size of a file's content. For a `sparse` file, only the nonzero blocks are stored."""

    offset: int
    size: int
    sparse: bool


class TarStore:
    """The members of a tar archive. A compressed one is first unpacked into an unnamed temporary file."""

    def __init__(self, path: Path, limits: LimitsConfig = LIMITS) -> None:
        self.name = path.name
        self._limits = limits
        self._lock = threading.Lock()
        try:
            self._file = open_plain_tar(open_regular(path), partial(check_size, path, limits=limits))
            weakref.finalize(self, self._file.close)
            members, self._folders = _read_tar_members(self._file, path, limits)
        except MemoryError as error:
            raise DataError(f"{path} is not a readable tar archive: it needs more memory than is available.") from error
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is not a readable tar archive: {error}.") from error
        self._members, self.repeated_names = make_names_unique(members)

    def keys(self) -> Sequence[str]:
        """Return the sorted paths of the files."""
        return sorted(self._members)

    def folders(self) -> Sequence[str]:
        """Return the sorted paths of the folders that have their own member, as empty folders do."""
        return sorted(self._folders)

    def contains(self, key: str) -> bool:
        """Return whether there is a file with this path."""
        return key in self._members

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        """Return the content of a file, after `check` has accepted its first bytes."""
        offset, size, sparse = self._members[key]
        if sparse:
            raise ImageError("stored sparse, so its bytes are not in one piece: archive it without `tar --sparse`")
        with self._lock:
            self._file.seek(offset)
            check(self._file.read(min(size, HEADER_BYTES)))
            check_file_size(size, self._limits)
            self._file.seek(offset)
            data = self._file.read(size)
        if len(data) < size:
            raise ImageError("truncated: the archive ends before the end of this file")
        return data


def make_names_unique(members: Iterable[tuple[str, Member]]) -> tuple[dict[str, Member], tuple[str, ...]]:
    """Return the members under unique names, and the names that occurred more than once."""
    unique: dict[str, Member] = {}
    repeated: dict[str, int] = {}
    for name, member in members:
        key = name
        while key in unique:
            if name.endswith("/"):  # a folder listed twice is one folder
                break
            repeated[name] = repeated.get(name, 1) + 1
            path = PurePosixPath(name)
            renamed = f"{path.stem} ({repeated[name]}){path.suffix}"
            key = str(path.with_name(renamed)) if path.name else renamed  # a name may be empty
        unique[key] = member
    return unique, tuple(repeated)


def check_count(path: Path, count: int, limits: LimitsConfig) -> None:
    """Raise `DataError` if an archive has too many members."""
    if count > limits.archive_members:
        raise DataError(
            f"{path} has more than {limits.archive_members:,} members. Split it into several archives, or raise "
            "data.limits.archive_members if you trust it."
        )


def check_size(path: Path, size: int, limits: LimitsConfig) -> None:
    """Raise `DataError` if an archive unpacks to too many bytes, in total or relative to its own size."""
    if size > limits.archive_gb * 2**30:
        raise DataError(
            f"{path} unpacks to more than {limits.archive_gb:g} GiB. Split it into several archives, or raise "
            "data.limits.archive_gb if you trust it."
        )
    packed = path.stat().st_size
    if size > max(_ALWAYS_ALLOWED, limits.archive_ratio * packed):
        raise DataError(
            f"{path} unpacks to more than {limits.archive_ratio:g} times its {packed:,} bytes, which is unusual for "
            "images: it may be a decompression bomb. Raise data.limits.archive_ratio if you trust it."
        )


def _check_names(path: Path, num_bytes: int, limits: LimitsConfig) -> None:
    """Raise `DataError` if the names in an archive take too much memory: a name of a megabyte compresses to nothing."""
    maximum = _NAME_BYTES * limits.archive_members
    if num_bytes > maximum:
        raise DataError(
            f"{path} has names of more than {maximum:,} bytes in all. Shorten them, split it into several "
            "archives, or raise data.limits.archive_members if you trust it."
        )


def _decode_names(members: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Return the names. Those without a stated encoding are all decoded alike, so that no class gets two names."""
    raw = [_undecoded_name(info) for info in members]
    encoding = "cp437"
    for candidate in ("gbk", "utf-8"):
        with suppress(UnicodeDecodeError):
            b"\n".join(raw).decode(candidate)
            encoding = candidate
    names = [r.decode(encoding) if r else info.filename for r, info in zip(raw, members, strict=True)]
    return [name.replace("\\", "/") for name in names]  # some Windows programs write backslashes


def _undecoded_name(info: zipfile.ZipInfo) -> bytes:
    """Return the raw bytes of a name in an unknown encoding; empty if the name is known to be Unicode."""
    utf8_flag = 0x800
    try:
        return b"" if info.flag_bits & utf8_flag else info.filename.encode("cp437")
    except UnicodeEncodeError:  # Python 3.12 reads a Unicode name from an extra field
        return b""


class _HeaderReader:
    """A tar file that limits the headers that `tarfile` may read; `tarfile` seeks past the contents."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._num_bytes = 0
        self.seek, self.tell = file.seek, file.tell

    def start_member(self) -> None:
        """Reset the count of bytes, for the headers of the next member."""
        self._num_bytes = 0

    def read(self, size: int) -> bytes:
        self._num_bytes += size
        if self._num_bytes > _MAX_HEADER:
            raise tarfile.ReadError(
                f"headers of {self._num_bytes:,} bytes at byte {self.tell():,}, where a member may have {_MAX_HEADER:,}"
            )
        return self._file.read(size)


def _read_tar_members(
    file: IO[bytes], path: Path, limits: LimitsConfig
) -> tuple[list[tuple[str, _TarMember]], list[str]]:
    """Return the name and location of each file, and the folders. A hard link is read as the file that it points to."""
    members: list[tuple[str, _TarMember]] = []
    by_name: dict[str, _TarMember] = {}
    folders: list[str] = []
    name_bytes = 0
    reader = _HeaderReader(file)
    with tarfile.open(fileobj=reader, mode="r:") as tar:  # type: ignore[call-overload]  # has every method that tarfile calls
        while (member := tar.next()) is not None:
            reader.start_member()
            if member.size < 0:  # a pax header may state any size
                raise tarfile.ReadError(f"a member of {member.size:,} bytes")
            tar.members = []  # otherwise tarfile keeps every header, each with a copy of the global ones
            name, target = member.name.removeprefix("./"), member.linkname.removeprefix("./")
            if member.isreg() or (member.islnk() and target in by_name):
                stored = _TarMember(member.offset_data, member.size, member.issparse())
                by_name[name] = stored if member.isreg() else by_name[target]
                members.append((name, by_name[name]))
            elif member.isdir() and name not in {"", "."}:
                folders.append(name.rstrip("/"))
            check_count(path, len(members) + len(folders), limits)
            name_bytes += sys.getsizeof(name)
            _check_names(path, name_bytes + _measure_global_headers(tar), limits)
        end = tar.offset
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):  # tarfile treats a damaged header as the end of the archive
        raise tarfile.ReadError(f"damaged at byte {end}")
    return members, folders


def _measure_global_headers(tar: tarfile.TarFile) -> int:
    if len(tar.pax_headers) > _MAX_GLOBAL_HEADERS:
        raise tarfile.ReadError(f"more than {_MAX_GLOBAL_HEADERS:,} global headers, the limit")
    return sum(map(sys.getsizeof, tar.pax_headers.values()))
