"""Training in a subprocess: results, progress and signals are passed on, and no process is left behind."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sightline import process
from sightline.errors import DataError, DivergedError, Interrupted, MissingExtraError, ProcessError, UsageError
from sightline.records import EpochRecord, TrainResult
from sightline.sweep import child
from sightline.watch import Watcher

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows")

RECORD = EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0)
IMPORTS = """
import os, signal, sys, time
from sightline import workflow
from sightline.errors import DataError, DivergedError, Interrupted, MissingExtraError
from sightline.records import EpochRecord, PartFigures, TrainingMetrics, TrainResult
from sightline.training import interrupt
record = EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0)
training, validation = TrainingMetrics(0.5, 1.0, 8), PartFigures(0.5, 1.0, 8)
def result(path):
    return TrainResult(str(path), "m", 5, ("a", "b"), training, validation, None, 1, 2.0, 1.0, "", "quick")
"""


class Listener(Watcher):
    """Records all events; ends the training after `stop` epochs."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.heard: list[Any] = []

    def progress(self, task: str, done: int, total: int) -> None:
        self.heard.append((task, done, total))

    def epoch(self, record: EpochRecord) -> None:
        self.heard.append(record)
        if self.heard.count(record) == self.stop:
            raise Interrupted("Others are better.")


def playing(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Replace `workflow.train` in the child by a function with this body; everything else is real."""
    stand_in = f"{IMPORTS}def train(sources, *, watcher, **options):\n{textwrap.indent(body, '    ')}\n"
    start, _, rest = child.START.partition("from sightline.sweep.child")
    code = f"{start}exec({stand_in!r}); workflow.train = train; from sightline.sweep.child{rest}"
    monkeypatch.setattr(child, "START", code)


def call(**options: Any) -> TrainResult:
    return child.train("somewhere", watcher=options.pop("watcher", Watcher()), **options)


def test_outcome_and_news_come_over_and_prints_do_not_disturb(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    playing(
        monkeypatch,
        """
        print("to nobody in particular", flush=True)
        os.write(1, b"from native code")
        watcher.progress("decoding", 1, 2)
        watcher.epoch(record)
        return result(f"{sources} {options['recipe']} {os.getpid()} {sys.argv[0]}")
        """,
    )
    listener = Listener()
    found = call(recipe="quick", watcher=listener)
    name, recipe, pid, program = found.run.split(" ", 3)
    assert (name, recipe, program) == ("somewhere", "quick", sys.argv[0])
    assert int(pid) != os.getpid()
    assert found.classes == ("a", "b")
    assert listener.heard == [("decoding", 1, 2), RECORD]
    assert "from native code" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_a_verdict_stops_it_where_the_epoch_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    playing(
        monkeypatch,
        """
        for _ in range(9):
            watcher.epoch(record)
        """,
    )
    listener = Listener(stop=2)
    with pytest.raises(Interrupted, match="Others are better"):
        call(watcher=listener)
    assert len(listener.heard) == 2


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("raise DataError('There is no folder.')", DataError, "There is no folder."),
        ("raise MissingExtraError('keras', 'train', 'Training')", MissingExtraError, "pip install"),
        ("raise DivergedError('Too far.', ('a.png', 'b.png'))", DivergedError, "Too far."),
        ("raise Interrupted('Stopped.')", Interrupted, "Stopped."),
        ("raise KeyboardInterrupt", Interrupted, "Stopped."),
        ("raise KeyError('x')", RuntimeError, "KeyError: 'x'"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ProcessError, "ended by SIGKILL, probably by the out-of-memory"),
        ("os._exit(7)", ProcessError, "exit code 7"),
        ("os._exit(130)", Interrupted, "Stopped."),  # as `leaving` ends a process that is in native code
    ],
)
def test_however_it_ends_it_is_raised_here(
    monkeypatch: pytest.MonkeyPatch, body: str, kind: type[Exception], message: str
) -> None:
    playing(monkeypatch, body)
    with pytest.raises(kind, match=message) as caught:
        call()
    if isinstance(caught.value, DivergedError):
        assert caught.value.batch == ("a.png", "b.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_the_state_is_saved(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """As in the command line's own process: the child exits on its own, and the handlers here are restored."""
    playing(
        monkeypatch,
        """
        with interrupt.listening() as stop:
            watcher.epoch(record)
            while True:
                time.sleep(0.01)
                stop.check("between two steps, its state saved")
        """,
    )
    monkeypatch.setattr(process, "_claimed", True)

    class Sender(Watcher):
        def epoch(self, record: EpochRecord) -> None:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="between two steps, its state saved"):
        call(watcher=Sender())
    assert signal.getsignal(number) == before


def test_a_keyboard_interrupt_of_another_program_ends_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    playing(
        monkeypatch,
        """
        with interrupt.listening() as stop:
            watcher.epoch(record)
            while not stop.asked:
                time.sleep(0.01)
            open(options["out"], "w").close()
        """,
    )

    class Impatient(Watcher):
        def epoch(self, record: EpochRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(watcher=Impatient(), out=str(tmp_path / "stopped"))
    assert (tmp_path / "stopped").exists(), "it was asked to stop, and awaited"


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """The parent is killed without warning; the child notices that its standard input is closed."""
    body = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import pytest, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sweep_child import call, playing
playing(pytest.MonkeyPatch(), {body!r})
call()
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        pid = _wait_for(lambda: int((tmp_path / "pid").read_text()))
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: _gone(pid))


def _wait_for(what: Any) -> Any:
    until = time.monotonic() + 120
    while True:
        try:
            if found := what():
                return found
        except (OSError, ValueError):
            pass
        assert time.monotonic() < until
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    """Return whether a process has ended, even if it is still a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_what_cannot_be_sent_is_refused_before_a_process_starts() -> None:
    with pytest.raises(UsageError, match="give their folder, archive or manifest"):
        child.train([threading.Lock()], watcher=Watcher())  # type: ignore[list-item]  # as an open archive would


def test_every_error_survives_a_pickle() -> None:
    found = copy.copy(MissingExtraError("optuna", "sweep", "A sweep"))  # by what pickle takes it apart with
    assert type(found) is MissingExtraError
    assert str(found) == str(MissingExtraError("optuna", "sweep", "A sweep"))
