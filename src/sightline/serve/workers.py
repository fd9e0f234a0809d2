"""Several worker processes that serve one address, and the process that starts, replaces and stops them.

Each worker is a complete server with its part of the cores and of the limits. Once ready, it listens on a socket of its
own with the common address (SO_REUSEPORT), and the system distributes connections over the listening workers. With a
single socket, the first process to wake up takes most of them: 40 of 40 consecutive connections.

uvicorn's own supervisor uses one socket, restarts a lost worker without delay and without limit, does not bound the
time of a stop, and restarts all workers at SIGHUP, which here checks for changed models.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client.multiprocess import mark_process_dead

from sightline import errors, jsonio, process
from sightline.errors import OutputError, ProcessError, SightlineError, UsageError
from sightline.serve.log_stream import write_stderr_in_thread
from sightline.serve.metrics import SHARED_FOLDER
from sightline.serve.observing import set_log_format

if TYPE_CHECKING:
    from sightline.serve.listening import Listener
    from sightline.serve.server import Settings

CHILD_CODE = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from sightline.serve.workers import answer; answer()"
)
POLL_SECONDS = 0.05
FIRST_WAIT, MAX_WAIT = 1.0, 60.0  # seconds before a lost worker is started again; doubles each time
STABLE_SECONDS = 60.0  # a worker lost after running for so long is restarted after `FIRST_WAIT` again
END_SECONDS = 2.0  # workers are killed so long after the grace period
_LOG = logging.getLogger(__name__)


def run_workers(
    settings: Settings,
    listener: Listener,
    count: int,
    requested: asyncio.Event,
    on_message: Callable[[str], None],
    *,
    on_start: Callable[[], None],
) -> None:
    """Serve the address of a socket with `count` processes until a signal, then close the socket.

    The first worker starts alone, so that a problem with the models is reported once; `on_start` is called when it is
    ready. A lost worker is restarted after a second, then two, four and so on up to a minute. When `requested` is set,
    all workers check for changed models.

    Raises the error of a worker that does not start, once running only if no worker is left; `ProcessError` if the
    worker reported no error; `OutputError` without a temporary folder.
    """
    names = ("requests", "body_bytes", "connections")
    parts = {name: math.ceil(getattr(settings.limits, name) / count) for name in names}
    settings = replace(settings, limits=replace(settings.limits, **parts))
    cores = max(1, process.count_cores() // count)
    with (
        write_stderr_in_thread(),
        set_log_format(settings.log_format),
        _make_folder() as folder,
        _handle_signals() as signals,
    ):
        workers: list[_Worker] = []
        try:
            while len(workers) < count and not signals.stops:
                workers.append(_Worker(len(workers) + 1, settings, listener, cores, folder, on_message))
                if len(workers) == 1:
                    _wait_until_ready(workers[0], signals)
                    if not signals.stops:
                        on_start()
            _keep_alive(workers, signals, requested)
            _stop(workers, signals, settings.grace)
        finally:
            for worker in workers:
                worker.kill()


def check_options(settings: Settings) -> None:
    """Raise `UsageError` for options that need one worker, and where there can be only one."""
    if os.name != "posix":
        raise UsageError("Several workers need Linux or macOS: leave --workers out, and start a server on each port.")
    if settings.log_features is not None:
        raise UsageError(
            "--log-features is a log of one process, in the order of its images, as `sightline watch` needs it: leave "
            "--workers out."
        )


@contextmanager
def _make_folder() -> Iterator[str]:
    """Yield a folder for the shared metrics of the workers, and delete it at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="sightline-metrics-")
    except OSError as error:
        raise OutputError(
            f"Several workers keep their metrics in a folder for temporary files, and there is none: {error}. Name a "
            "writable one with the variable TMPDIR."
        ) from error
    with folder as name:
        yield name


class _Signals:
    """Counts how often the process was asked to stop."""

    stops = 0


