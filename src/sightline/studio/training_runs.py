"""`TrainingRuns`: trainings in separate processes, whose state is read from their run folders."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from sightline import _io, _locks, jsonio
from sightline.api.comparison import describe_run
from sightline.api.options import to_assignments
from sightline.config import stage_epochs
from sightline.errors import OutputError, SightlineError, UsageError
from sightline.escaping import quote_path
from sightline.runs.directory import RunDirectory
from sightline.runs.paths import is_run
from sightline.runs.train_request import TrainRequest
from sightline.studio.training_data import OF_RUN, OwnData, describe_run_data, find_data

FOLDER = ".studio"  # in the folder of the runs, for the logs and locks of their processes
MAX_RUNS = 100  # newest runs shown on the page
MAX_LOG = 1 << 17  # bytes shown from the end of a log
ACTIVE = {"starting", "running", "stopping"}


@dataclass(frozen=True, slots=True)
class TrainingChoice:
    """The choices made on the page: the images as in `find_data`, and "" for each default."""

    data: str = ""
    recipe: str = "auto"
    effort: str = ""
    time_limit: str = ""
    epochs: int | None = None


class TrainingRuns:
    """The runs of a folder, and the trainings that write them; methods may be called from any thread.

    A training is started as ``sightline train`` or ``resume`` in a session of its own, so it outlives the studio. Its
    output goes to a log. It inherits a locked file, which shows that it is running, whichever studio started it.
    """

    def __init__(self, folder: Path, own: OwnData | None, name: str, opened: str = "") -> None:
        """`opened` is the run in the folder that the studio shows; "" if it shows none."""
        self.folder, self.own, self._name, self._current = folder, own, name, opened
        self.closing = Event()  # set when the server stops, to end streams that follow a training
        self._lock, self._probe = Lock(), Lock()
        self._terminated: set[tuple[str, int]] = set()
        self._infos: dict[str, tuple[int, dict[str, Any]]] = {}

    def list_runs(self) -> list[dict[str, Any]]:
        """Return the name and status of the runs, the newest first."""
        return [{"name": name, "status": self._find_state(name)[0]} for name in self._list_names()]

    def find_current(self) -> str:
        """Return the run that a page shows first; "" for the newest.

        This is the run being trained by a studio, or else the last run started or resumed here, or else the run that
        the studio shows.
        """
        names = self._list_names()
        candidates = [*filter(self._is_alive, names), self._current]
        return next((name for name in candidates if name in names), "")

    def list_run_data(self) -> list[tuple[str, str]]:
        """Return the runs whose images can be trained on again, newest first, with a description of the images."""
        described = {name: describe_run_data(RunDirectory(self.folder / name)) for name in self._list_names()}
        return [(name, images) for name, images in described.items() if images]

    def _list_names(self) -> list[str]:
        times: dict[str, int] = {}
        for file in (*self.folder.glob("*/run.json"), *self.folder.glob(f"{FOLDER}/*.log")):
            name = file.stem if file.suffix == ".log" else file.parent.name
            times[name] = max(times.get(name, 0), _read_time(file))
        return sorted(times, key=lambda name: (-times[name], name))[:MAX_RUNS]

    def check_name(self, name: str) -> None:
        """Raise `UsageError` unless there is a run with this name."""
        if name not in self._list_names():
            raise UsageError(f"There is no run {name[:80]!r} in {self.folder}.")

    def describe(self, name: str) -> dict[str, Any]:
        """Return the state of a run with its epochs so far, and its accuracy once it is complete, as JSON values."""
        status, message = self._find_state(name)
        run = RunDirectory(self.folder / name)
        values: dict[str, Any] = {
            "name": name, "quoted_path": quote_path(run.path), "status": status, "message": message, "history": [],
            "epochs": None, "model": "", "recipe": "", "metrics": None,
            "can_stop": status in ACTIVE and self._find_process(name) > 0,
            "can_resume": status in {"interrupted", "failed"} and is_run(run.path),
        }  # fmt: skip
        try:
            values["history"] = [jsonio.fields_to_dict(epoch) for epoch in run.read_history()]
            if run.has_config:
                config = run.config
                values |= {"model": config.model.name, "recipe": config.recipe}
                stages = config.train.stages
                planned = sum(stage_epochs.count_epochs(config.train, stage) for stage in stages)
                values["epochs"] = planned if stages else config.train.epochs
            if status == "complete":
                values["epochs"] = len(values["history"])  # fine-tuning may be left out, and training may stop early
                row = describe_run(run.path)
                values["metrics"] = {"value": row.accuracy, "interval": row.accuracy_interval, "split": row.split}
        except SightlineError as error:  # a damaged file: show what could be read
            values["message"] = values["message"] or str(error)
        return values

    def read_log(self, name: str, start: int) -> tuple[str, int]:
        """Return the complete lines of a log from byte `start`, or the last `MAX_LOG` bytes, and where they end.

        A log shorter than `start` is a new one, and is read from its beginning.
        """
        try:
            with _io.open_regular(self._log(name)) as file:
                size = file.seek(0, os.SEEK_END)
                start = max(start if start <= size else 0, size - MAX_LOG)
                file.seek(start)
                content = file.read(MAX_LOG)
        except OSError:
            return "", 0
        lines = content[: content.rfind(b"\n") + 1]
        return lines.decode(errors="replace"), start + len(lines)

    def start(self, choice: TrainingChoice) -> str:
        """Start a training and return the name of its run.

        Raises:
            UsageError: If another training is running, or the choice cannot be trained on.
            DataError: If there are no such images.
            OutputError: If nothing can be written to the folder.
        """
        sources, options = self._list_words(choice)
        stem = f"{choice.recipe}-{_io.safe_stem(Path(sources[0]).name if choice.data else self._name)}"
        with self._lock:
            self._check_idle()
            name = self._find_free_name(stem)
            self._launch(name, ["train", *options, f"--out={self.folder / name}", "--", *sources])
            self._current = name
        return name

    def resume(self, name: str) -> None:
        """Resume an interrupted or failed run; raise `UsageError` if another is running, or this cannot be resumed."""
        with self._lock:
            self.check_name(name)
            self._check_idle()
            if not self.describe(name)["can_resume"]:
                raise UsageError(f"{self.folder / name} cannot be resumed: start a new training.")
            self._launch(name, ["resume", "--", str(self.folder / name)])
            self._current = name

    def stop(self, name: str) -> None:
        """Ask a training to save a checkpoint and end; only once, as a second request would end it without one.

        Raises `UsageError` if it is not running, or was started elsewhere.
        """
        with self._lock:
            self.check_name(name)
            if self._find_state(name)[0] not in ACTIVE:
                raise UsageError(f"{self.folder / name} is not training.")
            process = self._find_process(name)
            if not process:
                raise UsageError(f"{self.folder / name} was started elsewhere: stop it there, with Ctrl-C.")
            if (name, process) not in self._terminated:
                self._terminated.add((name, process))
                os.kill(process, signal.SIGTERM)

    def _list_words(self, choice: TrainingChoice) -> tuple[list[str], list[str]]:
        """Return the sources and the options of a training; raise `UsageError` or `DataError` for an invalid choice."""
        chosen = {"train.effort": choice.effort, "train.time_limit": choice.time_limit, "train.epochs": choice.epochs}
        assignments = to_assignments({key: value for key, value in chosen.items() if value})
        named_options = {"effort": choice.effort, "time-limit": choice.time_limit, "epochs": choice.epochs}
        options = [f"--recipe={choice.recipe}", *(f"--{key}={value}" for key, value in named_options.items() if value)]
        if choice.data.startswith(OF_RUN):
            self.check_name(choice.data.removeprefix(OF_RUN))
        data = find_data(choice.data, self.own, self.folder)
        sources, assignments = list(data.sources), [*assignments, *data.settings]
        options += [f"--set={text}" for text in data.settings]
        options += [] if data.patch is None else [f"--patch={data.patch}"]
        TrainRequest.create(sources, choice.recipe, None, assignments).merge_layers()  # raises before it starts
        return sources, options

    def _check_idle(self) -> None:
        active = [run["name"] for run in self.list_runs() if run["status"] in ACTIVE]
        if active:
            raise UsageError(
                f"{self.folder / active[0]} is still training, and two training runs slow each other down: wait until "
                "it ends, or stop it."
            )

    def _find_free_name(self, stem: str) -> str:
        number = 1
        while (self.folder / f"{stem}-{number}").exists() or self._log(f"{stem}-{number}").exists():
            number += 1
        return f"{stem}-{number}"

    def _launch(self, name: str, words: Sequence[str]) -> None:
        """Start a process that holds the lock of a run and writes its log."""
        path = self._log(name)
        _io.refuse_links(self.folder, path.parent)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                with self._probe:
                    lock = stack.enter_context(_locks.hold_lock(self._lock_file(name), f"The run {self.folder / name}"))
                log = stack.enter_context(_io.open_in_place(path, new=True))
                log.seek(0, os.SEEK_END)
                log.write(f"$ {shlex.join(['sightline', *words])}\n".encode(errors="surrogateescape"))
                log.flush()
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "sightline", *words], stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock.fileno()],
                )  # fmt: skip
                lock.seek(0)
                lock.truncate(0)
                lock.write(f"{process.pid} {socket.gethostname()}".encode())
        except OSError as error:
            raise OutputError(f"The training cannot be started in {self.folder}: {error.strerror or error}.") from error
        Thread(target=process.wait, name=f"wait for {name}", daemon=True).start()  # avoids a zombie process

    def _find_state(self, name: str) -> tuple[str, str]:
        """Return the status of a run and the message of its failure."""
        run, is_alive = RunDirectory(self.folder / name), self._is_alive(name)
        if not is_run(run.path):
            return ("starting", "") if is_alive else ("failed", self._read_error(name))
        try:
            info = self._read_info(run)
        except SightlineError as error:
            return "failed", str(error)
        status = str(info.get("status"))
        if is_alive and status != "complete":
            return ("stopping" if (name, self._find_process(name)) in self._terminated else "running"), ""
        if status == "running":
            with self._probe:
                return ("running" if run.is_locked else "interrupted"), ""
        return status, str(info.get("message", ""))

    def _read_info(self, run: RunDirectory) -> dict[str, Any]:
        """Return ``run.json``, which is read again when it has changed."""
        time = _read_time(run.path / "run.json")
        known = self._infos.get(run.path.name)
        if known is None or known[0] != time:
            known = self._infos[run.path.name] = (time, run.info)
        return known[1]

    def _read_error(self, name: str) -> str:
        lines = [line for line in self.read_log(name, 0)[0].splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return [*lines[-1:], *errors][-1] if lines else ""

    def _is_alive(self, name: str) -> bool:
        """Return whether a studio's process for a run is alive; checking takes its lock for a moment."""
        with self._probe:
            return _locks.is_locked(self._lock_file(name))

    def _find_process(self, name: str) -> int:
        """Return the PID of a studio's process for a run on this machine, if it is still running; else 0."""
        if not self._is_alive(name):
            return 0
        try:
            process, _, host = _io.read_regular(self._lock_file(name), 1024).decode().partition(" ")
        except (OSError, ValueError):
            return 0
        return int(process) if process.isdecimal() and host == socket.gethostname() else 0

    def _log(self, name: str) -> Path:
        return self.folder / FOLDER / f"{name}.log"

    def _lock_file(self, name: str) -> Path:
        return self.folder / FOLDER / f"{name}.lock"


def _read_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
