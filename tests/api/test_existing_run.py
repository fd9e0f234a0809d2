"""`train` once, then test: what a run directory that is there already leads to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recording import RecordingCallback
from sightline.api.training import train_run
from sightline.callbacks import Callback
from sightline.data.checks import class_names
from sightline.data.indexing import build_index as make_index
from sightline.errors import OutputError
from sightline.training.result import TrainResult

pytestmark = pytest.mark.usefixtures("plain_figures")

QUICK = {"recipe": "quick", "set": ["train.epochs=1", "model.name=cifar10-simple", "model.hidden_units=[64]"]}
DATA = "beans:40@32"


def train(out: Path, callback: Callback | None = None, data: str = DATA, **options: Any) -> TrainResult:
    return train_run(data, out=out, callback=callback, **(QUICK | options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    path = tmp_path_factory.mktemp("runs") / "r"
    return path, train(path)


@pytest.mark.slow
def test_same_settings_are_tested_not_trained(finished: tuple[Path, TrainResult]) -> None:
    path, first = finished
    weights = (path / "model.keras").read_bytes()
    metrics = path / "eval" / "test" / "metrics.json"
    metrics.unlink()
    callback = RecordingCallback()
    second = train(path, callback)
    assert callback.stages == 0
    assert any("nothing to train" in line for line in callback.lines)
    assert (path / "model.keras").read_bytes() == weights
    assert second.test is not None
    assert first.test is not None
    assert second.test.accuracy == first.test.accuracy == json.loads(metrics.read_text())["accuracy"]
    assert second.test.loss == pytest.approx(first.test.loss, abs=1e-5)
    for name in ("weights_sha256", "classes", "parameters", "train", "validation", "epochs", "notes", "details"):
        assert getattr(second, name) == getattr(first, name), name


def test_images_are_indexed_and_checked_once(
    finished: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*arguments, **options)

        return call

    for module in ("resolve", "run_images", "labeled_images"):
        monkeypatch.setattr(f"sightline.runs.{module}.build_index", counted("index", make_index))
    monkeypatch.setattr(
        "sightline.data.checks.class_names.class_findings", counted("findings", class_names.class_findings)
    )
    train(tmp_path / "new")
    assert calls == ["index", "findings"]
    calls.clear()
    train(finished[0])
    assert calls == ["index", "findings"]


@pytest.mark.parametrize("setting", ["device.threads=1", 'data.allow_findings=["split-leakage"]'])
def test_what_decides_nothing_does_not_matter(finished: tuple[Path, TrainResult], setting: str) -> None:
    callback = RecordingCallback()
    train(finished[0], callback, set=[*QUICK["set"], setting])
    assert callback.stages == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"set": ["train.epochs=2", "model.name=cifar10-simple", "model.hidden_units=[64]"]},
            r"train\.epochs is 1, not 2",
        ),
        (
            {"set": ["train.epochs=3", "model.name=cifar10-simple", "model.hidden_units=[64]"]},
            r"sightline resume .*r --epochs 3` extends it",
        ),
        ({"set": [*QUICK["set"], "seed=5"]}, r"seed is 0, not 5"),
        ({"data": "beans:44@32"}, r"data\.sources is \['beans:40@32'\], not \['beans:44@32'\]"),
    ],
    ids=["epochs", "more epochs", "seed", "data"],
)
def test_other_settings_are_refused(finished: tuple[Path, TrainResult], options: dict[str, Any], reason: str) -> None:
    before = (finished[0] / "run.json").read_bytes()
    with pytest.raises(OutputError, match=reason) as caught:
        train(finished[0], **options)
    assert "--force" in str(caught.value)
    assert (finished[0] / "run.json").read_bytes() == before


def test_an_image_less_is_another_set(tmp_path: Path) -> None:
    from sightline.datasets import coffee_beans

    data = tmp_path / "data"
    coffee_beans.write(data, 40, 32)
    train(tmp_path / "r", data=str(data))
    next(data.rglob("*.png")).unlink()
    with pytest.raises(OutputError, match="images other than those now in data"):
        train(tmp_path / "r", data=str(data))


def test_a_run_that_is_not_complete_is_refused_until_forced(finished: tuple[Path, TrainResult], tmp_path: Path) -> None:
    path = tmp_path / "r"
    shutil.copytree(finished[0], path)
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    with pytest.raises(OutputError, match="interrupted, not complete"):
        train(path)
    callback = RecordingCallback()
    train(path, callback, force=True)
    assert callback.stages == 1
