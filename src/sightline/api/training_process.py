"""Train in a child process, whose memory is returned to the system when it exits.

Keras and TensorFlow retain memory of each training run until the process exits. A sweep of many trials must not
accumulate it, and a trial killed by the out-of-memory killer must not end the sweep. A Ray worker also trains in a
child, where it may handle signals, so that it can be asked to stop between two steps.

Parent and child exchange pickles. The child reads its arguments, and after each epoch whether to continue, from
standard input; its standard output carries only events and the result; all else goes to standard error. The caller's
script is not imported in the child, so it needs no ``if __name__ == "__main__"``. The child has its own session: Ctrl-C
reaches only the parent, which forwards it. The child exits as soon as its parent is gone.
"""

from __future__ import annotations

import io
import os
import pickle
import pkgutil
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, cast

from sightline import process
from sightline.callbacks import Callback, EpochRecord
from sightline.data.indexing import Sources
from sightline.errors import Interrupted, ProcessError, SightlineError, UsageError
from sightline.escaping import printable
from sightline.training.result import TrainResult

CHILD_CODE = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from "
    "sightline.api.training_process import main; main()"
)

TRAIN, RESUME = "sightline.api.training:train_run", "sightline.api.resuming:resume"  # imported by the child alone
STEP_INTERVAL = 0.25  # minimum seconds between two steps reported by the child


def train_in_subprocess(sources: Sources, *, callback: Callback, **options: Any) -> TrainResult:
    """Run `train_run` with these arguments in a new process, as `run_in_subprocess` does, and call `callback` here."""
    return run_in_subprocess(TRAIN, {"sources": sources, **options}, partial(deliver_event, callback))


def deliver_event(callback: Callback, name: str, arguments: tuple[Any, ...]) -> str | None:
    """Call the method `name` of `callback`; return why training should stop if the end of an epoch stops it."""
    try:
        getattr(callback, name)(*arguments)
    except Interrupted as stop:
        if name != "on_epoch_end":
            raise
        return str(stop)
    return None


def run_in_subprocess(
    function: str,
    options: Mapping[str, Any],
    on_event: Callable[[str, tuple[Any, ...]], str | None],
    *,
    folder: str | None = None,
    on_start: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> TrainResult:
    """Run `TRAIN` or `RESUME` in a new process, and return or raise its outcome.

    `on_event` receives the name of each method of `Callback` that is called in the child, and its arguments;
    `on_step_end` is called a few times a second, and a value other than None that is returned for `on_epoch_end` is the
    reason to stop. `folder` is the working directory, by default that of this process; `on_start` receives the new
    process. In the command line's own process, Ctrl-C and SIGTERM are forwarded: the first saves a checkpoint and
    stops, the second stops immediately, the third kills the child. Elsewhere, a `KeyboardInterrupt` also stops it.

    Raises `ProcessError` if the process ends without an outcome, `UsageError` if an option cannot be pickled.
    """
    try:
        task = pickle.dumps((sys.argv, function, dict(options)))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"These images cannot be sent to another process ({error}): give their folder, archive or manifest."
        ) from error
    with (
        subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD_CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # so that closing a broken pipe has nothing left to flush
            start_new_session=True,
            cwd=folder,
        ) as child,
        _forwarding_signals(child) as signals,
    ):
        child.stdout = io.BufferedReader(cast("io.RawIOBase", child.stdout))
        if on_start is not None:
            on_start(child)
        try:
            _send(child, pickle.dumps(sys.path) + task)
            kind, content = _relay_events(child, on_event)
        except EOFError:
            raise _unexpected_end(child.wait(), stopped=signals.count > 0) from None
        except BaseException:
            _terminate(child)
            raise
    if kind == "error":
        raise content
    if kind == "fault":
        raise RuntimeError(f"Internal error in a training process: {content}")
    outcome: TrainResult = content
    return outcome


def _relay_events(
    child: subprocess.Popen[bytes], on_event: Callable[[str, tuple[Any, ...]], str | None]
) -> tuple[str, Any]:
    """Relay events until the outcome arrives; return its kind (result, error, fault) and content."""
    assert child.stdout is not None
    while True:
        kind, content = pickle.load(child.stdout)  # noqa: S301  # from a process that we started
        if kind != "event":
            return kind, content
        name, arguments = content
        verdict = on_event(name, arguments)
        if name == "on_epoch_end":
            _send(child, pickle.dumps(verdict))


