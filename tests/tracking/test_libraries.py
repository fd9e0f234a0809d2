"""Whole runs in MLflow's local store and in wandb's offline files, read back by their own libraries."""

from __future__ import annotations

import json
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from command import COLORS, draw_classes
from sightline.callbacks import Callback, EpochRecord
from sightline.errors import Interrupted

pytestmark = [pytest.mark.installed, pytest.mark.usefixtures("plain_figures")]

TINY = {
    "model.name": "cifar10-simple", "model.hidden_units": [4], "input.height": 32, "train.batch_size": 16,
    "train.checkpoint_steps": 1, "bundle.num_reference_examples": 1,
}  # fmt: skip
EPOCH_METRICS = {"accuracy/train", "accuracy/validation", "images_per_second", "learning_rate", "loss/train"}


class StoppingCallback(Callback):
    """Keeps the messages, and interrupts the training after epoch `at`, as Ctrl-C does."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_epoch_end(self, record: EpochRecord) -> None:
        if record.epoch == self.at:
            raise KeyboardInterrupt


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "images", COLORS, 16)


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder and a home for the libraries, without an account or settings."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_EXPERIMENT_ID",
        "WANDB_API_KEY",
        "WANDB_MODE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path


def interrupt_and_resume(images: Path, tracker: str) -> tuple[sl.Run, list[str]]:
    """Return a run of three epochs that was interrupted after the second, and the messages of the resumed part."""
    first, second = StoppingCallback(2), StoppingCallback()
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        sl.train(str(images), recipe="quick", epochs=3, out="run", set=TINY, track=tracker, callback=first)
    run = sl.Run("run").resume(callback=second)
    assert not [text for text in [*first.messages, *second.messages] if "tracking with" in text]
    return run, second.messages


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_has_one_run_with_settings_every_epoch_the_result_and_the_bundle(images: Path, own_folder: Path) -> None:
    run, messages = interrupt_and_resume(images, "mlflow")
    import mlflow

    (note,) = [text for text in messages if text.startswith("mlflow: the run is written to ")]
    assert f"{own_folder / 'mlflow.db'}; " in note
    assert f"`mlflow ui --backend-store-uri sqlite:///{own_folder / 'mlflow.db'}` shows it under Model training" in note

    client = mlflow.MlflowClient(f"sqlite:///{own_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("sightline")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert (tracked.info.status, tracked.info.run_name) == ("FINISHED", "run")
    assert tracked.data.params["train.epochs"] == "3"
    assert tracked.data.params["model.name"] == "cifar10-simple"
    history = client.get_metric_history(tracked.info.run_id, "loss/train")
    assert [(m.step, m.value) for m in history] == [(r.epoch, pytest.approx(r.loss)) for r in run.history]
    assert run.test is not None
    metrics = tracked.data.metrics
    assert metrics.keys() >= EPOCH_METRICS
    assert metrics["test/accuracy"] == pytest.approx(run.test.accuracy)
    assert metrics["test/accuracy_low"] <= metrics["test/accuracy"] <= metrics["test/accuracy_high"]
    bundle = Path(client.download_artifacts(tracked.info.run_id, "bundle"))
    assert sl.load(bundle).predict_proba([images / "red" / "red-000.png"]).shape == (1, 3)
    assert {item.path for item in client.list_artifacts(tracked.info.run_id)} == {"bundle", "report.html"}


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow-skinny is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_store_that_cannot_be_opened_is_one_warning(
    images: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:////proc/none/{own_folder.name}.db")
    callback = StoppingCallback()
    run = sl.train(str(images), recipe="quick", epochs=1, out="run", set=TINY, track="mlflow", callback=callback)
    assert run.status == "complete"
    assert len([text for text in callback.messages if text.startswith("warning: tracking with mlflow ended")]) == 1


def read_wandb(folder: Path) -> list[Any]:
    """Return the records of an offline run: messages in the log format of LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data = next(folder.glob("run-*.wandb")).read_bytes()
    at, block_size, message, records = 7, 32768, b"", []
    while at + 7 <= len(data):
        if block_size - at % block_size < 7:  # a block ends with padding
            at += block_size - at % block_size
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        message += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # full, or the last piece
            records.append(wandb_internal_pb2.Record.FromString(message))
            message = b""
    return records


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_wandb_without_a_login_writes_offline_and_a_resumed_run_has_the_same_id(images: Path, own_folder: Path) -> None:
    run, messages = interrupt_and_resume(images, "wandb")
    import wandb

    wandb.teardown()  # as at the end of the process: its service writes the rest
    folders = sorted(Path("run/wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    assert len(folders) == 2
    assert [text for text in messages if f"wandb sync {folders[1]}" in text]
    records = read_wandb(folders[1])
    ids = {record.run.run_id for folder in folders for record in read_wandb(folder) if record.HasField("run")}
    assert ids == {json.loads(Path("run/run.json").read_text())["tracked_ids"]["wandb"]}
    config = {u.key: u.value_json for r in records if r.HasField("run") for u in r.run.config.update}
    assert json.loads(config["train.epochs"]) == 3
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [row["loss/train"] for row in rows] == [pytest.approx(record.loss) for record in run.history]
    summary = {
        "/".join(u.nested_key) or u.key: u.value_json
        for r in records
        if r.HasField("summary")
        for u in r.summary.update
    }
    assert run.test is not None
    assert json.loads(summary["test/accuracy"]) == pytest.approx(run.test.accuracy)
    kinds = {record.WhichOneof("record_type") for record in records}
    assert kinds == {"header", "run", "telemetry", "summary", "history", "artifact", "exit"}, "no console, no machine"
    assert {record.artifact.type for record in records if record.HasField("artifact")} == {"bundle", "report"}
    assert not any(r.run.host or r.run.git.remote_url for r in records if r.HasField("run"))
