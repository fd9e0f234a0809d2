"""Wait for other threads or processes, and check whether a process is running."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Return once `condition` is true; the limit is so long that only failing tests reach it on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds:g} seconds"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Return whether a process is running on this Linux machine; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
