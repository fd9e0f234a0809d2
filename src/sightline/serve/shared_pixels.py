"""Shared memory through which decoding processes return pixels, where available, instead of a pipe."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

INITIAL_BYTES = 1 << 20


class SharedPixels:
    """Shared memory for one image; both processes have its descriptor `file` open."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._memory = mmap.mmap(file, os.fstat(file).st_size)

    @classmethod
    def create(cls) -> SharedPixels | None:
        """Return new memory, or None where the system has no memory that is freed with its processes, as outside Linux.

        The memory can never shrink, so that a process taken over by a hostile image cannot crash its reader.
        """
        if sys.platform != "linux":
            return None
        import fcntl

        try:
            file = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:  # forbidden by the system or a sandbox
            return None
        os.ftruncate(file, INITIAL_BYTES)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return cls(file)

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes."""
        if size > len(self._memory):
            os.ftruncate(self.file, max(size, os.fstat(self.file).st_size))
            self._map()

    def write(self, pixels: NDArray[np.uint8]) -> None:
        """Write pixels; the other process has reserved the room."""
        if pixels.nbytes > len(self._memory):
            self._map()
        self._memory[: pixels.nbytes] = np.ascontiguousarray(pixels).data.cast("B")

    def read(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """Return a copy of the pixels, uint8 of `shape`."""
        return np.frombuffer(self._memory, np.uint8, int(np.prod(shape))).reshape(shape).copy()

    def close(self) -> None:
        """Free the memory."""
        self._memory.close()
        os.close(self.file)

    def _map(self) -> None:
        self._memory.close()
        self._memory = mmap.mmap(self.file, os.fstat(self.file).st_size)
