"""The process and its machine: who owns the process, the home folder, signals, cores, memory, limit of open files.

Signal handlers, ``os._exit``, the limit of open files and the C library's malloc settings (`_keras.process_state`)
affect the whole process. Only the command line, which calls `claim`, changes them; they stay unchanged in a program
that imports Sightline.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

MAX_SINGLE_ARENA_CORES = 4
"""Up to this many cores, a single glibc arena is faster than one per thread; with 16, threads contend for its lock."""

LITTLE_MEMORY = 2 << 30
"""Below this many bytes, memory is returned to the system rather than kept for the next step."""

GARBAGE_THRESHOLD = 20_000
"""New objects between garbage collections in the command line's process: Python's 700 cost 0.25 s per training."""

MAX_OPEN_FILES = 10_240
"""Most systems start a process with 1,024 or 256; macOS allows no more than this."""

CGROUPS = Path("/sys/fs/cgroup")

_SIGHUP = getattr(signal, "SIGHUP", None)  # missing on Windows

_claimed = False
_core_limit = 0  # 0: none


def claim() -> None:
    """Mark this process as the command line's own, and have Python collect garbage less often.

    Warnings do not end it, even with ``PYTHONWARNINGS=error``: they are printed. Most come from libraries.
    """
    global _claimed  # noqa: PLW0603  # process-wide state
    _claimed = True
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    if any(option.startswith("e") for option in sys.warnoptions):  # "error" may be abbreviated
        warnings.simplefilter("default")


def is_claimed() -> bool:
    """Return whether this process is the command line's own, so that we may change its signals, exit and malloc."""
    return _claimed


def find_home() -> Path:
    """Return the user's home folder, or ``/`` for a user without one, as in Docker."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.sep)


def treat_sighup_as_sigterm() -> None:
    """Make SIGHUP, sent when a terminal closes or a connection is lost, do what SIGTERM does.

    Only once: a closing terminal sends it more than once, and a second SIGTERM stops training without saving its state.
    If SIGHUP is ignored, as under ``nohup``, or triggers a reload, that stays unchanged. Call it in the main thread; it
    has no effect outside the command line's own process.
    """
    if _SIGHUP is None or not is_claimed() or signal.getsignal(_SIGHUP) is not signal.SIG_DFL:
        return

    def terminate(_number: int, _frame: object) -> None:
        signal.signal(_SIGHUP, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(_SIGHUP, terminate)


def reload_at_sighup(reload: Callable[[], None]) -> None:
    """Make SIGHUP call `reload`, or do what SIGTERM does, once, if the terminal of the process has closed.

    Under ``nohup``, where the signal starts out ignored, the terminal does not matter. Call it in the main thread; it
    has no effect outside the command line's own process.
    """
    if _SIGHUP is None or not is_claimed():
        return
    ends_with_terminal = signal.getsignal(_SIGHUP) is not signal.SIG_IGN and has_terminal()

    def handle(_number: int, _frame: object) -> None:
        if not ends_with_terminal or has_terminal():
            reload()
            return
        signal.signal(_SIGHUP, signal.SIG_IGN)  # a closing terminal sends it more than once
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(_SIGHUP, handle)


def survive_sighup() -> None:
    """Make SIGHUP end this process only if its terminal has closed, until there is something to reload."""
    if _SIGHUP is not None and signal.getsignal(_SIGHUP) is signal.SIG_DFL:
        reload_at_sighup(lambda: None)


def raise_file_limit(count: int = MAX_OPEN_FILES) -> None:
    """Let the command line's own process open `count` files, or as many as the system allows, as archives stay open."""
    if not is_claimed():
        return
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = count if hard == resource.RLIM_INFINITY else min(hard, count)
        if soft != resource.RLIM_INFINITY and soft < limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def treat_sigterm_as_sigint() -> None:
    """Make SIGTERM do what Ctrl-C does, so that a command removes half-written files and exits with 130.

    If SIGTERM is ignored, it stays ignored. Call this in the main thread; it has no effect outside the command line's
    own process.
    """
    if is_claimed() and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def trim_memory() -> None:
    """Collect garbage, and return free memory to the system, since glibc's malloc keeps most of it.

    Without glibc it only collects garbage.
    """
    gc.collect()
    if sys.platform.startswith("linux"):
        import ctypes  # not needed by `sightline --help`

        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that has not been closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True


