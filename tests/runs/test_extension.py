"""Extending a complete run yields the weights of a run that had all epochs from the start."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import COLORS, draw_classes
from sightline import load
from sightline.api.resuming import resume
from sightline.api.training import train_run
from sightline.callbacks import Callback, EpochRecord, no_progress
from sightline.data import split
from sightline.data.iterative_stratification import stratify_iteratively
from sightline.data.recorded_images import ImageRow
from sightline.data.targets import LABEL_SETS
from sightline.errors import DataError, Interrupted, ModelError, UsageError
from sightline.runs import run_images
from sightline.runs.directory import RunDirectory
from sightline.tasks.single_label import SingleLabel
from sightline.training import checkpoints
from sightline.training.result import TrainResult
from sightline.training.schedules import build_schedule
from task_images import write_task

pytestmark = pytest.mark.usefixtures("plain_figures")

TINY = [
    *("model.name=cifar10-deep", "model.hidden_units=[4]", "input.height=16", "train.batch_size=16", "seed=3"),
    *(
        "train.track=[]",
        "train.schedule.name=constant",
        "train.schedule.warmup_fraction=0",
        "bundle.num_reference_examples=1",
    ),
]


class StoppingCallback(Callback):
    """Keeps the messages, and ends the process, as it were, after epoch `at`."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_epoch_end(self, record: EpochRecord) -> None:
        if record.epoch == self.at:
            raise Interrupted("Stopped by the test.")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("extension") / "data", COLORS, 12, size=16)


def train_quick(data: Path, out: Path, *more: str, epochs: int) -> TrainResult:
    return train_run(data, recipe="quick", set=[*TINY, *more], epochs=epochs, out=out)


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of two epochs, to be copied."""
    out = tmp_path_factory.mktemp("begun") / "r"
    train_quick(data, out, epochs=2)
    return out


@pytest.fixture
def short(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "short"))


@pytest.fixture(scope="module")
def long(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A run of four epochs in one go."""
    out = tmp_path_factory.mktemp("long") / "r"
    return out, train_quick(data, out, epochs=4)


def read_history_rows(run: Path) -> list[dict[str, Any]]:
    free = {"seconds", "images_per_second"}
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in free} for row in rows]


@pytest.mark.slow
def test_it_ends_with_the_weights_of_one_go(short: Path, long: tuple[Path, TrainResult]) -> None:
    """This includes augmentation, dropout, order, Adam's moments and the best epoch; all outputs are made anew."""
    saved_checkpoints = list((short / "checkpoints").glob("*.npz"))
    assert len(saved_checkpoints) == 1
    before = load(short).predict(np.zeros((16, 16, 3), np.uint8))[0].top[0].probability
    (short / "figures" / "errors.png").write_bytes(b"of the weights before")
    (short / "thresholds.json").write_text("{}")
    (short / "exports").mkdir()
    listener = StoppingCallback()
    result = resume(short, epochs=4, callback=listener)
    assert result.epochs == 4
    assert result.weights_sha256 == long[1].weights_sha256
    assert read_history_rows(short) == read_history_rows(long[0])
    assert listener.messages[0].endswith(
        "continues from epoch 2 to 4: the stage 'training' has run for 2 epochs and now runs for 4"
    )
    run = RunDirectory.open(short)
    assert run.info["status"] == "complete"
    assert run.info["result"]["epochs"] == run.config.train.epochs == 4
    assert "--epochs 4" in (short / "report.html").read_text()
    assert load(short).predict(np.zeros((16, 16, 3), np.uint8))[0].top[0].probability != before
    assert not (short / "thresholds.json").exists()
    assert not (short / "figures" / "errors.png").exists()
    assert not (short / "exports").exists()
    assert (short / "exports-old-1").is_dir(), "the user's exports are kept under another name"
    assert resume(short, epochs=4).weights_sha256 == result.weights_sha256, "it has that many epochs already"


def test_an_interrupted_extension_resumes_without_its_options(short: Path, long: tuple[Path, TrainResult]) -> None:
    with pytest.raises(Interrupted, match="Stopped by the test"):
        resume(short, epochs=4, callback=StoppingCallback(at=3))
    assert load(short).run is not None, "the best weights so far serve meanwhile"
    with pytest.raises(UsageError, match="only a complete run can be extended"):
        resume(short, epochs=9)
    assert resume(short).weights_sha256 == long[1].weights_sha256
    assert read_history_rows(short) == read_history_rows(long[0])


