"""Ctrl-C and SIGTERM: between two steps of training, never inside one; elsewhere at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sightline.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Becomes true when the user asked to stop; a second request interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def check(self, where: str) -> None:
        """Raise `Interrupted` if the user asked to stop; `where` goes into its message."""
        if self.asked:
            raise Interrupted(f"Stopped {where}.")

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def listening() -> Iterator[Stop]:
    """Catch the signals while the block runs; outside the main thread nothing is caught."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, stop._handle) for s in _SIGNALS}  # noqa: SLF001
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def at_once() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` while the block runs, as Ctrl-C does; `listening` may stand within."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
