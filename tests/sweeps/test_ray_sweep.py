"""Sweeps on a Ray cluster: threads of one process share a study, and each trial trains on a worker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import COLORS, TINY_SWEEP, draw_classes
from new_runs import create_run
from ray_nodes import list_workers
from sightline.api.ray_options import RayOptions
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import DataError, Interrupted
from sightline.sweeps import SweepResult, runner, sweep
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult

GRID = f"""
{TINY_SWEEP}device.threads = 1
[space]
train.optimizer.learning_rate = [1e-2, 1e-3]
seed = [1, 2]
"""


class FakeRayTrainer:
    """A fake `RayTrainer`: each trial waits until `size` of them run at the same time, or training is stopped."""

    def __init__(self, size: int) -> None:
        self.options, self.stop = RayOptions(size), threading.Event()
        self.barrier = threading.Barrier(size)
        self.paths: list[str] = []
        self.broken = ""

    def train(self, sources: Any, *, out: Path, callback: Callback, **options: Any) -> TrainResult:
        self.paths.append(out.name)
        create_run(out)
        if out.name == self.broken:
            raise DataError("The images are gone.")
        if self.broken:
            assert self.stop.wait(60)
            raise Interrupted("Stopped.")
        self.barrier.wait(60)
        callback.on_epoch_end(EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0))
        callback.on_epoch_end(EpochRecord(1, "training", 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 1.0))  # after a lost worker
        train, validation = TrainingMetrics(0.5, 1.0, 300), SplitMetrics(0.5, 1.0, 100)
        return TrainResult(str(out), "m", 5, ("a", "b"), train, validation, None, 1, 2.0, 1.0, "", "quick")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID)
    return path


def use_trainer(monkeypatch: pytest.MonkeyPatch, trainer: FakeRayTrainer) -> None:
    @contextlib.contextmanager
    def open_trainer(*arguments: Any) -> Iterator[FakeRayTrainer]:
        yield trainer

    monkeypatch.setattr(runner, "open_trainer", open_trainer)


def count_trials(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "study.db")) as database:
        return int(database.execute("select count(*) from trials").fetchone()[0])


def test_two_trials_run_at_a_time_and_each_once(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeRayTrainer(2)
    use_trainer(monkeypatch, trainer)
    result = sweep(draw_classes(tmp_path / "data", COLORS, 1), space, out=tmp_path / "o", engine="ray", num_workers=2)
    assert sorted(trainer.paths) == [f"trial-000{n}" for n in range(1, 5)]
    assert {t.state for t in result.trials} == {"complete"}
    assert count_trials(tmp_path / "o") == 4, "no thread took a trial that is not there, or that of another for dead"


def test_an_error_in_one_thread_stops_the_others(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeRayTrainer(2)
    trainer.broken = "trial-0002"
    use_trainer(monkeypatch, trainer)
    with pytest.raises(DataError, match="images are gone"):
        sweep(draw_classes(tmp_path / "data", COLORS, 1), space, out=tmp_path / "o", engine="ray", num_workers=2)
    assert trainer.stop.is_set()
    assert sorted(trainer.paths) == ["trial-0001", "trial-0002"]


class Killer(Callback):
    """Kills the worker of a trial after an epoch of the second trial."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.most_workers = 0
        self.killed = False

    def on_message(self, text: str) -> None:
        self.messages.append(text)
        if ", epoch " in text:
            workers = list_workers()
            self.most_workers = max(self.most_workers, len(workers))
            if not self.killed and text.startswith("trial 2, epoch 2") and workers:
                os.kill(workers[0], signal.SIGKILL)
                self.killed = True


def metrics_by_trial(result: SweepResult) -> dict[int, tuple[float | None, float | None]]:
    return {t.trial: (t.value, t.loss) for t in result.trials}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: make test-ray")
def test_trials_on_a_cluster_have_the_results_of_trials_here_though_a_worker_is_killed(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    data = draw_classes(tmp_path / "colors", COLORS, 20)
    here = sweep(data, space, out="here")
    killer = Killer()
    result = sweep(data, space, out="there", engine="ray", num_workers=2, callback=killer)
    assert killer.killed
    assert killer.most_workers == 2
    assert any("was lost" in text and "starts again" in text for text in killer.messages)
    assert {t.state for t in result.trials} == {"complete"}
    assert metrics_by_trial(result) == metrics_by_trial(here)
    assert count_trials(tmp_path / "there") == 4
    assert list_workers() == []
