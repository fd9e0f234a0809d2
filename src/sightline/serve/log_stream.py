"""Standard error of a server, written by a separate thread so that no request waits for a slow reader."""

from __future__ import annotations

import io
import logging
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any

from sightline import process

MAX_BYTES = 8 << 20  # limit on output waiting to be written; further lines are dropped
END_SECONDS = 1.0  # to write the remaining output when the server ends
POLL_SECONDS = 0.1
_LOG = logging.getLogger(__name__)


class _LogStream(io.RawIOBase):
    """Writes to `raw` in a thread."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # an empty line ends the thread
        self._lock = threading.Lock()
        self._waiting = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()

    def write(self, data: Any, /) -> int:
        line = bytes(data)
        with self._lock:
            if self._waiting + len(line) > MAX_BYTES:
                self._dropped += 1
            else:
                self._waiting += len(line)
                self._lines.put(line)
        return len(line)

    def finish(self) -> None:
        """Write the remaining output, unless that takes too long."""
        self._lines.put(b"")
        self._thread.join(END_SECONDS)

    def _run(self) -> None:
        while line := self._lines.get():
            remaining = memoryview(line)
            with suppress(OSError):  # raised when the reader has gone
                while remaining:
                    size = self._raw.write(remaining)
                    if size is None:  # the pipe is full, and another program made it non-blocking
                        time.sleep(POLL_SECONDS)
                    remaining = remaining[size or 0 :]
            with self._lock:
                self._waiting -= len(line)
                dropped = self._dropped if self._waiting <= MAX_BYTES // 2 else 0  # report once there is room
                self._dropped -= dropped
            if dropped:
                _LOG.warning("%d lines of the log were dropped: whatever reads standard error was too slow.", dropped)


@contextmanager
def write_stderr_in_thread() -> Iterator[None]:
    """Have a thread write standard error, in the command line's own process."""
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)  # not the buffer: Python aborts if its lock is held
    if raw is None or not process.is_claimed():
        yield
        return
    sys.stderr.flush()
    stream = _LogStream(raw)
    encoding = sys.stderr.encoding
    with redirect_stderr(io.TextIOWrapper(stream, encoding, "backslashreplace", write_through=True)):  # type: ignore[type-var]
        try:
            yield
        finally:
            stream.finish()
