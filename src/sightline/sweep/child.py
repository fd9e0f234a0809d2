"""A training in a process of its own, all of whose memory goes back to the system with it.

Keras and TensorFlow keep memory of each training for as long as the process lives; a sweep of many trials must not grow
by it, and a trial that is killed for its memory must not take the sweep with it.

Parent and child talk in pickles: the child hears its arguments, and after each epoch whether to go on, through its
standard input; its standard output is for news and the outcome alone, and what else is printed goes to standard error.
No file of the caller is imported there, so a script needs no ``if __name__ == "__main__"``. The child has a session of
its own: Ctrl-C reaches the parent alone, which hands it on. It ends as soon as its parent is gone.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, cast

from sightline import process, workflow
from sightline.data.index import Sources
from sightline.errors import Interrupted, ProcessError, SightlineError, UsageError
from sightline.escaping import printable
from sightline.records import EpochRecord, TrainResult
from sightline.watch import Watcher

START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from sightline.sweep.child import main; main()"
)


def train(sources: Sources, *, watcher: Watcher, **options: Any) -> TrainResult:
    """Return or raise what `workflow.train` does with these arguments in a new process.

    `watcher` hears of slow work and of each epoch, here; an `Interrupted` that its `epoch` raises stops the training
    there. Ctrl-C and SIGTERM are handed on in the command line's own process: once, and the state is saved; twice, and
    it stops at once; three times, and it is killed. Elsewhere a `KeyboardInterrupt` stops the training, too.

    Raises `ProcessError` if the process ended without an outcome, `UsageError` if `sources` cannot be sent to it.
    """
    try:
        task = pickle.dumps((sys.argv, {"sources": sources, **options}))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"These images cannot be sent to another process ({error}): name their folder, archive or manifest."
        ) from error
    with (
        subprocess.Popen(
            [sys.executable, "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # nothing is left to be written when a pipe is closed, which may be broken then
            start_new_session=True,
        ) as child,
        _passing_on(child) as signals,
    ):
        child.stdout = io.BufferedReader(cast("io.RawIOBase", child.stdout))
        try:
            _send(child, pickle.dumps(sys.path) + task)
            kind, content = _converse(child, watcher)
        except EOFError:
            raise _unexpected_end(child.wait(), stopped=signals.count > 0) from None
        except BaseException:
            _end(child)
            raise
    if kind == "error":
        raise content
    if kind == "fault":
        raise RuntimeError(f"A fault in the process of a training: {content}")
    outcome: TrainResult = content
    return outcome


def _converse(child: subprocess.Popen[bytes], watcher: Watcher) -> tuple[str, Any]:
    """Let `watcher` hear the news until the outcome comes, and return it: result, error or fault, and what it is."""
    assert child.stdout is not None
    while True:
        kind, content = pickle.load(child.stdout)  # noqa: S301  # of a process that we started
        match kind:
            case "progress":
                watcher.progress(*content)
            case "epoch":
                verdict = None
                try:
                    watcher.epoch(content)
                except Interrupted as stop:
                    verdict = str(stop)
                _send(child, pickle.dumps(verdict))
            case _:
                return kind, content


def _send(child: subprocess.Popen[bytes], data: bytes) -> None:
    assert child.stdin is not None
    left = memoryview(data)
    with suppress(BrokenPipeError):  # it has ended: reading from it tells
        while left:
            left = left[child.stdin.write(left) :]


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop a child and wait for it; what it still says is of no interest."""
    assert child.stdout is not None
    child.terminate()
    _send(child, pickle.dumps(None))  # should it be waiting for an answer, it goes on, and finds that it is to stop
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
        why = ", as Linux does where memory is short" if name == "SIGKILL" else ""
        return ProcessError(f"The process of the training was ended by {name}{why}.")
    return ProcessError(f"The process of the training ended with exit code {code} and no outcome.")


@dataclass(slots=True)
class _Signals:
    count: int = 0


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[_Signals]:
    """Hand Ctrl-C and SIGTERM on to the child while the block runs, where signals are ours; count them."""
    seen = _Signals()
    if not process.claimed() or threading.current_thread() is not threading.main_thread() or os.name == "nt":
        yield seen
        return

    def hand_on(_number: int, _frame: object) -> None:
        seen.count += 1
        child.send_signal(signal.SIGTERM if seen.count < 3 else signal.SIGKILL)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- in the child ----------------------------------------------------------------------------------------------------


class _Reporter(Watcher):
    """Tells the parent; after an epoch it waits for the parent's word."""

    def __init__(self, news: IO[bytes], answers: queue.SimpleQueue[str | None]) -> None:
        self._news, self._answers, self._lock = news, answers, threading.Lock()

    def tell(self, kind: str, content: object) -> None:
        """Send one piece of news, or an outcome."""
        data = pickle.dumps((kind, content))
        with self._lock:
            self._news.write(data)
            self._news.flush()

    def progress(self, task: str, done: int, total: int) -> None:
        """Send how far slow work has got."""
        self.tell("progress", (task, done, total))

    def epoch(self, record: EpochRecord) -> None:
        """Send an epoch; raises `Interrupted` where the parent has no use for more."""
        self.tell("epoch", record)
        verdict = self._answers.get()
        if verdict is not None:
            raise Interrupted(verdict)


def main() -> None:
    """Train as the parent asks, and end the process."""
    process.claim()  # nobody else's: signals, exit and memory are ours
    news = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.argv, options = pickle.load(sys.stdin.buffer)  # noqa: S301  # of the process that started this one
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(answers,), daemon=True).start()
    reporter = _Reporter(news, answers)
    try:
        reporter.tell("result", workflow.train(**options, watcher=reporter))
    except SightlineError as error:
        reporter.tell("error", error)
    except KeyboardInterrupt:
        reporter.tell("error", Interrupted("Stopped."))
    except Exception as error:  # noqa: BLE001  # told to the parent, which names it as a fault
        sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        reporter.tell("fault", f"{type(error).__name__}: {error}")
    finally:
        sys.stderr.flush()
        os._exit(0)  # nothing is left to do, and the listening thread holds standard input


def _listen(answers: queue.SimpleQueue[str | None]) -> None:
    """Hand on what the parent says; end the process, as a kill would, when there is no parent any more."""
    while True:
        try:
            answers.put(pickle.load(sys.stdin.buffer))  # noqa: S301  # of the process that started this one
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(1)
