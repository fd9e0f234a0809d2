"""Handle Ctrl-C and SIGTERM (and SIGHUP, see `process`): training stops between two steps, other work immediately.

Handlers are installed only in the process of the command line (`process.claim`). A program that uses Sightline as a
library keeps its own handlers: Ctrl-C raises `KeyboardInterrupt`, and a run can be resumed from its last checkpoint.
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
    """A request to stop at the next safe point; a second request interrupts immediately.

    `agreed` combines the requests of all hosts (`hosts.agreement`), so that all of them stop at the same step.
    """

    def __init__(self, agreed: Callable[[bool], bool] = bool) -> None:
        self.asked = False
        self._agreed = agreed
        self._due = False

    @property
    def due(self) -> bool:
        """Whether to stop now; every host must read this equally often."""
        self._due = self._due or self._agreed(self.asked)
        return self._due

    def check(self, where: str) -> None:
        """Raise `Interrupted` if a stop was requested; `where` becomes part of its message."""
        if self.due:
            raise Interrupted(f"Stopped {where}.")

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _ours() -> bool:
    """Return whether handlers may be installed: only in the main thread of the command line's process."""
    return process.claimed() and threading.current_thread() is threading.main_thread()


@contextmanager
def listening(agreed: Callable[[bool], bool] = bool) -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM within the context, if handlers may be installed; for `agreed` see `Stop`."""
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
    """Make SIGTERM raise `KeyboardInterrupt` within the context, as Ctrl-C does; may contain `listening`."""
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
    """Make SIGTERM exit the process with status 130 within the context, after printing what `last` returns.

    For long calls into native code that need no cleanup: an exception raised in a Python callback of native code can
    cause a segmentation fault, as happened during export. May contain `listening`.
    """
    if not _ours():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        try:
            os.write(2, f"error: {printable(last())}\n".encode())  # bypasses locks that the interrupted code may hold
        finally:
            os._exit(Interrupted.exit_code)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