def _send(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    remaining = memoryview(data)
    with suppress(BrokenPipeError):  # the child has exited, as reading will show
        while remaining:
            remaining = remaining[child.stdin.write(remaining) :]


def _terminate(child: subprocess.Popen[bytes]) -> None:
    """Terminate the child and wait for it, discarding its output."""
    assert child.stdout is not None
    child.terminate()
    _send(child, pickle.dumps(None))  # if it waits for a reply, it continues and sees the signal
    try:
        while child.stdout.read(1 << 16):
            pass
        child.wait()
    except KeyboardInterrupt:
        child.kill()
        raise


def _unexpected_end(code: int, *, stopped: bool) -> SightlineError:
    if stopped or code == Interrupted.exit_code:
        return Interrupted("Stopped.")
    if code < 0:
        name = signal.Signals(-code).name
        why = ", probably by the out-of-memory killer" if name == "SIGKILL" else ""
        return ProcessError(f"The training process was ended by {name}{why}.")
    return ProcessError(f"The training process ended with exit code {code} and no result.")


@dataclass(slots=True)
class _SignalCount:
    count: int = 0


@contextmanager
def _forwarding_signals(child: subprocess.Popen[bytes]) -> Iterator[_SignalCount]:
    """Forward Ctrl-C and SIGTERM to the child during the block, if this process owns its signals; count them."""
    signal_count = _SignalCount()
    if not process.is_claimed() or threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield signal_count
        return

    def forward(_signal: int, _frame: object) -> None:
        signal_count.count += 1
        child.send_signal(signal.SIGTERM if signal_count.count < 3 else signal.SIGKILL)

    previous_handlers = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signal_count
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


# ---- in the child ----------------------------------------------------------------------------------------------------


class _EventSender(Callback):
    """Sends events to the parent, and waits for its reply after each epoch."""

    def __init__(self, events: IO[bytes], replies: queue.SimpleQueue[str | None]) -> None:
        self._events, self._replies, self._lock = events, replies, threading.Lock()
        self._step_time = 0.0

    def send(self, kind: str, content: object) -> None:
        """Send an event or the outcome."""
        data = pickle.dumps((kind, content))
        with self._lock:
            self._events.write(data)
            self._events.flush()

    def on_message(self, text: str) -> None:
        """Send a line of text."""
        self.send("event", ("on_message", (text,)))

    def on_progress(self, task: str, done: int, total: int) -> None:
        """Send the progress of slow work."""
        self.send("event", ("on_progress", (task, done, total)))

    def on_stage_begin(self, name: str, epochs: int, steps: int) -> None:
        """Send the beginning of a stage."""
        self.send("event", ("on_stage_begin", (name, epochs, steps)))

    def on_step_end(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Send a step, unless another was sent just before."""
        if time.monotonic() - self._step_time >= STEP_INTERVAL:
            self._step_time = time.monotonic()
            self.send("event", ("on_step_end", (epoch, step, loss, accuracy, images_per_second)))

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Send an epoch; raises `Interrupted` if the parent stops the training."""
        self.send("event", ("on_epoch_end", (record,)))
        verdict = self._replies.get()
        if verdict is not None:
            raise Interrupted(verdict)


def main() -> None:
    """Call the function that the parent names, with its arguments, and exit."""
    process.claim()  # this process owns its signals, exit code and memory
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.argv, function, options = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the process that started this one
    replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_replies, args=(replies,), daemon=True).start()
    reporter = _EventSender(events, replies)
    try:
        reporter.send("result", pkgutil.resolve_name(function)(**options, callback=reporter))
    except SightlineError as error:
        reporter.send("error", error)
    except KeyboardInterrupt:
        reporter.send("error", Interrupted("Stopped."))
    except Exception as error:  # noqa: BLE001  # reported to the parent as an internal error
        sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        reporter.send("fault", f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(0)  # the listening thread still blocks on standard input


def _read_replies(replies: queue.SimpleQueue[str | None]) -> None:
    """Queue the replies of the parent; exit immediately if the parent is gone."""
    while True:
        try:
            replies.put(pickle.load(sys.stdin.buffer))  # noqa: S301  # from the process that started this one
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
