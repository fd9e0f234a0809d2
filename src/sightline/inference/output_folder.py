"""An output folder: local, or at an address such as ``s3://bucket/a.parquet``.

A file is either complete or absent: local files are renamed, and storages show an object only once it is complete.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Protocol

from sightline import _io
from sightline.data.remote import RemotePath, is_url
from sightline.errors import OutputError

ADVICE = "Free some space, then run the same command again to go on."


class OutputFolder(Protocol):
    """The files of a folder by name; `location` is the path or address shown to the user."""

    @property
    def location(self) -> Path | str:
        """The path or address."""

    def locate(self, name: str) -> str:
        """Return the path or address of a file."""

    def list_names(self) -> list[str] | None:
        """Return the names of the files and folders; None if there is no such folder.

        Raises `OutputError` if there is a file instead.
        """

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading; raises FileNotFoundError, and OSError or `DataError` if it cannot be read."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, replacing an existing one of that name; raises `OutputError`."""


def open_output_folder(out: str | Path) -> OutputFolder:
    """Return the folder, which need not exist; raises `UsageError` for an address that cannot be written to."""
    if is_url(str(out)):
        return _RemoteOutput(RemotePath.parse(str(out), purpose="Writing"))
    return _LocalOutput(_io.expand_home(out))


class _LocalOutput:
    def __init__(self, path: Path) -> None:
        self.location = path

    def locate(self, name: str) -> str:
        return str(self.location / name)

    def list_names(self) -> list[str] | None:
        if self.location.is_dir():
            return [entry.name for entry in os.scandir(self.location)]
        if self.location.exists() or self.location.is_symlink():
            raise OutputError(_describe_file(self.location))
        return None

    def open(self, name: str) -> IO[bytes]:
        return _io.open_regular(self.location / name)

    def write(self, name: str, content: bytes) -> None:
        _io.write_atomic(self.location / name, content, ADVICE)


class _RemoteOutput:
    def __init__(self, folder: RemotePath) -> None:
        self._folder = folder
        self.location = folder.url

    def locate(self, name: str) -> str:
        return f"{self.location}/{name}"

    def list_names(self) -> list[str] | None:
        if self._folder.is_file():
            raise OutputError(_describe_file(self.location))
        return self._folder.list_names() or None  # storages have no empty folders

    def open(self, name: str) -> IO[bytes]:
        file: IO[bytes] = self._folder.join(name).open()
        return file

    def write(self, name: str, content: bytes) -> None:
        self._folder.join(name).write(content)


def _describe_file(location: Path | str) -> str:
    return f"{location} is a file, but predictions in Parquet are a folder: name a new one with --out."
