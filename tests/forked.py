"""The outcome of a forked process: its exit code, time and memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def wait_for(child: int, started: float) -> dict[str, Any]:
    """Wait for a child that was forked at `started` (from `time.monotonic`); return its outcome.

    `code` is its exit code, or minus a signal; `cpu` is the processor time and `seconds` the elapsed time, both in
    seconds, without the time that its main thread waited for a core. `bytes` is its peak memory.
    """
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    elapsed = time.monotonic() - started
    try:
        waited = int(Path(f"/proc/{child}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except OSError:  # not all kernels count it
        waited = 0.0
    _, status, usage = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status), "seconds": elapsed - waited,
        "cpu": usage.ru_utime + usage.ru_stime, "bytes": usage.ru_maxrss * 1024,
    }  # fmt: skip