def limit_cores(count: int) -> None:
    """Make `count_cores` return at most `count`: the number of cores that a scheduler assigned to this process."""
    global _core_limit  # noqa: PLW0603  # process-wide state
    _core_limit = count


def count_cores() -> int:
    """Return how many cores this process may use, according to its CPU affinity and the quota of its cgroup."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _cpu_quota(), _core_limit or math.inf)))


class SharedSetting:
    """A setting of the whole process that overlapping contexts share: the first changes it, the last restores it.

    `change` returns the function that restores it.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._restores: list[Callable[[], None]] = []  # the same function, once for each context

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the setting changed within the context."""
        with self._lock:
            self._restores.append(self._restores[0] if self._restores else self._change())
        try:
            yield
        finally:
            with self._lock:
                restore = self._restores.pop()
                if not self._restores:
                    restore()


def one_blas_thread() -> AbstractContextManager[None]:
    """Let matrix products use one thread within the context: several threads slow small products down.

    This affects all threads of the process; see `SharedSetting`. Without threadpoolctl and SciPy, which come with
    scikit-learn, nothing changes.
    """
    return _BLAS_THREADS.hold()


def _limit_blas() -> Callable[[], None]:
    """Let matrix products use one thread; return a function that restores the number."""
    try:
        import scipy.optimize  # noqa: F401  # its own libraries are limited only once they are loaded
        from threadpoolctl import threadpool_limits
    except ImportError:
        return lambda: None
    restore: Callable[[], None] = threadpool_limits(1, user_api="blas").restore_original_limits
    return restore


_BLAS_THREADS = SharedSetting(_limit_blas)


def count_memory() -> float:
    """Return how many bytes of memory this process may use: the machine's memory, or the limit of its cgroup.

    Infinity where neither is known.
    """
    limits = [*_read_cgroups("memory.max"), *_read_cgroups("memory.limit_in_bytes", "memory")]
    smallest = min((int(text) for text in limits if text.strip().isdecimal()), default=math.inf)  # otherwise "max"
    try:
        return min(smallest, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):  # not on Windows
        return smallest


def is_memory_short() -> bool:
    """Return whether memory is so short that saving it is worth some time."""
    return count_memory() < LITTLE_MEMORY


def describe_processor() -> list[str]:
    """Return the processor's name and features, which determine how sums are grouped."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if features := sorted({line for line in lines if line.startswith(("model name", "flags"))}):
            return features
    return [platform.processor(), platform.machine()]


def has_int8_instructions() -> bool:
    """Return whether the processor has AVX2, with which int8 networks are faster; False if that is not known."""
    return any("avx2" in line.partition(":")[2].split() for line in describe_processor())


def _cpu_quota() -> float:
    """Return the smallest CPU quota of this process's cgroup (version 2) and its ancestors, in cores; else infinity."""
    smallest = math.inf
    for text in _read_cgroups("cpu.max"):
        try:
            quota, period = text.split()
            smallest = min(smallest, int(quota) / int(period))
        except (ValueError, ZeroDivisionError):  # "max": no limit
            continue
    return smallest


def _read_cgroups(name: str, controller: str = "") -> list[str]:
    """Return the contents of the file `name` in this process's cgroup and its ancestors, where it exists.

    With a `controller`, the cgroups of version 1, else of version 2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    paths = [path for _, names, path in (line.split(":", 2) for line in lines) if controller in names.split(",")]
    root, texts = CGROUPS / controller, []
    folder = root / (paths or ["/"])[0].lstrip("/")
    for cgroup in (folder, *folder.parents):
        if cgroup.is_relative_to(root):
            with suppress(OSError):  # a container may see its own cgroup as the root
                texts.append((cgroup / name).read_text(encoding="utf-8"))
    return texts
