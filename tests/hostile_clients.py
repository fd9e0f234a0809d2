"""Requests of slow and hostile clients, and the memory of the server meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from server_process import Server

HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\n"
HALF_OPEN = (
    b"",
    b"GET /hea",
    HEAD,
    HEAD + b"Content-Length: 1000\r\n\r\nhalf",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
)
SLOW_IMAGE = b"P3\n1200 900\n255\n" + b"7 " * (1200 * 900 * 3)  # 6 MB of numbers as text, seconds of work


@contextlib.contextmanager
def open_connections(server: Server, count: int) -> Iterator[None]:
    """Keep connections open with requests that never end; the server may close some of them."""
    with contextlib.ExitStack() as stack:
        for i in range(count):
            client = stack.enter_context(server.connect())
            with contextlib.suppress(OSError):
                client.sendall(HALF_OPEN[i % len(HALF_OPEN)])
        yield


def read_memory(server: Server, field: str = "VmRSS") -> int:
    """Return the memory of the server's process in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
