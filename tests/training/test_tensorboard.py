"""TensorBoard files contain the metrics of the epochs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.callbacks import EpochRecord
from sightline.errors import MissingExtraError
from sightline.training.tensorboard import TensorBoardWriter


def read_events(folder: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()["tensors"]
    return {tag: [(e.step, pytest.approx(e.tensor_proto.float_val[0])) for e in events.Tensors(tag)] for tag in tags}


def test_events_are_the_metrics_of_each_epoch(tmp_path: Path) -> None:
    events = TensorBoardWriter(tmp_path)
    events.write_epoch(EpochRecord(1, "head", 1.5, 0.25, 1.25, 0.5, 1e-3, 2.0, 80.0))
    events.write_epoch(EpochRecord(2, "head", 0.5, 0.75, None, None, 5e-4, 2.0, 90.0))
    events.close()
    assert read_events(tmp_path) == {
        "loss/train": [(1, 1.5), (2, 0.5)],
        "loss/validation": [(1, 1.25)],
        "accuracy/train": [(1, 0.25), (2, 0.75)],
        "accuracy/validation": [(1, 0.5)],
        "learning_rate": [(1, 1e-3), (2, 5e-4)],
        "images_per_second": [(1, 80.0), (2, 90.0)],
    }


def test_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(MissingExtraError, match=r"tensorboard.*sightline\[train\]"):
        TensorBoardWriter(tmp_path)