@contextmanager
def _handle_signals() -> Iterator[_Signals]:
    """Handle SIGINT and SIGTERM like a server with one process."""
    signals, before = _Signals(), dict[signal.Signals, Any]()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def stop(*_: object) -> None:
        signals.stops += 1

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        yield signals
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Worker:
    """A slot for one process; `look` restarts the process when it is lost."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        listener: Listener,
        cores: int,
        folder: str,
        on_message: Callable[[str], None],
    ) -> None:
        self._number, self._settings, self._listener, self._cores = number, settings, listener, cores
        self._folder = folder
        self._on_message: Callable[[str], None] | None = on_message if number == 1 else None
        self.was_ready = self.is_ready = self._must_reload = False
        self._wait, self._next_start = FIRST_WAIT, math.inf
        self._status: int | None = None  # descriptor of the process's messages, while it runs
        self._text = b""
        self._error: SightlineError | None = None  # reported by the process
        self._ready_time: float | None = None
        self._start()

    def _start(self) -> None:
        read, write = os.pipe()
        settings, address = self._settings, self._listener.getsockname()[:2]
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD_CODE],
                stdin=subprocess.PIPE,  # end of file tells the worker that this process has ended
                pass_fds=(write,),
                start_new_session=True,  # Ctrl-C and a closing terminal are for this process alone
                env={**os.environ, SHARED_FOLDER: self._folder},
            )
        except OSError as error:
            os.close(read)
            raise ProcessError(f"Worker {self._number} cannot be started: {error.strerror or error}.") from error
        finally:
            os.close(write)
        os.set_blocking(read, False)
        self._status, self._text, self._error, self._ready_time = read, b"", None, None
        self._must_reload = False
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.write(pickle.dumps(sys.path))
            self._child.stdin.write(pickle.dumps((settings, address, write, self._cores)))
            self._child.stdin.flush()

    @property
    def is_running(self) -> bool:
        return self._status is not None

    def look(self, *, is_needed: bool = True) -> None:
        """Read the messages of the process, and restart it if it was lost and its waiting time is over.

        Raises the error of a process that does not start, if it is the first in this slot or `is_needed`.
        """
        try:
            self._look()
        except SightlineError as error:
            if is_needed or not self.was_ready:
                raise
            self._plan(str(error))

    def _look(self) -> None:
        if not self.is_running:
            if time.monotonic() >= self._next_start:
                self._start()
            return
        has_ended = self._child.poll() is not None
        self._read()
        if not has_ended:
            return
        reason = self._reap()
        if self._ready_time is None:
            raise self._error or ProcessError(f"Worker {self._number} ended at its start ({reason}).")
        if time.monotonic() - self._ready_time > STABLE_SECONDS:
            self._wait = FIRST_WAIT
        self._plan(f"Worker {self._number} has ended ({reason}).")

    def _plan(self, reason: str) -> None:
        _LOG.error("%s Worker %d is started again in %g s.", reason, self._number, self._wait)
        self._next_start = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, MAX_WAIT)

    def _read(self) -> None:
        assert self._status is not None
        with suppress(BlockingIOError):
            while data := os.read(self._status, 1 << 16):
                self._text += data
        *lines, self._text = self._text.split(b"\n")
        for kind, text in map(json.loads, lines):
            if kind == "ready":
                self.is_ready = self.was_ready = True
                self._ready_time, self._on_message = time.monotonic(), None
                if self._must_reload:
                    self.reload()
            elif kind == "message" and self._on_message is not None:
                self._on_message(text)
            elif kind in {"UsageError", "ModelError", "OutputError"}:
                self._error = getattr(errors, kind)(text)
            elif kind != "message":
                self._error = ProcessError(text)

    def _reap(self) -> str:
        """Forget a process that has ended, and return how it ended."""
        assert self._status is not None
        code = self._child.wait()
        os.close(self._status)
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        self._status, self.is_ready, self._next_start = None, False, math.inf
        mark_process_dead(self._child.pid, self._folder)  # type: ignore[no-untyped-call]
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def forget_ended(self) -> None:
        """Forget a process that has ended, without starting it again."""
        if self.is_running and self._child.poll() is not None:
            self._reap()

    def reload(self) -> None:
        """Make the process check for changed models, once it is ready: it may have read the old ones."""
        self._must_reload = not self.is_ready
        if self.is_ready:
            self._child.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Ask the process to stop, if there is one."""
        if self.is_running:
            self._child.terminate()

    def kill(self) -> None:
        """Kill the process, if there is one."""
        if self.is_running:
            self._child.kill()
            self._reap()


def _wait_until_ready(worker: _Worker, signals: _Signals) -> None:
    while not (worker.is_ready or signals.stops):
        worker.look()
        time.sleep(POLL_SECONDS)


def _keep_alive(workers: list[_Worker], signals: _Signals, requested: asyncio.Event) -> None:
    """Restart lost workers until the first signal; raise `ProcessError` if none is left."""
    while not signals.stops:
        for worker in workers:
            worker.look(is_needed=not any(other.is_running for other in workers if other is not worker))
        if requested.is_set():
            requested.clear()
            for worker in workers:
                worker.reload()
        time.sleep(POLL_SECONDS)


def _stop(workers: list[_Worker], signals: _Signals, grace: float) -> None:
    """Let all workers finish their requests; each further signal makes them stop at once."""
    sent, end = 0, time.monotonic() + grace + END_SECONDS
    while any(worker.is_running for worker in workers) and time.monotonic() < end:
        if sent < signals.stops:
            sent = signals.stops
            for worker in workers:
                worker.stop()
        time.sleep(POLL_SECONDS)
        for worker in workers:
            worker.forget_ended()


def answer() -> None:
    """Run as a worker until SIGTERM, or until the parent process has ended."""
    from sightline.serve.listening import Listener, bind
    from sightline.serve.server import handle_signals, run

    settings, (host, port), status, cores = pickle.load(sys.stdin.buffer)  # noqa: S301  # comes from the parent process
    process.claim()
    requested = handle_signals()
    process.limit_cores(cores)
    threading.Thread(target=_stop_with_parent, daemon=True).start()

    def tell(kind: str, text: str = "") -> None:
        with suppress(BrokenPipeError):
            os.write(status, f"{jsonio.dumps([kind, text])}\n".encode())

    try:
        with bind(Listener, host, port, is_shared=True) as listener:
            run(settings, listener, requested, partial(tell, "message"), on_ready=partial(tell, "ready"))
    except SightlineError as error:
        tell(type(error).__name__, str(error))
        sys.exit(error.exit_code)


def _stop_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through the buffer: its lock would be held when Python exits
    shutil.rmtree(os.environ[SHARED_FOLDER], ignore_errors=True)  # the parent was killed before it could
    os.kill(os.getpid(), signal.SIGTERM)
