"""The log of a server whose reader is slow."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from typing import Any

import pytest

from sightline import process
from sightline.serve import log_stream


class GatedFile(io.RawIOBase):
    """Takes bytes one at a time while its gate is open."""

    def __init__(self) -> None:
        self.gate, self.content = threading.Event(), bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        assert self.gate.wait(30)
        self.content += bytes(data)[:1]
        return 1


def test_lines_that_nobody_reads_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    file = GatedFile()
    before = io.TextIOWrapper(io.BufferedWriter(file), "latin-1")
    monkeypatch.setattr(sys, "stderr", before)
    monkeypatch.setattr(log_stream, "MAX_BYTES", 200)
    monkeypatch.setattr(log_stream, "END_SECONDS", 30)
    monkeypatch.setattr(process, "is_claimed", lambda: True)
    with log_stream.write_stderr_in_thread():
        handler = logging.StreamHandler()
        logging.getLogger("sightline.serve.log_stream").addHandler(handler)
        for number in range(50):
            sys.stderr.write(f"line {number} é\n")
        file.gate.set()
        end = time.monotonic() + 30
        while b"dropped" not in file.content and time.monotonic() < end:
            time.sleep(0.01)
    logging.getLogger("sightline.serve.log_stream").removeHandler(handler)
    assert sys.stderr is before
    *lines, last = file.content.decode("latin-1").splitlines()
    assert lines == [f"line {number} é" for number in range(len(lines))]
    assert 10 < len(lines) < 25
    assert last == f"{50 - len(lines)} lines of the log were dropped: whatever reads standard error was too slow."
