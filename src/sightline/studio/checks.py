"""`BackgroundCheck`: the checks of `sightline doctor`, in a thread beside the page."""

from __future__ import annotations

from threading import Event, Lock, Thread
from typing import Any

from sightline.config import InputConfig
from sightline.data.checks.audit import audit_images
from sightline.data.types import Index
from sightline.errors import SightlineError
from sightline.runs.resolve import inspection_preprocess
from sightline.studio.library import Library


class _Stopped(Exception):  # not an error
    """The studio ends."""


class BackgroundCheck:
    """Looks for problems in the images once, and puts what it finds into the library."""

    def __init__(self, index: Index, library: Library, input_config: InputConfig) -> None:
        self._index, self._library, self._input_config = index, library, input_config
        self._lock, self._is_stopped = Lock(), Event()
        self._thread: Thread | None = None
        self._state: dict[str, Any] = {"status": "new", "task": "", "done": 0, "total": 0, "error": ""}

    @property
    def state(self) -> dict[str, Any]:
        """The `status` (new, running, complete or failed), and the progress of the current task."""
        return dict(self._state)

    def start(self) -> None:
        """Start, unless it runs or ran before."""
        with self._lock:
            if self._state["status"] in {"running", "complete"}:
                return
            self._state["status"] = "running"
            self._thread = Thread(target=self._run, name="check", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until it ends."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Give it up, if it runs, and wait until it has ended."""
        self._is_stopped.set()
        self.wait()

    def _run(self) -> None:
        try:
            preprocess, sample_range = inspection_preprocess(self._input_config, self._index)
            audit, _, _ = audit_images(self._index, self._report, None, sample_range, preprocess)
            self._library.set_findings(audit.findings)
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
