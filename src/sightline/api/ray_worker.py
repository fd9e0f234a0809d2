"""A Ray worker: an actor that trains in a child process, which can be asked to stop between two steps."""

from __future__ import annotations

import queue
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sightline.api.training_process import deliver_event, run_in_subprocess
from sightline.callbacks import Callback
from sightline.errors import Interrupted, ProcessError, SightlineError, UsageError
from sightline.training.result import TrainResult

Call = tuple[str, dict[str, Any]]
"""`training_process.TRAIN` or ``RESUME``, and the options of that function."""

Outcome = TrainResult | SightlineError | RuntimeError


class TrainingWorker:
    """The actor, which trains in the working directory of the driver."""

    def __init__(self, folder: str, command: list[str]) -> None:
        self._folder, self._command = folder, command
        self._events: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = False

    def choose_address(self) -> str:
        """Return the address of this node and a free port."""
        from ray.util import get_node_ip_address

        with socket.create_server(("", 0)) as server:
            return f"{get_node_ip_address()}:{server.getsockname()[1]}"

    def run(self, call: Call, *, has_listener: bool) -> Outcome:
        """Train, and return the outcome, even an error; `wait_for_events` returns the events if `has_listener`."""
        sys.argv = self._command
        function, options = call
        try:
            if not Path(self._folder).is_dir():
                raise UsageError(
                    f"The node {socket.gethostname()} of the Ray cluster has no folder {self._folder}, where the "
                    "command was started: start it in a folder that all nodes share, as they must share images and run."
                )
            on_event = self._queue_event if has_listener else partial(deliver_event, Callback())
            return run_in_subprocess(function, options, on_event, folder=self._folder, on_start=self._keep_child)
        except ProcessError as error:  # stopped before it could handle signals
            return Interrupted("Stopped.") if self._is_stopping else error
        except (SightlineError, RuntimeError) as error:
            return error
        finally:
            self._events.put(None)

    def wait_for_events(self) -> list[tuple[str, tuple[Any, ...]] | None]:
        """Wait for events, and return all available ones; None marks the end."""
        events = [self._events.get()]
        with suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        return events

    def reply(self, verdict: str | None) -> None:
        """Reply to the end of an epoch: None to continue, or the reason to stop."""
        self._replies.put(verdict)

    def stop(self) -> None:
        """Ask the child to save its state and stop."""
        self._is_stopping = True
        self._replies.put(None)  # it may be waiting for a reply
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _queue_event(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        self._events.put((name, arguments))
        return self._replies.get() if name == "on_epoch_end" else None

    def _keep_child(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        if self._is_stopping:
            child.send_signal(signal.SIGTERM)
