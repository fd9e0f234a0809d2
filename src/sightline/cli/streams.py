"""The three standard streams of the command line, any of which may be closed, full or disconnected.

A result that cannot be written is an error with its own exit code. Progress that cannot be written is dropped: training
continues after its terminal has closed.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from sightline.errors import DataError, OutputError, UsageError


def _write_all(descriptor: int, data: Any) -> int:
    """Write to a file descriptor; wait if another program left it non-blocking, as happens with pipes."""
    while True:
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            select.select([], [descriptor], [])


class ReaderExited(OutputError):
    """The reader of standard output has gone, as with `| head`; not a `BrokenPipeError`, on which Typer would exit."""

    exit_code = 141  # what a shell reports for tools ended by SIGPIPE


class _ResultStream(io.FileIO):
    """Standard output: raises `OutputError` at the first failed write; drops later writes."""

    _lost = False

    def write(self, data: Any, /) -> int:
        if self._lost:
            return len(memoryview(data))
        try:
            return _write_all(self.fileno(), data)
        except BrokenPipeError:
            self._lost = True
            raise ReaderExited from None
        except OSError as error:
            self._lost = True
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            advice = "Free some space." if error.errno == errno.ENOSPC else "Redirect it to a file, e.g. with > FILE."
            raise OutputError(f"Standard output cannot be written: {why}. {advice}") from error


class _ProgressStream(io.FileIO):
    """Standard error: drops failed writes."""

    def write(self, data: Any, /) -> int:
        try:
            return _write_all(self.fileno(), data)
        except OSError:
            return len(memoryview(data))


def secure_streams() -> None:
    """Make the standard streams safe to use: reopen closed ones, and make each fail as described in this module.

    Streams that are not the process's own, such as those of a test, are only made to accept any file name.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would get its number
            os.set_inheritable(os.open(os.devnull, mode), True)  # gets the lowest free number
    sys.stdout = _secure_stream(sys.stdout, sys.__stdout__, _ResultStream, 1)
    sys.stderr = _secure_stream(sys.stderr, sys.__stderr__, _ProgressStream, 2)


def _secure_stream(
    stream: TextIO | None, original: TextIO | None, stream_type: type[io.FileIO], descriptor: int
) -> TextIO:
    if stream is None:
        return io.TextIOWrapper(
            io.BufferedWriter(stream_type(descriptor, "w", closefd=False)), "utf-8", "backslashreplace"
        )
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="backslashreplace")  # a file name need not be valid UTF-8
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if stream is not original or type(raw) is not io.FileIO:  # a Windows console has another type
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(stream_type(descriptor, "w", closefd=False)), stream.encoding, "backslashreplace",
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def refuse_list(paths: Sequence[str]) -> None:
    """Raise `UsageError` if the only argument is a list or table of paths, which must come from standard input."""
    path = paths[0] if len(paths) == 1 else ""
    if path.lower().endswith((".csv", ".tsv", ".txt", ".jsonl")) and os.path.isfile(path):  # noqa: PTH113
        raise UsageError(
            f"{path} is not an image: give the paths that it lists on standard input, one per line, with - in its "
            "place."
        )


def read_stdin(limit_mb: float) -> bytes:
    """Return all of standard input: one image, or a list of paths.

    Raises `DataError` if it is closed, cannot be read or is larger than `limit_mb` MiB (``data.limits.file_mb``).
    """
    limit = int(limit_mb * 2**20)
    data = bytearray()
    if sys.stdin is None:
        raise DataError(
            "Standard input is closed, but - reads from it: name files, or pipe in an image or a list of paths."
        )
    try:
        while len(data) <= limit and (chunk := sys.stdin.buffer.read(1 << 20)):
            data += chunk
    except OSError as error:
        raise DataError(f"Standard input cannot be read: {error.strerror}.") from error
    if len(data) > limit:
        raise DataError(
            f"Standard input is larger than {limit_mb:g} MiB (data.limits.file_mb): name files, or raise the limit."
        )
    return bytes(data)