def test_killed_before_its_first_step_it_is_under_way(short: Path, long: tuple[Path, TrainResult]) -> None:
    """By then, only an entry of run.json is written."""
    from sightline.runs import extension

    extension.begin_extension(RunDirectory.open(short), 4, Callback())
    extension.begin_extension(RunDirectory.open(short), 4, Callback())  # the same command again changes nothing
    assert len(RunDirectory.open(short).info["extensions"]) == 1
    assert RunDirectory.open(short).config.train.epochs == 2
    assert resume(short, epochs=4).weights_sha256 == long[1].weights_sha256


@pytest.mark.slow
def test_twice_is_as_good_as_once(short: Path, long: tuple[Path, TrainResult]) -> None:
    resume(short, epochs=3)
    assert resume(short, epochs=4).weights_sha256 == long[1].weights_sha256
    assert [entry["to"] for entry in RunDirectory.open(short).info["extensions"]] == [3, 4]


def test_what_cannot_be_extended_says_why_and_stays(short: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already trained for 2 epochs"):
        resume(short, epochs=1)
    with pytest.raises(DataError):
        resume(short, tmp_path / "nowhere", epochs=4)
    run = RunDirectory.open(short)
    assert (run.info["status"], run.config.train.epochs) == ("complete", 2), "images that are not there cost nothing"
    assert "extensions" not in run.info
    assert run.bundle is not None
    shutil.rmtree(short / "checkpoints")
    with pytest.raises(ModelError, match=r"last checkpoint is not in .*checkpoints"):
        resume(short, epochs=4)
    assert load(short).run is not None
    assert resume(short).epochs == 2


def test_a_run_keeps_its_splits_where_another_version_would_divide_its_images_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, settings = write_task("multi_label", tmp_path / "data", 60)
    options = [*settings, "split.mode=stratified", "bundle.num_reference_examples=1"]
    train_run(source, recipe="quick", set=options, epochs=1, out=tmp_path / "r")
    run = RunDirectory.open(tmp_path / "r")
    rows = run.read_data()

    def divide(sizes: Any, classes: Any, fractions: Any, positions: Any) -> list[int]:
        return stratify_iteratively(sizes, classes, fractions, [1 - position for position in positions])

    monkeypatch.setattr(split, "stratify_iteratively", divide)
    assert {image.path: image.split for image in build_again(run)} != {row.path: row.split for row in rows or ()}
    resume(run.path, epochs=2)
    assert len(run.read_history()) == 2
    assert run.read_data() == rows


def build_again(run: RunDirectory) -> list[ImageRow]:
    """Return the images of a run as training would divide them now."""
    config, index = run.config, run_images.read_run_index(run, no_progress)
    splits = split.assign_splits(index.images, config.split, config.seed, None, LABEL_SETS).splits
    return [ImageRow(p.path, p.sha256, p.label, of) for p, of in zip(index.images, splits, strict=True)]


def test_the_state_can_be_left_out(data: Path, tmp_path: Path) -> None:
    train_quick(data, tmp_path / "r", "train.keep_last_checkpoint=false", epochs=1)
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.slow
def test_a_schedule_is_restated_and_patience_counts_anew(data: Path, tmp_path: Path) -> None:
    """With two stages, the last one ended early: it continues where the longer cosine is at that epoch."""
    (tmp_path / "stages.toml").write_text(
        '[train.schedule]\nname = "cosine"\n[train.early_stopping]\npatience = 1\nmin_delta = 99\n'
        '[[train.stages]]\nname = "head"\nunfreeze = 0\nepochs = 1\n[[train.stages]]\nname = "all"\nepochs = 4\n'
    )
    out = tmp_path / "r"
    options: Any = {"recipe": "quick", "config": tmp_path / "stages.toml", "out": out}
    first = train_run(data, set=[text for text in TINY if "schedule" not in text], **options)
    assert first.epochs == 2, "the first epoch of the last stage is no improvement by min_delta"
    before = read_history_rows(out)
    listener = StoppingCallback()
    result = resume(out, epochs=4, callback=listener)
    assert listener.messages[0].endswith(
        "the stage 'all' has run for 1 epoch and now runs for 3; the cosine schedule is recomputed for all of them"
    )
    assert "resuming after 2 epochs" in listener.messages
    assert "all: stopped early, as epoch 1 is still the best after 1 more epoch" in listener.messages
    assert result.epochs == 3, "one more epoch without an improvement, then early stopping again"
    after = read_history_rows(out)
    assert after[:2] == before
    config = RunDirectory.open(out).config
    assert [stage.epochs for stage in config.train.stages] == [1, 3]
    saved = checkpoints.load_latest(out / "checkpoints")
    assert saved is not None
    assert (saved.state["stage"], saved.state["epoch"]) == (1, 2)
    each = math.ceil(result.train.count / 16)
    rate = build_schedule(config.train.schedule, config.train.optimizer.learning_rate, 3 * each)
    assert after[2]["learning_rate"] == pytest.approx(rate(2 * each - 1))


@pytest.mark.parametrize("name", ["linear", "cosine", "one_cycle"])
def test_a_schedule_that_depends_on_the_number_of_epochs_is_named(short: Path, name: Any) -> None:
    from sightline.runs import extension

    run, listener = RunDirectory.open(short), StoppingCallback()
    train = run.config.train
    run.write_config(replace(run.config, train=replace(train, schedule=replace(train.schedule, name=name))))
    extension.begin_extension(RunDirectory.open(short), 4, listener)
    assert listener.messages[0].endswith(f"; the {name} schedule is recomputed for all of them")


TWO_STAGES = """
[train.early_stopping]
monitor = "val_accuracy"
min_validation_images = 20
[[train.stages]]
name = "head"
unfreeze = 0
solver = "logistic"
[[train.stages]]
name = "fine-tune"
epochs = 2
"""


@pytest.mark.parametrize("is_perfect", [False, True])
def test_a_stage_that_was_left_out_is_not_extended(
    is_perfect: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be left out again, after the outputs of the run had been replaced."""
    (tmp_path / "stages.toml").write_text(TWO_STAGES)
    settings = ["model.hidden_units=[]" if "hidden" in text else text for text in TINY]
    out, listener = tmp_path / "r", StoppingCallback()
    score = SingleLabel.score
    monkeypatch.setattr(
        SingleLabel, "score", lambda *arguments: score(*arguments)._replace(accuracy=1.0 if is_perfect else 0.5)
    )
    train_run(data, recipe="quick", set=settings, config=tmp_path / "stages.toml", out=out, callback=listener)
    reason = (
        "every validation image is classified correctly already"
        if is_perfect
        else r"fewer than 20 validation images \(\d\) cannot tell whether it helps"
    )
    setting = f"--set train.early_stopping.{'monitor=val_loss' if is_perfect else 'min_validation_images=0'}"
    assert any(
        re.search(f"^fine-tune: left out, as {reason}; {setting} trains it anyway", m) for m in listener.messages
    )
    before = (out / "run.json").read_bytes()
    for _ in range(2):
        with pytest.raises(UsageError, match=f"its stage 'fine-tune' was left out, as {reason}. To .* {setting}"):
            resume(out, epochs=3)
        assert (out / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_solved_head_is_not_extended(data: Path, tmp_path: Path) -> None:
    (tmp_path / "stage.toml").write_text(TWO_STAGES.rpartition("[[train.stages]]")[0])
    settings = ["model.hidden_units=[]" if "hidden" in text else text for text in TINY]
    train_run(data, recipe="quick", set=settings, config=tmp_path / "stage.toml", out=tmp_path / "r")
    with pytest.raises(UsageError, match=r"'head', is solved in one epoch.* new run with a fine-tuning stage"):
        resume(tmp_path / "r", epochs=3)


VIEWS = """
[augment]
horizontal_flip = true

[[train.stages]]
name = "views"
unfreeze = 2
epochs = {epochs}
views = {views}
"""


@pytest.mark.slow
def test_it_goes_on_with_the_views_that_the_time_limit_allowed(data: Path, tmp_path: Path) -> None:
    """Three views of each image are configured, but two were planned."""

    def train(name: str, epochs: int, *more: str) -> Path:
        config = tmp_path / f"{name}.toml"
        config.write_text(VIEWS.format(views=2, epochs=epochs))
        train_run(data, recipe="quick", set=[*TINY, *more], config=config, out=tmp_path / name)
        return tmp_path / name

    limited, whole = train("limited", 2, "train.time_limit=1h"), train("whole", 3)
    run = RunDirectory.open(limited)
    assert run.info["time"]["stages"]["0"]["views"] == 2
    (limited / "config.toml").write_text(run.config_text.replace("views = 2", "views = 3"))
    result = resume(limited, epochs=3)
    assert result.weights_sha256 == RunDirectory.open(whole).result["weights_sha256"]
    assert read_history_rows(limited) == read_history_rows(whole)
    assert RunDirectory.open(limited).config.train.stages[0].views == 3, "what was configured stays recorded"
