"""Ctrl-C and SIGTERM (and SIGHUP, see `process`): between two steps of training, never inside one; elsewhere at once.

Handlers are set in the command line's own process alone (`process.claim`). A program that calls Sightline keeps its
own: there Ctrl-C raises `KeyboardInterrupt` at once, and the run is resumed from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sightline import process
from sightline.errors import Interrupted
from sightline.escaping import printable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Becomes true when the user asked to stop; a second request interrupts at once.

    `agreed` tells of what one host was asked whether any was (`hosts.agreement`), so that all stop at the same step.
    """

    def __init__(self, agreed: Callable[[bool], bool] = bool) -> None:
        self.asked = False
        self._agreed = agreed
        self._due = False

    @property
    def due(self) -> bool:
        """Whether it is to stop now; several hosts must look at it equally often."""
        self._due = self._due or self._agreed(self.asked)
        return self._due

    def check(self, where: str) -> None:
        """Raise `Interrupted` if the user asked to stop; `where` goes into its message."""
        if self.due:
            raise Interrupted(f"Stopped {where}.")

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _ours() -> bool:
    """Tell whether handlers may be set: in the command line's process, and there in the main thread alone."""
    return process.claimed() and threading.current_thread() is threading.main_thread()


@contextmanager
def listening(agreed: Callable[[bool], bool] = bool) -> Iterator[Stop]:
    """Catch the signals while the block runs, where they are ours to catch. `agreed`: see `Stop`."""
    stop = Stop(agreed)
    if not _ours():
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
    if not _ours():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def leaving(last: Callable[[], str]) -> Iterator[None]:
    """Let SIGTERM end the process with 130 while the block runs, after the `last` words, whose return value is shown.

    For stages deep in native code, where nothing is left to tidy up: an exception raised in a Python function that such
    code has called may end in a segmentation fault, as was seen within the export. `listening` may stand within.
    """
    if not _ours():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        try:
            os.write(2, f"error: {printable(last())}\n".encode())  # no lock that the interrupted code may hold
        finally:
            os._exit(Interrupted.exit_code)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
