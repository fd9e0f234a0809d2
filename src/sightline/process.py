"""This process: whose it is, how many cores it may use, how it keeps freed memory.

Signal handlers, ``os._exit`` and the C library's memory settings hold for a whole process. They belong to the command
line, which calls `claim`; a program that imports Sightline keeps its own.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from pathlib import Path

FEW_CORES = 4
"""Up to so many cores one arena of glibc is faster than one for each thread; with 16, threads queue for its lock."""

CGROUPS = Path("/sys/fs/cgroup")

_claimed = False


def claim() -> None:
    """Say that this process is the command line's own."""
    global _claimed  # noqa: PLW0603  # a fact of the process, like its arguments
    _claimed = True


def claimed() -> bool:
    """Tell whether this process is the command line's own, so that signals, exit and memory are ours to set."""
    return _claimed


def hang_up_as_terminate() -> None:
    """Let SIGHUP, sent when a terminal closes or a connection is lost, do what SIGTERM does, whatever that is.

    Once: a terminal that closes sends it more than once, and a second SIGTERM stops a training without its state.
    Where it is ignored, as under ``nohup``, it stays so. In the main thread, and in the command line's process alone.
    """
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    if number is None or not claimed() or signal.getsignal(number) is signal.SIG_IGN:
        return

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(number, terminate)


def cores() -> int:
    """Return how many cores this process may use: those of its affinity, or fewer where its cgroup has a quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def _quota() -> float:
    """Return the smallest quota of this process's cgroup (version 2) and of those above it, in cores; else infinity."""
    found = math.inf
    try:
        line = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1]
        folder = CGROUPS / line.rpartition(":")[2].lstrip("/")
    except (OSError, IndexError):
        return found
    for place in (folder, *folder.parents):
        if not place.is_relative_to(CGROUPS):
            break
        try:
            quota, period = (place / "cpu.max").read_text(encoding="utf-8").split()
            found = min(found, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # none there, or "max": no limit
            continue
    return found


def keep_freed_memory() -> bool:
    """Let glibc hand freed blocks out again instead of returning them to the system; return whether it was done.

    Done only in the command line's own process, on at most `FEW_CORES` cores, where the C library is glibc. For
    TensorFlow on a CPU; to be called before the first thread starts. Each thread gets an arena of its own, and blocks
    above 64 MiB, such as a batch's activations, fit no arena but the first; they are mapped, zeroed by the kernel and
    unmapped again in each step. With it, frozen MobileNetV2 features took 6.3 and 8.8 s where they took 10.5 and
    15.1 s on 2 cores. With 16 cores one arena is one lock for all of XLA's threads: the first epoch took 30.7 s in
    place of 6.2. The numbers are those of <malloc.h>.
    """
    if not (claimed() and sys.platform.startswith("linux") and cores() <= FEW_CORES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(trim_threshold, 1 << 30)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)
    return True
