"""Training in a subprocess: results, progress and signals are passed on, and no process is left behind."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from sightline import process
from sightline.api import training_process
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import DataError, DivergedError, Interrupted, MissingExtraError, ProcessError, UsageError
from sightline.training.result import TrainResult
from waiting import is_running, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows")

RECORD = EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0)
IMPORTS = """
import os, signal, sys, time, types
from sightline.errors import DataError, DivergedError, Interrupted, MissingExtraError
from sightline.callbacks import EpochRecord
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult
from sightline.training import interrupt
record = EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0)
training, validation = TrainingMetrics(0.5, 1.0, 8), SplitMetrics(0.5, 1.0, 8)
def result(path):
    return TrainResult(str(path), "m", 5, ("a", "b"), training, validation, None, 1, 2.0, 1.0, "", "quick")
"""


class StoppingCallback(Callback):
    """Records all events; ends the training after `stop` epochs."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.events: list[Any] = []

    def on_progress(self, task: str, done: int, total: int) -> None:
        self.events.append((task, done, total))

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.events.append(record)
        if self.events.count(record) == self.stop:
            raise Interrupted("Others are better.")


def replace_train(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Replace `train_run` in the child by a function with this body; everything else is real."""
    stand_in = f"{IMPORTS}def train(sources, *, callback, **options):\n{textwrap.indent(body, '    ')}\n"
    stand_in += "sys.modules['sightline.api.training'] = types.SimpleNamespace(train_run=train)\n"
    start, _, rest = training_process.CHILD_CODE.partition("from sightline.api.training_process")
    code = f"{start}exec({stand_in!r}); from sightline.api.training_process{rest}"
    monkeypatch.setattr(training_process, "CHILD_CODE", code)


def train_in_child(**options: Any) -> TrainResult:
    return training_process.train_in_subprocess("somewhere", callback=options.pop("callback", Callback()), **options)


def test_results_and_events_are_passed_on_despite_prints(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    replace_train(
        monkeypatch,
        """
        print("to nobody in particular", flush=True)
        os.write(1, b"from native code")
        callback.on_progress("decoding", 1, 2)
        callback.on_epoch_end(record)
        return result(f"{sources} {options['recipe']} {os.getpid()} {sys.argv[0]}")
        """,
    )
    listener = StoppingCallback()
    result = train_in_child(recipe="quick", callback=listener)
    name, recipe, pid, program = result.run.split(" ", 3)
    assert (name, recipe, program) == ("somewhere", "quick", sys.argv[0])
    assert int(pid) != os.getpid()
    assert result.classes == ("a", "b")
    assert listener.events == [("decoding", 1, 2), RECORD]
    assert "from native code" in capfd.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_modules_of_the_current_folder_are_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("pickle", "tomllib", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    replace_train(monkeypatch, "return result(sources)")
    assert train_in_child(recipe="quick").run == "somewhere"
    assert not (tmp_path / "imported").exists()


def test_a_verdict_stops_it_where_the_epoch_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_train(
        monkeypatch,
        """
        for _ in range(9):
            callback.on_epoch_end(record)
        """,
    )
    listener = StoppingCallback(stop=2)
    with pytest.raises(Interrupted, match="Others are better"):
        train_in_child(callback=listener)
    assert len(listener.events) == 2


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
    replace_train(monkeypatch, body)
    with pytest.raises(kind, match=message) as caught:
        train_in_child()
    if isinstance(caught.value, DivergedError):
        assert caught.value.batch == ("a.png", "b.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_the_state_is_saved(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """As in the command line's own process: the child exits on its own, and the handlers here are restored."""
    replace_train(
        monkeypatch,
        """
        with interrupt.catch_stop_signals() as stop:
            callback.on_epoch_end(record)
            while True:
                time.sleep(0.01)
                stop.check("between two steps, its state saved")
        """,
    )
    monkeypatch.setattr(process, "_claimed", True)

    class Sender(Callback):
        def on_epoch_end(self, record: EpochRecord) -> None:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="between two steps, its state saved"):
        train_in_child(callback=Sender())
    assert signal.getsignal(number) == before


def test_a_keyboard_interrupt_of_another_program_ends_it_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_train(
        monkeypatch,
        """
        with interrupt.catch_stop_signals() as stop:
            callback.on_epoch_end(record)
            while not stop.requested:
                time.sleep(0.01)
            open(options["out"], "w").close()
        """,
    )

    class Impatient(Callback):
        def on_epoch_end(self, record: EpochRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_child(callback=Impatient(), out=str(tmp_path / "stopped"))
    assert (tmp_path / "stopped").exists(), "it was asked to stop, and awaited"


def test_it_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """The parent is killed without warning; the child notices that its standard input is closed."""
    started = tmp_path / "pid"
    body = f"open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = f"""
import pytest, sys
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
from test_training_process import replace_train, train_in_child
replace_train(pytest.MonkeyPatch(), {body!r})
train_in_child()
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: started.is_file() and started.read_text())
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_running(int(started.read_text())))


def test_what_cannot_be_sent_is_refused_before_a_process_starts() -> None:
    with pytest.raises(UsageError, match="give their folder, archive or manifest"):
        training_process.train_in_subprocess([threading.Lock()], callback=Callback())  # type: ignore[list-item]  # as an open archive would


def test_every_error_survives_a_pickle() -> None:
    error_copy = copy.copy(MissingExtraError("optuna", "sweep", "A sweep"))  # by what pickle takes it apart with
    assert type(error_copy) is MissingExtraError
    assert str(error_copy) == str(MissingExtraError("optuna", "sweep", "A sweep"))
