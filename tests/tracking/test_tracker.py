"""Trackers write the settings, the metrics of the epochs and those of the result; none of them stops a training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sightline.callbacks import EpochRecord
from sightline.errors import MissingExtraError, UsageError
from sightline.tracking.tensorboard import TensorBoardTracker
from sightline.tracking.tracker import PACKAGES, Status, TrackedRun, Tracker, TrackerList, check_trackers, make_tracker

EPOCHS = (
    EpochRecord(1, "head", 1.5, 0.25, 1.25, 0.5, 1e-3, 2.0, 80.0),
    EpochRecord(2, "head", 0.5, 0.75, None, None, 5e-4, 2.0, 90.0),
)


class RecordingTracker(Tracker):
    """Keeps what it gets, and raises in the method `fails`."""

    def __init__(self, fails: str = "", last_epoch: int = 0) -> None:
        self.events: list[Any] = []
        self.fails, self.last_epoch, self.tracked_id = fails, last_epoch, "id-1"

    def _record(self, name: str, *values: Any) -> None:
        if name == self.fails:
            raise ConnectionError("the server cannot be reached\nsecond line")
        self.events.append((name, *values))

    def start(self, run: TrackedRun) -> None:
        self._record("start", dict(run.params))

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._record("metrics", epoch, sorted(metrics))

    def log_result(self, metrics: Mapping[str, float], epoch: int, artifacts: Sequence[Path]) -> None:
        self._record("result", epoch, dict(metrics), list(artifacts))

    def finish(self, status: Status) -> None:
        self._record("finish", status)


def log_all(trackers: TrackerList, folder: Path, history: Sequence[EpochRecord] = ()) -> dict[str, str]:
    run = TrackedRun(folder, {"train.epochs": 2})
    ids = trackers.start({"first": run, "second": run}, history)
    for record in EPOCHS[len(history) :]:
        trackers.log_epoch(record)
    trackers.log_result({"test/accuracy": 0.5}, 2, [folder])
    trackers.finish("complete")
    return ids


def read_events(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    content = next(iter(events.PluginTagToContent("hparams").values()))
    assert b"train.epochs" in content
    assert b"photos" in content
    tags = events.PluginTagToContent("scalars")
    return {tag: [(e.step, pytest.approx(e.tensor_proto.float_val[0])) for e in events.Tensors(tag)] for tag in tags}


def test_each_tracker_gets_every_epoch_once_and_the_result(tmp_path: Path) -> None:
    new, resumed = RecordingTracker(), RecordingTracker(last_epoch=1)
    assert log_all(TrackerList({"first": new, "second": resumed}, print), tmp_path, EPOCHS[:1]) == {
        "first": "id-1",
        "second": "id-1",
    }
    assert [event[:2] for event in new.events] == [
        ("start", {"train.epochs": 2}), ("metrics", 1), ("metrics", 2), ("result", 2), ("finish", "complete"),
    ]  # fmt: skip
    assert new.events[2][2] == ["accuracy/train", "images_per_second", "learning_rate", "loss/train"]
    assert [event[1] for event in resumed.events if event[0] == "metrics"] == [2]


@pytest.mark.parametrize("method", ["start", "metrics", "result", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_the_others_go_on(tmp_path: Path, method: str) -> None:
    failing, other = RecordingTracker(method), RecordingTracker()
    messages: list[str] = []
    log_all(TrackerList({"first": failing, "second": other}, messages.append), tmp_path)
    assert [name for name, *_ in other.events] == ["start", "metrics", "metrics", "result", "finish"]
    assert messages == [
        "warning: tracking with first ended: the server cannot be reached. Training continues without it."
    ]


def test_a_tracker_that_never_started_is_not_finished() -> None:
    tracker = RecordingTracker()
    TrackerList({"first": tracker}, print).finish("failed")
    assert tracker.events == []


def test_ctrl_c_while_trackers_start_closes_only_those_that_have_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_self: TensorBoardTracker, _run: TrackedRun) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TensorBoardTracker, "start", interrupt)
    messages: list[str] = []
    first, run = RecordingTracker(), TrackedRun(tmp_path, {})
    trackers = TrackerList({"first": first, "tensorboard": TensorBoardTracker()}, messages.append)
    with pytest.raises(KeyboardInterrupt):
        trackers.start({"first": run, "tensorboard": run}, ())
    trackers.finish("interrupted")
    assert [name for name, *_ in first.events] == ["start", "finish"]
    assert messages == []


def test_tensorboard_gets_the_metrics_of_each_epoch_and_the_settings(tmp_path: Path) -> None:
    run = TrackedRun(tmp_path, {"train.epochs": 2, "input.height": 32, "data.sources": ["photos"], "seed": 0})
    trackers = TrackerList({"tensorboard": TensorBoardTracker()}, pytest.fail)
    trackers.start({"tensorboard": run}, ())
    trackers.log_epoch(EPOCHS[0])
    trackers.finish("interrupted")
    resumed = TrackerList({"tensorboard": TensorBoardTracker()}, pytest.fail)
    resumed.start({"tensorboard": TrackedRun(tmp_path, run.params, epochs=1)}, EPOCHS[:1])
    resumed.log_epoch(EPOCHS[1])
    resumed.log_result({"test/accuracy": 0.5, "test/accuracy_low": 0.25}, 2, [tmp_path])
    resumed.finish("complete")
    assert read_events(tmp_path / "tensorboard") == {
        "loss/train": [(1, 1.5), (2, 0.5)],
        "loss/validation": [(1, 1.25)],
        "accuracy/train": [(1, 0.25), (2, 0.75)],
        "accuracy/validation": [(1, 0.5)],
        "learning_rate": [(1, 1e-3), (2, 5e-4)],
        "images_per_second": [(1, 80.0), (2, 90.0)],
        "test/accuracy": [(2, 0.5)],
        "test/accuracy_low": [(2, 0.25)],
    }


def test_tensorboard_needs_no_tensorflow_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(tmp_path)!r})
from sightline.tracking.tensorboard import TensorBoardTracker
from sightline.tracking.tracker import TrackedRun
tracker = TensorBoardTracker()
tracker.start(TrackedRun(Path({str(tmp_path)!r}), {{"data.sources": ["photos"], "train.epochs": 2}}))
tracker.log_metrics({{"loss/train": 0.5}}, 1)
tracker.finish("complete")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_events(tmp_path / "tensorboard") == {"loss/train": [(1, 0.5)]}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    extra = {"tensorboard": "train"}.get(name, name)
    with pytest.raises(MissingExtraError, match=rf"train.track={name} needs .*\.\[{extra}\]"):
        make_tracker(name).start(TrackedRun(tmp_path, {}))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=rf"\.\[{extra}\]"):
        check_trackers([name])


def test_an_unknown_tracker_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"no tracker 'mlfow'.*'mlflow'"):
        make_tracker("mlfow")
