"""Change the state of this process: memory allocation, logging, random generators. All but `tune_malloc` restore it."""

from __future__ import annotations

import ctypes
import logging
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sightline import process


def tune_malloc() -> None:
    """Tune glibc's malloc to reuse freed blocks instead of returning them to the system.

    Only has an effect in the command line's own process, on at most `process.MAX_SINGLE_ARENA_CORES` cores, with glibc.
    Meant for TensorFlow on a CPU; call it before the first thread starts. By default each thread has its own arena, and
    blocks above 64 MiB, such as a batch's activations, fit only in the first one: in each step they are mapped, zeroed
    by the kernel and unmapped again. With this function, frozen MobileNetV2 features took 6.3 and 8.8 s instead of 10.5
    and 15.1 s on 2 cores. With 16 cores, all of XLA's threads would contend for the lock of a single arena: the first
    epoch took 30.7 s instead of 6.2 s. The constants come from <malloc.h>.
    """
    few_cores = process.count_cores() <= process.MAX_SINGLE_ARENA_CORES
    if not (process.is_claimed() and sys.platform.startswith("linux") and few_cores):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(arena_max, 1)
    if not process.is_memory_short():
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_max, 0)


@contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Restore PyTorch's number of threads and its setting for deterministic operations at the end of the block.

    `backend.configure` changes both for the whole process. The command line's own process, which ends soon, keeps them.
    """
    before = _read_torch_settings()
    try:
        yield
    finally:
        torch: Any = sys.modules.get("torch")
        if torch is not None and not process.is_claimed():
            threads, deterministic, warn_only, benchmark = before or (None, False, False, False)
            if threads is not None:
                torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            torch.backends.cudnn.benchmark = benchmark


def _read_torch_settings() -> tuple[int, bool, bool, bool] | None:
    """Return the settings to restore; None if PyTorch is not imported yet."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None
    is_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    return torch.get_num_threads(), deterministic, is_warning, torch.backends.cudnn.benchmark


@contextmanager
def seed_new_layers(seed: int) -> Iterator[None]:
    """Seed Python's `random` in the block, and restore its state afterwards.

    Keras uses it to draw the seed of each initializer and dropout layer without a seed
    (``keras.src.random.seed_generator.make_default_seed``). `keras.utils.set_random_seed` would also reseed NumPy and
    the backend permanently, although Keras uses neither to build a model.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class _ThreadFilter(logging.Filter):
    """Drops records below ERROR that are logged by one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or threading.get_ident() != self.thread


@contextmanager
def silence_logging(*names: str) -> Iterator[None]:
    """Suppress this thread's records below ERROR to the loggers `names` ("" is the root logger) in the block.

    TensorFlow warns about retracing in each stage, and about its own converter; ONNX Runtime's quantizer gives advice
    through the root logger, where the first record would install a handler if there is none.
    """
    loggers, log_filter = [logging.getLogger(name) for name in names], _ThreadFilter()
    root, placeholder = logging.getLogger(), logging.NullHandler()
    needs_placeholder = "" in names and not root.handlers  # `logging.warning` would call basicConfig
    if needs_placeholder:
        root.addHandler(placeholder)
    for logger in loggers:
        logger.addFilter(log_filter)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(log_filter)
        if needs_placeholder:
            root.removeHandler(placeholder)
