"""Handle Ctrl-C and SIGTERM (and SIGHUP, see `process`): training stops between steps, other work immediately.

Handlers are installed only in the command line's own process (`process.claim`). A program that uses Sightline as a
library keeps its own handlers: Ctrl-C raises `KeyboardInterrupt`, and a run can be resumed from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from sightline import process
from sightline._keras import imports
from sightline.errors import Interrupted
from sightline.escaping import printable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A request to stop at the next safe point; a second request interrupts immediately.

    `agree` combines the requests of all hosts (`cluster.make_any_host`), so that all of them stop at the same step.
    """

    def __init__(self, agree: Callable[[bool], bool]) -> None:
        self.requested = False
        self._agree = agree
        self._is_due = False

    @property
    def is_due(self) -> bool:
        """Whether to stop now; every host must read this the same number of times."""
        self._is_due = self._is_due or self._agree(self.requested)
        return self._is_due

    def check(self, where: str) -> None:
        """Raise `Interrupted` if a stop was requested; its message includes `where`."""
        if self.is_due:
            raise Interrupted(f"Stopped {where}.")

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def _handling(
    signals: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], object] | signal.Handlers
) -> Iterator[None]:
    """Install a handler within the context, in the main thread of the command line's process only."""
    if not process.is_claimed() or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {s: signal.signal(s, handler) for s in signals}
    try:
        yield
    finally:
        for s, previous_handler in previous_handlers.items():
            signal.signal(s, previous_handler)


@contextmanager
def catch_stop_signals(agree: Callable[[bool], bool] = bool) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM within the context, if handlers may be installed; see `StopRequest` for `agree`."""
    stop = StopRequest(agree)
    with _handling(_SIGNALS, stop._handle):  # noqa: SLF001
        yield stop


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `KeyboardInterrupt` within the context, like Ctrl-C; may contain `catch_stop_signals`."""
    with _handling((signal.SIGTERM,), signal.default_int_handler):
        yield


@contextmanager
def exit_on_sigterm(make_message: Callable[[], str]) -> Iterator[None]:
    """Make SIGTERM exit the process with status 130 within the context, after printing the result of `make_message`.

    For long calls into native code that need no cleanup: an exception in a Python callback of native code can cause a
    segmentation fault, as has happened during export. May contain `catch_stop_signals`.
    """

    def exit_now(_number: int, _frame: FrameType | None) -> None:
        try:
            message = f"error: {printable(make_message())}\n".encode()
            os.write(imports.find_stderr(), message)  # bypasses locks that the interrupted code may hold
        finally:
            os._exit(Interrupted.exit_code)

    with _handling((signal.SIGTERM,), exit_now):
        yield


@contextmanager
def end_on_stop_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process within the context, for waits in native code, which runs no handlers."""
    with _handling(_SIGNALS, signal.SIG_DFL):
        yield
