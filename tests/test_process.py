"""Process-wide settings are changed only in the command line's own process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import threadpoolctl

import sightline
from sightline import backend, process
from sightline._keras import accelerators
from sightline.callbacks import Callback


@pytest.fixture
def mallopt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of a stubbed glibc ``mallopt``, in a process claimed by the command line."""
    calls: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: str | None) -> None:
            self.mallopt = lambda what, value: calls.append((what, value))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(process, "_claimed", True)
    monkeypatch.setattr(process, "count_cores", lambda: 2)
    monkeypatch.setattr(backend, "choose_backend", lambda name="auto": backend.BackendChoice("tensorflow", "a test"))
    monkeypatch.setattr(accelerators, "DEVICE_FILES", ())
    return calls


@pytest.mark.parametrize("action", ["error", "e"])
@pytest.mark.parametrize(("claim", "code"), [("process.claim(); ", 0), ("", 1)])
def test_a_warning_ends_no_command_but_any_other_program_that_asked_for_it(claim: str, code: int, action: str) -> None:
    script = f"import warnings; from sightline import process; {claim}warnings.warn('old')"
    done = subprocess.run([sys.executable, "-W", action, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, "UserWarning: old" in done.stderr) == (code, True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
def test_the_command_line_keeps_freed_memory_on_few_cores(mallopt: list[tuple[int, int]]) -> None:
    backend.tune_malloc()
    assert (-8, 1) in mallopt, "one arena"


@pytest.mark.parametrize("case", ["a library", "many cores", "jax", "torch", "a GPU"])
def test_memory_is_left_alone_elsewhere(
    case: str, mallopt: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if case == "a library":
        monkeypatch.setattr(process, "_claimed", False)
    elif case == "many cores":
        monkeypatch.setattr(process, "count_cores", lambda: process.MAX_SINGLE_ARENA_CORES + 1)
    elif case == "a GPU":
        monkeypatch.setattr(accelerators, "DEVICE_FILES", (str(tmp_path),))
    else:
        monkeypatch.setattr(backend, "choose_backend", lambda name="auto": SimpleNamespace(name=case))
    backend.tune_malloc()
    assert mallopt == []


LIBRARY = """
import signal
def mine(number, frame): raise SystemExit(f"mine: {number}")
signal.signal(signal.SIGTERM, mine)
signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell that runs the tests may ignore it
import sightline
from sightline.callbacks import Callback
class Stopping(Callback):
    def __init__(self, number):
        self.number = number
    def on_step_end(self, epoch, step, *_):
        if (epoch, step) == (2, 1):
            signal.raise_signal(self.number)
def train(number):
    sightline.train("beans:60@16", recipe="quick", out=f"run-{number.name}", callback=Stopping(number),
        set=["model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=3", "train.checkpoint_steps=1"])
try:
    train(signal.SIGTERM)
except SystemExit as stop:
    print(stop)
train(signal.SIGINT)
"""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A program stopped during two trainings, by SIGTERM and by SIGINT: its folder and its output."""
    folder = tmp_path_factory.mktemp("library")
    return folder, subprocess.run(
        [sys.executable, "-c", LIBRARY], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.backends
def test_ctrl_c_in_a_library_call_leaves_a_run_to_resume(
    interrupted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Python's own handler raises at once; the run goes on from its last checkpoint."""
    folder, completed = interrupted
    message = "sightline.errors.Interrupted: Stopped. `sightline resume run-SIGINT` continues from there."
    assert message in completed.stderr
    messages: list[str] = []

    class Listening(Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    resumed = sightline.Run(folder / "run-SIGINT").resume(callback=Listening())
    assert [record.epoch for record in resumed.history] == [1, 2, 3]
    assert any(message.startswith("resuming after") for message in messages), messages


def test_a_library_call_keeps_the_callers_handlers(
    interrupted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, completed = interrupted
    assert completed.stdout.strip().endswith(f"mine: {int(signal.SIGTERM)}"), completed.stderr


WRITING = """
import os, sys, time
from pathlib import Path
from sightline import _io, cli
def write():
    with _io._replacing(Path("out.csv"), "", None) as name, _io.create_exclusive(name):
        os.write(1, b"writing\\n")  # not print, which may be interrupted before it knows what it has written
        ENDING
cli.app.command("write")(write)
sys.argv = ["sightline", "write"]
cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_terminated_removes_what_it_has_half_written(number: signal.Signals, tmp_path: Path) -> None:
    code = f"import signal; signal.signal({number:d}, signal.SIG_DFL)\n"  # in case the tests run under nohup
    code += WRITING.replace("ENDING", "time.sleep(60)")
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        assert len([*tmp_path.iterdir()]) == 1
        child.send_signal(number)
        assert child.communicate(timeout=20) == ("", "error: Interrupted.\n")
    assert child.returncode == 130
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("signaled", "expected"), [("KeyboardInterrupt()", (130, "error: Interrupted.\n")), ("SystemExit(0)", (0, ""))]
)
def test_a_signal_of_which_a_compiled_module_makes_another_error_is_a_signal(
    signaled: str, expected: tuple[int, str], tmp_path: Path
) -> None:
    """ONNX Runtime does so during its import; `serve` turns SIGTERM into `SystemExit`."""
    code = WRITING.replace("ENDING", f"raise ImportError('initialization failed') from {signaled}")
    completed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_command_begins_is_an_interrupt(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import signal
from sightline import cli
signal.signal({number:d}, signal.default_int_handler)
cli._build_commands = lambda: signal.raise_signal({number:d})
cli.main()
"""
    completed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (130, "error: Interrupted.\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such exit")
def test_ctrl_c_while_the_command_line_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    Path(tmp_path, "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "runpy.run_module('sightline', run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    completed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stderr) == (-signal.SIGINT, "")


def test_cores_are_those_of_the_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "from sightline import process; print(process.count_cores())"
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no os.sched_setaffinity")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "1\n"


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("max 100000", 64), ("250000 100000", 3)])
def test_cores_are_no_more_than_the_quota(
    quota: str, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    if not Path("/proc/self/cgroup").is_file():
        pytest.skip("there is no /proc/self/cgroup")
    assert process.count_cores() == expected


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "536870912\n", 512 << 20),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "536870912\n", 512 << 20),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),  # version 1's value for no limit
    ],
)
def test_memory_is_no_more_than_the_limit_of_the_cgroup(
    file: str, text: str, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not Path("/proc/self/cgroup").is_file():
        pytest.skip("there is no /proc/self/cgroup")
    monkeypatch.setattr(process, "CGROUPS", tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert process.count_memory() == (expected or machine)
    assert process.is_memory_short() == ((expected or machine) < 2 << 30)


@pytest.fixture
def hangup(claimed: None) -> Iterator[list[int]]:
    """The SIGTERM signals received; restores the handlers."""
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("this system has no SIGHUP")
    received: list[int] = []
    numbers = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield received
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_terminal_that_closes_terminates_once(hangup: list[int]) -> None:
    process.treat_sighup_as_sigterm()
    for _ in range(3):  # from the kernel and from the shell
        signal.raise_signal(signal.SIGHUP)
    assert hangup == [signal.SIGTERM]


def test_nohup_is_respected(hangup: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process.treat_sighup_as_sigterm()
    signal.raise_signal(signal.SIGHUP)
    assert hangup == []


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_hang_up_asks_for_a_reload_until_the_terminal_closes(
    before: Any, hangup: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, reloads = [True], list[None]()
    monkeypatch.setattr(process, "has_terminal", lambda: terminal[0])
    signal.signal(signal.SIGHUP, before)
    process.reload_at_sighup(lambda: reloads.append(None))
    signal.raise_signal(signal.SIGHUP)
    assert (len(reloads), hangup) == (1, [])
    terminal[0] = False
    for _ in range(3):
        signal.raise_signal(signal.SIGHUP)
    assert (len(reloads), hangup) == ((4, []) if before is signal.SIG_IGN else (1, [signal.SIGTERM]))


def test_a_library_call_leaves_hang_ups_alone(hangup: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_claimed", False)
    process.treat_sighup_as_sigterm()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_the_cores_that_a_scheduler_gave_are_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = process.count_cores()
    monkeypatch.setattr(process, "_core_limit", 0)
    process.limit_cores(1)
    assert process.count_cores() == 1
    process.limit_cores(before + 1)
    assert process.count_cores() == before


def test_the_threads_of_matrix_products_are_restored_after_contexts_that_overlap() -> None:
    """As those of two threads may: the one that begins first ends first."""
    with process.one_blas_thread():  # loads the libraries, which are limited only then
        pass
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = ExitStack(), ExitStack()
        numbers = []
        for stack in (first, second):
            stack.enter_context(process.one_blas_thread())
        for stack in (first, second):
            numbers.append(count_blas_threads())
            stack.close()
        assert [*numbers, count_blas_threads()] == [{1}, {1}, {2}]


def count_blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"}
