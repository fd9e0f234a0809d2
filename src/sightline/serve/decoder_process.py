"""The code in each process of `decoding.DecoderPool`, and its protocol; it imports little, to start quickly.

A request is `HEADER`: whether a large image may be decoded, and two sizes; then, of these sizes, the pickled
`PreprocessingSpec`, and the file. The answer is one byte: `SHARED`, if the pixels are in `SharedPixels`; `PIXELS`,
before the pixels; `LARGE`, for a large image that may not be decoded now; `REFUSED`, for an image that cannot be read,
or `FAULT` for any other error, both followed by a `LENGTH` and a message. A new process sends `READY`.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from typing import IO

import numpy as np

from sightline.errors import ImageError
from sightline.preprocessing import PreprocessingSpec, use_large_image_lock
from sightline.serve.shared_pixels import SharedPixels

BYTES_PER_PIXEL = 64  # limit of the address space for decoding, beyond the first GiB

READY, SHARED, PIXELS, REFUSED, FAULT, LARGE = b"R", b"S", b"P", b"E", b"F", b"L"
HEADER, LENGTH = struct.Struct("<?QQ"), struct.Struct("<Q")


def main(shared_file: int | None = None) -> None:
    """Decode images from standard input until it ends; `shared_file`: a descriptor of shared memory for the pixels."""
    shared = None if shared_file is None else SharedPixels(shared_file)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", 0)
    _silence_libraries()
    permit = _Permit()
    use_large_image_lock(permit)
    answers.write(READY)
    with suppress(EOFError, BrokenPipeError):
        while True:
            permit.is_given, spec_size, size = HEADER.unpack(read_exactly(requests, HEADER.size))
            preprocess = _read_spec(bytes(read_exactly(requests, spec_size)))
            _limit_memory((1 << 30) + preprocess.max_megapixels * 10**6 * BYTES_PER_PIXEL)
            kind, answer = _decode(preprocess, bytes(read_exactly(requests, size)), shared)
            remaining = memoryview(b"".join((kind, answer)))
            while remaining:
                remaining = remaining[answers.write(remaining) :]


def _silence_libraries() -> None:
    """Drop what libtiff and others print about an image, so that clients cannot fill the log; Python still prints."""
    sys.stderr = os.fdopen(os.dup(2), "w", 1, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


@lru_cache(16)
def _read_spec(content: bytes) -> PreprocessingSpec:
    spec: PreprocessingSpec = pickle.loads(content)  # noqa: S301  # comes from the parent process
    return spec


def _decode(
    preprocess: PreprocessingSpec, content: bytes, shared: SharedPixels | None
) -> tuple[bytes, bytes | memoryview]:
    """Return the kind of the answer and its content."""
    try:
        pixels = np.ascontiguousarray(preprocess.decode(content), np.uint8)
        if shared is None:
            return PIXELS, pixels.data
        shared.write(pixels)
        return SHARED, b""
    except _LargeImage:
        return LARGE, b""
    except ImageError as error:
        kind, message = REFUSED, str(error).encode()
    except Exception as error:  # noqa: BLE001  # reported by the server
        kind, message = FAULT, repr(error).encode()
    return kind, LENGTH.pack(len(message)) + message


class _LargeImage(BaseException):
    """A large image was not permitted to be decoded now; not an Exception, as those mean that the image is bad."""


class _Permit(AbstractContextManager[None]):
    """Replaces the lock for large images: can be entered only if the server permits it."""

    is_given = False

    def __enter__(self) -> None:
        if not self.is_given:
            raise _LargeImage

    def __exit__(self, *_: object) -> None:
        return None


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(ValueError, OSError):  # above this process's own limit, which then stays in force
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def read_exactly(stream: IO[bytes], count: int) -> bytearray:
    """Read `count` bytes; raise EOFError if there are fewer."""
    content, done = bytearray(count), 0
    view = memoryview(content)
    while done < count:
        size = stream.readinto(view[done:])  # type: ignore[attr-defined]  # raw and buffered streams have it
        if not size:
            raise EOFError
        done += size
    return content
