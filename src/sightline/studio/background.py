"""`BackgroundTask`: long work in a background thread, with progress."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import Any

from sightline.callbacks import Callback, Progress
from sightline.errors import SightlineError

_NOTHING = {"task": "", "done": 0, "total": 0, "error": ""}  # no progress yet


class _Stopped(Exception):  # not an error
    """The studio is being closed."""


class ProgressCallback(Callback):
    """Passes on the progress of a call that takes a callback."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Report it."""
        self._progress(task, done, total)


class BackgroundTask:
    """Runs a function when it is started; methods may be called from any thread."""

    def __init__(self, name: str, work: Callable[[Progress], None], *, repeats: bool = False) -> None:
        """`work` is called with a function that reports the task, how much is done, and the total.

        That function raises an exception when the task is stopped. Once complete, only a task that `repeats` can be
        started again.
        """
        self._name, self._work = name, work
        self._final = {"running"} if repeats else {"running", "complete"}
        self._lock, self._is_stopped = Lock(), Event()
        self._thread: Thread | None = None
        self._state: dict[str, Any] = {"status": "new"} | _NOTHING

    @property
    def state(self) -> dict[str, Any]:
        """The `status` (new, running, complete or failed), and the progress of the current task."""
        return dict(self._state)

    def start(self) -> None:
        """Start, unless the task is running, or complete and not to be repeated."""
        with self._lock:
            if self._state["status"] in self._final:
                return
            self._state |= {"status": "running"} | _NOTHING
            self._thread = Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until the task ends."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Cancel the task, if it is running, and wait until it has ended."""
        self._is_stopped.set()
        self.wait()

    def _run(self) -> None:
        try:
            self._work(self._report)
            self._state["status"] = "complete"
        except _Stopped:
            self._state["status"] = "new"
        except SightlineError as error:
            self._state |= {"status": "failed", "error": str(error)}
        except BaseException:
            self._state |= {"status": "failed", "error": "Internal error: see the terminal."}
            raise

    def _report(self, task: str, done: int, total: int) -> None:
        if self._is_stopped.is_set():
            raise _Stopped
        self._state |= {"task": task, "done": done, "total": total}


class RepeatedTask:
    """Runs a function each time it is started, and once more if it is started while running."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._name, self._work = name, work
        self._lock = Lock()
        self._is_wanted = self._is_running = self._is_stopped = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Run the function in a thread, after the running call if there is one."""
        with self._lock:
            self._is_wanted = not self._is_stopped
            if self._is_wanted and not self._is_running:
                self._is_running = True
                self._thread = Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the function is running or about to run."""
        return self._is_running

    def wait(self) -> None:
        """Wait until nothing runs."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Wait until the current call has ended, and start no more."""
        with self._lock:
            self._is_stopped, self._is_wanted = True, False
        self.wait()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._is_running = self._is_wanted
                if not self._is_running:
                    return
                self._is_wanted = False
            try:
                self._work()
            except BaseException:
                with self._lock:
                    self._is_running = False
                raise
