"""Sweeps as a user sees them: which trials run, what is saved, how an interrupted sweep continues."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import random
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from command import COLORS, TINY_SWEEP, draw_classes
from damage import damage_file
from new_runs import create_run
from sightline import _io, jsonio
from sightline.api import training_process
from sightline.api.dataset import Dataset
from sightline.api.loading import load
from sightline.api.options import format_toml
from sightline.api.training import train_run
from sightline.callbacks import Callback, EpochRecord
from sightline.cli.output import print_csv
from sightline.config import resolve_config
from sightline.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MissingExtraError,
    ModelError,
    OutputError,
    SightlineError,
    UsageError,
)
from sightline.report import comparison_plots, plotting
from sightline.runs.directory import RunDirectory
from sightline.sweeps import SweepResult, TrialResult, results, search_space, study, sweep
from sightline.sweeps.runner import prepare_folder
from sightline.training.result import SplitMetrics, TrainingMetrics, TrainResult
from task_images import TASKS, write_task

pytestmark = pytest.mark.usefixtures("plain_figures")


def parse_text(text: str, name: str = "mine") -> search_space.SearchSpace:
    return search_space.parse_space(text, name, Path())


def check_png(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        assert len(image.convert("L").getcolors() or []) > 10, "something must be drawn"
        return image.size


# The search space.


def test_a_grid_has_all_cells_in_the_order_of_its_file() -> None:
    search_space = parse_text(
        "[space]\ntrain.epochs = [1, 2]\n[space.base]\na = { 'train.l2' = 0.5 }\nb = { model.name = 'vgg16' }"
    )
    assert search_space.grid_size == 4
    assert list(search_space.iter_grid()) == [
        {"train.epochs": 1, "base": "a"},
        {"train.epochs": 1, "base": "b"},
        {"train.epochs": 2, "base": "a"},
        {"train.epochs": 2, "base": "b"},
    ]
    assert resolve_config(assignments=search_space.trial_assignments({"train.epochs": 2, "base": "a"})).train.l2 == 0.5
    assert (
        resolve_config(assignments=search_space.trial_assignments({"train.epochs": 2, "base": "b"})).model.name
        == "vgg16"
    )


def test_the_count_is_the_grid_or_what_is_asked_for() -> None:
    grid = parse_text("[space]\nseed = [1, 2, 3]")
    assert [grid.num_trials(), grid.num_trials(2), grid.num_trials(9)] == [3, 2, 3]
    random_space = parse_text("sampler = 'random'\ntrials = 7\n[space]\nseed = [1, 2, 3]")
    assert [random_space.num_trials(), random_space.num_trials(9)] == [7, 9]


@settings(max_examples=30)
@given(
    st.recursive(
        st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=9).filter(lambda t: t != "unset"),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab 名\"'\\", min_size=1), inner, max_size=3),
        max_leaves=6,
    )
)  # fmt: skip
def test_a_value_survives_being_written_as_an_assignment(value: Any) -> None:
    import tomllib

    assert tomllib.loads(f"value = {format_toml(value)}")["value"] == value


def test_unset_takes_a_setting_away() -> None:
    search_space = parse_text("[settings]\nmodel.alpha = 0.5\n[space]\nmodel.alpha = ['unset', 0.35]")
    alphas = [
        resolve_config(assignments=search_space.trial_assignments(cell)).model.alpha
        for cell in search_space.iter_grid()
    ]
    assert alphas == [None, 0.35]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["nothing", "[space]"]),
        ("[space]\nseed = 3", ["seed", "list"]),
        ("[space]\nseed = [1, 1]", ["seed", "twice"]),
        ("[space]\nseed = []", ["seed", "list"]),
        ("[space]\nseed = {low = 1, high = 3}", ["seed", "grid", "random"]),
        ("sampler='tpe'\n[space]\nseed = {low = 3, high = 3}", ["low < high"]),
        ("sampler='tpe'\n[space]\nseed = {low = 3}", ["'high'"]),
        ("sampler='tpe'\n[space]\nseed = {low = 3, high = 5, lag = true}", ["'lag'", "'log'"]),
        ("sampler='tpe'\n[space]\nseed = {low = 0, high = 5, log = true}", ["above 0"]),
        ("sampler='tpe'\n[space]\nseed = {low = 1, high = 5, log = 'false'}", ["seed.log", "true or false", "'false'"]),
        ("sampler='tpe'\n[space]\nseed = {low = 1, high = 5, step = 5}", ["seed.step", "at most high - low"]),
        ("[space]\nrecipe = ['quick', 'transfer']", ["recipe", "base"]),
        ("[space]\ntrian.epochs = [1]", ["'trian'", "'train'"]),
        ("[grid]\ntrain.epochs = [1, 2]", ["'grid' is outside", "[settings]", "[space]"]),
        ("'train.epochs' = 2\n[space]\nseed = [1]", ["'train.epochs' is outside", "[settings]"]),
        ("train.epochs = 2\n[space]\nseed = [1]", ["'train' is outside", "[settings]"]),
        ("samplr = 'grid'\n[space]\nseed = [1]", ["samplr", "'sampler'"]),
        ("sampler = 'gird'\n[space]\nseed = [1]", ["'gird'", "'grid'"]),
        ("monitor = 'test.accuracy'\n[space]\nseed = [1]", ["test.accuracy", "validation.accuracy"]),
    ],
)
def test_a_wrong_space_gets_one_clear_message(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_text(text)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[space]\ntrain.epoch = [1]", ["train.epoch", "epochs"]),
        ("[space]\ntrain.epochs = [1, -1]", ["train.epochs", "between 1 and"]),
        ("sampler='tpe'\n[space]\nseed = {low = 1, high = 5, step = 0.5}", ["seed", "whole number", "1.5"]),
        ("[settings]\nmodel.nam = 'x'\n[space]\nseed = [1]", ["model.nam"]),
        ("[space.base]\nfrozen = { 'train.stages.4.unfreeze' = 0 }", ["train.stages.4.unfreeze"]),
        ("recipe = 'transfr'\n[space]\nseed = [1]", ["transfr", "transfer"]),
        ("config = 'no.toml'\n[space]\nseed = [1]", ["no.toml"]),
        ("[space\n", ["TOML"]),
    ],
)
def test_wrong_settings_show_before_any_image_is_read(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "s.toml").write_text(text if "recipe" in text or "[space\n" in text else f'recipe = "transfer"\n{text}')
    with pytest.raises(UsageError) as caught:
        sweep("no such data", tmp_path / "s.toml", out=tmp_path / "o")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_shipped_spaces_are_found_by_name_and_valid() -> None:
    assert "transfer-table" in search_space.list_spaces()
    for name in search_space.list_spaces():
        assert search_space.load_space(name).grid_size
    with pytest.raises(UsageError, match="'transfer-table'"):
        search_space.load_space("transfer-tabel")


def test_a_file_that_is_not_toml_is_named_as_given(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not settings")
    with pytest.raises(ConfigError) as caught:
        search_space.load_space(file)
    assert str(caught.value).startswith(f"{file} is not a readable TOML file: ")


def test_the_tutorials_table_crosses_rate_base_and_start() -> None:
    table = search_space.load_space("transfer-table")
    combinations = set()
    for cell in table.iter_grid():
        config = table.trial_config(cell)
        (stage,) = config.train.stages
        assert stage.learning_rate is None
        combinations.add((config.train.optimizer.learning_rate, stage.unfreeze, config.model.weights))
    rates = {rate for rate, _, _ in combinations}
    assert {1e-2, 1e-3, 1e-5, 1e-7} <= rates
    assert combinations == {
        (rate, unfreeze, weights) for rate in rates for unfreeze in (0, -1) for weights in ("imagenet", "none")
    }


# A real sweep


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("data") / "colors", COLORS, 20)


REAL = f"""
monitor = "validation.loss"
pruner = "median"
startup_trials = 1
{TINY_SWEEP}
[space]
train.optimizer.learning_rate = [1e-2, 1e-9]
model.head = ["softmax", "sigmoid"]
"""


@pytest.fixture(scope="module")
def finished_sweep(
    colors: Path, tmp_path_factory: pytest.TempPathFactory, plain_figures: dict[str, Any]
) -> tuple[Path, SweepResult]:
    """Four trials: one learns, one learns too slowly and is pruned, two are invalid (sigmoid with three classes).

    The first trains in a process of its own, as all do; the others here, where TensorFlow has started already. Its
    figures are drawn.
    """
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mine.toml").write_text(REAL)
    ways = iter([training_process.train_in_subprocess])

    def train(sources: Any, **options: Any) -> TrainResult:
        return next(ways, train_run)(sources, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_process, "train_in_subprocess", train)
        for name, draw in plain_figures.items():
            patch.setattr(plotting, name, draw)
        return folder / "out", sweep(colors, folder / "mine.toml", out=folder / "out")


def test_each_trial_is_an_ordinary_run_with_its_settings(finished_sweep: tuple[Path, SweepResult]) -> None:
    folder, sweep_result = finished_sweep
    best = sweep_result.best
    assert best is not None
    assert best.settings == {"train.optimizer.learning_rate": 1e-2, "model.head": "softmax"}
    assert best.run == str(folder / "trial-0001")
    run = RunDirectory.open(folder / "trial-0001")
    assert run.info["status"] == "complete"
    assert run.config.train.optimizer.learning_rate == 1e-2
    assert run.config.train.epochs == 3
    assert load(run.path).classes == tuple(COLORS)


def test_its_metrics_are_those_of_the_run(finished_sweep: tuple[Path, SweepResult]) -> None:
    folder, sweep_result = finished_sweep
    best = sweep_result.best
    assert best is not None
    own = json.loads((folder / "trial-0001" / "eval" / "validation" / "metrics.json").read_text())
    assert best.value == best.loss == own["loss"]
    assert best.accuracy == own["accuracy"]
    assert best.interval is own["metrics"]["log_loss"]["interval"] is None, "the model has no error"
    info = RunDirectory.open(folder / "trial-0001").info["result"]
    assert (best.parameters, best.epochs, best.seconds) == (info["parameters"], info["epochs"], info["seconds"])


def test_a_hopeless_trial_is_pruned_and_its_run_says_so(finished_sweep: tuple[Path, SweepResult]) -> None:
    folder, sweep_result = finished_sweep
    (pruned,) = [t for t in sweep_result.trials if t.state == "pruned"]
    assert pruned.settings["train.optimizer.learning_rate"] == 1e-9
    run = RunDirectory.open(folder / "trial-0003")
    assert pruned.run == str(run.path)
    assert run.info["status"] == "interrupted"
    assert run.info["message"].startswith("Pruned after epoch 2: ")
    history = run.read_history()
    assert len(history) == pruned.epochs == 2, "it stopped before its last epoch, but not at once"
    assert pruned.value == history[-1].val_loss
    winner = RunDirectory.open(folder / "trial-0001").read_history()
    assert pruned.value is not None
    assert pruned.value > (winner[1].val_loss or 0)


def test_a_failing_trial_reports_why_and_the_others_continue(finished_sweep: tuple[Path, SweepResult]) -> None:
    folder, sweep_result = finished_sweep
    failed = [t for t in sweep_result.trials if t.state == "failed"]
    assert [t.trial for t in failed] == [2, 4]
    for trial in failed:
        assert trial.settings["model.head"] == "sigmoid"
        assert "sigmoid" in (trial.reason or "")
        assert trial.run is None
        assert not (folder / f"trial-{trial.trial:04}").exists()


def test_the_table_and_the_plots_are_written(finished_sweep: tuple[Path, SweepResult]) -> None:
    folder, sweep_result = finished_sweep
    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    assert [int(r["trial"]) for r in rows] == [1, 3, 2, 4] == [t.trial for t in sweep_result.trials]
    assert [r["state"] for r in rows] == ["complete", "pruned", "failed", "failed"]
    assert float(rows[0]["validation.loss"]) == sweep_result.trials[0].value
    assert float(rows[0]["train.optimizer.learning_rate"]) == 1e-2
    assert rows[2]["reason"] == sweep_result.trials[2].reason
    assert min(check_png(folder / "figures" / "parallel.png")) > 300
    assert sweep_result.importance is None, "there is only one complete trial"
    assert not (folder / "figures" / "importance.png").exists()
    assert (folder / "space.toml").read_text() == REAL


def test_the_same_call_again_trains_nothing(
    finished_sweep: tuple[Path, SweepResult], colors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("finished, failed and pruned trials are not repeated")

    monkeypatch.setattr(training_process, "train_in_subprocess", never)
    assert sweep(colors, finished_sweep[0].parent / "mine.toml", out=finished_sweep[0]) == finished_sweep[1]


# The search itself, with a fake for training


class FakeTrainer:
    """A fake `train_in_subprocess`: the accuracy is a function of the learning rate; `before` may raise."""

    def __init__(self) -> None:
        self.calls = 0
        self.paths: list[str] = []
        self.seeds: list[int] = []
        self.rates: list[float] = []
        self.before: Callable[[int], None] = lambda call: None

    def __call__(
        self,
        sources: Any,
        *,
        recipe: str,
        config: Path | None,
        set: list[str],  # noqa: A002  # as `train_in_subprocess` calls it
        out: Path,
        force: bool,
        callback: Callback,
    ) -> TrainResult:
        resolved = resolve_config(assignments=set)
        run = create_run(out, force=force)
        self.calls += 1
        self.before(self.calls)
        self.paths.append(out.name)
        self.seeds.append(resolved.seed)
        self.rates.append(resolved.train.optimizer.learning_rate)
        accuracy = round(100 / (1 + self.rates[-1])) / 100
        for epoch in range(1, resolved.train.epochs + 1):
            callback.on_epoch_end(EpochRecord(epoch, "training", 1.0, 0.5, 1.0, accuracy, 0.1, 1.0, 1.0))
        run.update(status="complete")
        train, validation = TrainingMetrics(0.5, 1.0, 300), SplitMetrics(accuracy, 1.0, 100)
        classes = ("a", "b")
        epochs = resolved.train.epochs
        return TrainResult(str(out), "m", 5, classes, train, validation, None, epochs, 2.0, 1.0, "", recipe)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    fake = FakeTrainer()
    monkeypatch.setattr(training_process, "train_in_subprocess", fake)
    return fake


Search = Callable[..., SweepResult]


@pytest.fixture
def search(trainer: FakeTrainer, tmp_path: Path) -> Search:
    """Run a sweep of the given TOML text, in the same folder by default, with a fast storage."""
    images = draw_classes(tmp_path / "data", COLORS, 1)

    def run(text: str, *, data: Dataset | Path = images, **options: Any) -> SweepResult:
        (tmp_path / "s.toml").write_text(text)
        options = {"out": tmp_path / "o", **options}
        options.setdefault("storage", f"journal:{tmp_path / options['out'].name}.log")
        return sweep(data, tmp_path / "s.toml", **options)

    return run


GRID = "[settings]\ntrain.epochs = 2\n[space]\ntrain.optimizer.learning_rate = [0.1, 0.2, 0.3]\nseed = [1, 2]"
RANDOM = """
sampler = "random"
trials = 6
[settings]
seed = 5
train.epochs = 1
[space]
train.optimizer.learning_rate = { low = 1e-4, high = 1.0, log = true }
"""


def settings_by_trial(sweep_result: SweepResult) -> dict[int, Mapping[str, Any]]:
    return {t.trial: t.settings for t in sweep_result.trials}


@pytest.mark.usefixtures("drawn_figures")
def test_trials_are_ranked_and_the_importance_is_drawn(search: Search, tmp_path: Path) -> None:
    sweep_result = search(GRID)
    assert [t.trial for t in sweep_result.trials] == [1, 2, 3, 4, 5, 6], "by value, ties by number"
    assert sweep_result.importance is not None
    assert sweep_result.importance["train.optimizer.learning_rate"] > 0.9
    assert check_png(tmp_path / "o" / "figures" / "importance.png")[0] > 400


def test_a_loss_is_the_better_the_smaller(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.3, 0.1, 0.2, 0.5, 0.4, 0.6])
    train = training_process.train_in_subprocess

    def changed(*arguments: Any, **options: Any) -> TrainResult:
        result = train(*arguments, **options)
        return dataclasses.replace(result, validation=SplitMetrics(0.5, next(losses), 100))

    monkeypatch.setattr(training_process, "train_in_subprocess", changed)
    assert [t.value for t in search(f'monitor = "validation.loss"\n{GRID}').trials] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


@pytest.mark.parametrize(
    ("task", "pruner", "expected"),
    [
        ("single_label", "median", "validation.accuracy"),
        ("ordinal", "none", "validation.accuracy"),
        ("multi_label", "none", "validation.mean_average_precision"),
        ("multi_label", "median", "validation.loss"),
        ("segmentation", "median", "validation.mean_iou"),
    ],
)
def test_the_metric_is_that_of_the_task(task: str, pruner: str, expected: str) -> None:
    text = f'pruner = "{pruner}"\n[space]\nseed = [1]'
    space = search_space.parse_space(text, "s", Path())
    assert space.with_monitor([f"model.task={task}"]).monitor == expected
    space_with_loss = search_space.parse_space(f'monitor = "validation.loss"\n{text}', "s", Path())
    assert space_with_loss.with_monitor([f"model.task={task}"]).monitor == "validation.loss"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (
            'monitor = "validation.quadratic_weighted_kappa"',
            "of a task other than single_label: set monitor to one of ",
        ),
        ('monitor = "validation.mean_iou"', "set monitor to one of validation.accuracy, validation.loss."),
        (
            'monitor = "validation.quadratic_weighted_kappa"\npruner = "median"\nsettings.model.task = "ordinal"',
            "needs a metric of each epoch: set monitor to one of validation.accuracy, validation.loss, or pruner = ",
        ),
    ],
)
def test_a_metric_that_trials_do_not_have_is_refused(
    search: Search, head: str, reason: str, trainer: FakeTrainer
) -> None:
    with pytest.raises(ConfigError) as refusal:
        search(f"{head}\n[space]\nseed = [1, 2]")
    assert reason in str(refusal.value)
    assert trainer.calls == 0


@pytest.mark.parametrize("name", ["seed", "train.optimizer"])
def test_a_setting_of_all_trials_that_the_space_varies_is_refused(
    search: Search, trainer: FakeTrainer, name: str
) -> None:
    """It would override the values in the results."""
    with pytest.raises(UsageError, match=f"^{name} cannot be the same in all trials, since s varies {name}"):
        search(GRID, set={name: 7})
    assert trainer.calls == 0


def test_settings_of_the_trials_override_those_of_the_data_set(search: Search, tmp_path: Path) -> None:
    data = Dataset(tmp_path / "data", set={"data.cache": True, "data.class_level": 2})
    search("[space]\nseed = [1]", data=data, set={"data.class_level": 1})
    record = jsonio.read_object(tmp_path / "o" / "sweep.json")
    assert resolve_config(assignments=record["settings"]).data.class_level == 1


@pytest.mark.slow_with("segmentation", "ordinal", "hierarchical")
@pytest.mark.parametrize("task", TASKS)
def test_trials_of_each_task_are_ranked_by_its_metric(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval is that of the run's evaluation: pixels, and labels of one image, depend on each other."""
    data, settings = write_task(task, tmp_path / "data", 60)
    monkeypatch.setattr(training_process, "train_in_subprocess", train_run)
    metric = {
        "multi_label": "mean_average_precision", "ordinal": "quadratic_weighted_kappa", "segmentation": "mean_iou",
        "hierarchical": "hierarchical_f1",
    }[task]  # fmt: skip
    monitor = "" if task in {"multi_label", "segmentation"} else f'monitor = "validation.{metric}"\n'
    (tmp_path / "s.toml").write_text(f"{monitor}[space]\nseed = [1]")
    done = sweep(data, tmp_path / "s.toml", out=tmp_path / "out", set=[*settings, "train.epochs=1"], progress=False)
    assert done.monitor == f"validation.{metric}"
    (trial,) = done.trials
    assert trial.run is not None
    own = jsonio.read_object(Path(trial.run) / "eval" / "validation" / "metrics.json")["metrics"][metric]
    assert trial.value == pytest.approx(own["value"])
    assert trial.interval is not None
    assert list(trial.interval) == own["interval"]


def test_a_trial_whose_metric_is_undefined_fails_with_the_reason(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kappa is undefined if all validation images have the same grade."""
    values = iter([(None, "all images have one grade"), (math.nan, ""), (math.inf, "")])
    train = training_process.train_in_subprocess

    def changed(*arguments: Any, **options: Any) -> TrainResult:
        result = train(*arguments, **options)
        value, note = next(values, (0.5, ""))
        metrics = {"quadratic_weighted_kappa": {"value": value, "interval": None, "note": note}}
        path = Path(result.run) / "eval" / "validation" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(jsonio.dumps({"metrics": metrics, "accuracy_interval": None}))
        details = {"metrics": {"validation": {"quadratic_weighted_kappa": value}}}
        return dataclasses.replace(result, details=details)

    monkeypatch.setattr(training_process, "train_in_subprocess", changed)
    done = search(f'monitor = "validation.quadratic_weighted_kappa"\n{GRID}', set={"model.task": "ordinal"})
    reasons = [(t.trial, t.reason) for t in done.trials if t.state == "failed"]
    assert [number for number, _ in reasons] == [1, 2, 3]
    assert "quadratic_weighted_kappa cannot be computed (all images have one grade)" in (reasons[0][1] or "")
    assert all("it is not a finite number" in (reason or "") for _, reason in reasons[1:])
    assert [t.value for t in done.trials if t.state == "complete"] == [0.5] * 3


class Killed(BaseException):
    """Not caught by any handler, like SIGKILL."""


@pytest.mark.parametrize(
    ("text", "storage"), [(GRID, "sqlite"), (RANDOM, "journal")], ids=["grid in sqlite", "random in a journal"]
)
def test_a_trial_that_died_is_tried_again_and_no_other(
    search: Search, trainer: FakeTrainer, tmp_path: Path, text: str, storage: str
) -> None:
    url = f"{'sqlite:///' if storage == 'sqlite' else 'journal:'}{tmp_path / 'kept'}"
    uninterrupted = settings_by_trial(search(text, out=tmp_path / "whole"))
    trainer.calls = 0
    trainer.paths.clear()

    def die(call: int) -> None:
        if call == 3:
            raise Killed

    trainer.before = die
    with pytest.raises(Killed):
        search(text, storage=url)
    trainer.before = lambda call: None
    sweep_result = search(text, storage=url)
    assert trainer.paths == [f"trial-000{n}" for n in (1, 2, 4, 5, 6, 3)], "each once, the killed one last"
    assert {t.state for t in sweep_result.trials} == {"complete"}
    assert settings_by_trial(sweep_result) == uninterrupted, "an interruption does not change the trials"
    assert len({str(v) for v in uninterrupted.values()}) == 6


def test_an_interrupted_sweep_says_how_to_go_on(search: Search, trainer: FakeTrainer) -> None:
    def stop(call: int) -> None:
        if call == 3:
            raise Interrupted("Stopped in epoch 1.")

    trainer.before = stop
    with pytest.raises(Interrupted, match=r"2 of 6 trials.*the same command") as caught:
        search(GRID)
    assert caught.value.exit_code == 130
    trainer.before = lambda call: None
    assert {t.state for t in search(GRID).trials} == {"complete"}
    assert sorted(trainer.paths) == [f"trial-000{n}" for n in range(1, 7)]


def test_results_of_other_images_are_not_taken_for_those_of_these(
    search: Search, trainer: FakeTrainer, tmp_path: Path
) -> None:
    """Two folders may have the same name, and arrays have none."""
    first, second = (draw_classes(tmp_path / name / "train", COLORS, count) for name, count in (("a", 1), ("b", 2)))
    search(GRID, data=first, trials=2)
    with pytest.raises(UsageError, match=r"images other than those now in .*b/train: .*`out`.*`storage`"):
        search(GRID, data=second)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    search(GRID, data=Dataset.from_arrays(pixels, list("aabb")), out=tmp_path / "arrays", trials=2)
    for images, labels in ((pixels // 2, "aabb"), (pixels, "abab")):
        with pytest.raises(UsageError, match="images other than those now in arrays: "):
            search(GRID, data=Dataset.from_arrays(images, list(labels)), out=tmp_path / "arrays")
    assert trainer.calls == 4
    shutil.move(first, tmp_path / "elsewhere" / "train")
    assert len(search(GRID, data=tmp_path / "elsewhere" / "train").trials) == 6, "moved images are the same images"


def test_added_images_are_refused_once_there_are_results(search: Search, trainer: FakeTrainer, tmp_path: Path) -> None:
    """As `resume` refuses them; without results, they may be what an error asked for."""

    def refuse(call: int) -> None:
        raise DataError("There are too few images.")

    trainer.before = refuse
    with pytest.raises(DataError, match="too few"):
        search(GRID)
    trainer.before = lambda call: None
    shutil.copytree(draw_classes(tmp_path / "more", COLORS, 2), tmp_path / "data", dirs_exist_ok=True)
    search(GRID, trials=1)
    draw_classes(tmp_path / "data" / "black", {"": (0, 0, 0)}, 1)
    with pytest.raises(UsageError, match="images other than those now in"):
        search(GRID)


def test_a_sweep_that_has_not_recorded_its_images_goes_on(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    search(GRID, storage=f"sqlite:///{path}", trials=1)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("delete from study_user_attributes where key = 'images'")
        database.commit()
    draw_classes(tmp_path / "data" / "more", COLORS, 1)
    assert len(search(GRID, storage=f"sqlite:///{path}", trials=2).trials) == 2


def test_more_trials_may_be_asked_for_later(search: Search, trainer: FakeTrainer) -> None:
    first = search(RANDOM, trials=2)
    assert len(first.trials) == 2
    more = search(RANDOM)
    assert len(more.trials) == len(set(trainer.rates)) == 6
    assert settings_by_trial(first).items() <= settings_by_trial(more).items()


def test_machines_divide_the_trials_of_one_study(search: Search, trainer: FakeTrainer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    search(GRID, storage=url, out=tmp_path / "first", trials=4)
    sweep_result = search(GRID, storage=url, out=tmp_path / "second")
    assert trainer.paths == [f"trial-000{n}" for n in range(1, 7)]
    assert [Path(t.run or "").parent.name for t in sweep_result.trials] == ["first"] * 4 + ["second"] * 2
    assert (tmp_path / "second" / "results.csv").read_text().count("\n") == 7


def test_a_trial_running_elsewhere_is_left_alone(search: Search, trainer: FakeTrainer, tmp_path: Path) -> None:
    def die(call: int) -> None:
        raise Killed

    trainer.before = die
    patch = pytest.MonkeyPatch()
    patch.setattr(study, "HOST_NAME", "another-machine")
    with pytest.raises(Killed):
        search(GRID)
    patch.undo()
    trainer.before = lambda call: None
    sweep_result = search(GRID)
    assert trainer.paths == [f"trial-000{n}" for n in range(2, 7)]
    assert [t.trial for t in sweep_result.trials if t.state == "running"] == [1]


def test_values_follow_from_the_seed(search: Search, trainer: FakeTrainer, tmp_path: Path) -> None:
    first, again = (settings_by_trial(search(RANDOM, out=tmp_path / name)) for name in "ab")
    other = settings_by_trial(search(RANDOM.replace("seed = 5", "seed = 6"), out=tmp_path / "c"))
    assert first == again
    assert first != other
    assert all(1e-4 <= float(v["train.optimizer.learning_rate"]) <= 1 for v in first.values())
    assert set(trainer.seeds[:12]) == {5}, "the trials differ in the searched settings, not in their seed"


def test_a_seed_of_all_trials_is_that_of_the_sampler(search: Search, tmp_path: Path) -> None:
    text = RANDOM.replace("seed = 5", "")
    options: dict[str, Any] = {"a": {"set": {"seed": 5}}, "b": {"set": {"seed": 6}}}
    first, other = (settings_by_trial(search(text, out=tmp_path / name, **options[name])) for name in "ab")
    assert first == settings_by_trial(search(RANDOM, out=tmp_path / "c"))
    assert first != other


def test_a_seed_in_the_space_is_a_setting_like_others(search: Search, trainer: FakeTrainer) -> None:
    search(GRID)
    assert trainer.seeds == [1, 2] * 3


def test_tpe_samples_where_metrics_are_good(search: Search, trainer: FakeTrainer) -> None:
    text = RANDOM.replace('"random"', '"tpe"').replace("low = 1e-4, high = 1.0, log = true", "low = 0.001, high = 10.0")
    sweep_result = search(text, trials=24)
    early = sum(
        float(sweep_result.trials[i].settings["train.optimizer.learning_rate"])
        for i in indices_of_trials(sweep_result, range(1, 11))
    )
    late = sum(
        float(sweep_result.trials[i].settings["train.optimizer.learning_rate"])
        for i in indices_of_trials(sweep_result, range(15, 25))
    )
    assert late < early / 2


def indices_of_trials(sweep_result: SweepResult, numbers: range) -> list[int]:
    return [i for i, t in enumerate(sweep_result.trials) if t.trial in numbers]


def test_whole_numbers_stay_whole(search: Search) -> None:
    text = (
        'sampler = "random"\ntrials = 12\n[settings]\ntrain.epochs = 1\n[space]\nseed = { low = 2, high = 9, step = 3 }'
    )
    sweep_result = search(text)
    assert {t.settings["seed"] for t in sweep_result.trials} == {2, 5, 8}
    assert all(isinstance(t.settings["seed"], int) for t in sweep_result.trials)


def test_hyperband_prunes_too(search: Search, trainer: FakeTrainer) -> None:
    text = "pruner = 'hyperband'\n[settings]\ntrain.epochs = 9\n[space]\ntrain.optimizer.learning_rate = "
    sweep_result = search(text + str([round(0.01 * 1.3**i, 5) for i in range(16)]))
    assert {t.state for t in sweep_result.trials} == {"complete", "pruned"}
    assert sweep_result.best is not None
    assert sweep_result.best.settings["train.optimizer.learning_rate"] == 0.01


def test_a_folder_that_holds_something_else_is_refused(search: Search, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(SightlineError, match="`out`"):
        search(GRID, out=tmp_path / "mine")
    search(GRID, out=tmp_path / "taken")
    with pytest.raises(SightlineError, match="contains the sweep s-data, not s-elsewhere: choose another folder"):
        sweep("elsewhere", tmp_path / "s.toml", out=tmp_path / "taken")
    with pytest.raises(SightlineError, match=r's-data, not s-data with "data\.class_level=1": choose'):
        search(GRID, out=tmp_path / "taken", set={"data.class_level": 1})
    with pytest.raises(SightlineError, match="is a file"):
        search(GRID, out=tmp_path / "mine" / "thesis.txt")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("written", [0, 1])
def test_a_sweep_that_was_killed_while_its_folder_was_created_goes_on(
    search: Search, tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "killed", _io.write_atomic
    left: list[Path] = []

    def kill(path: Path, content: bytes, **options: Any) -> Path:
        if len(left) == written:
            path.with_name(".part-0123456789abcdef.toml").write_text("half")
            raise KeyboardInterrupt
        left.append(path)
        return write(path, content, **options)

    folder.mkdir()
    monkeypatch.setattr(_io, "write_atomic", kill)
    with pytest.raises(KeyboardInterrupt):
        search(GRID, out=folder)
    monkeypatch.undo()
    prepare_folder(folder, "s-colors")


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
def test_nothing_is_written_through_a_link_in_place_of_the_study(
    search: Search, trainer: FakeTrainer, tmp_path: Path, suffix: str
) -> None:
    """SQLite opens the files beside its database by their names."""
    folder, victim = tmp_path / "linked", tmp_path / "victim"
    search(GRID, out=folder, storage=None, trials=1)
    calls = trainer.calls
    (folder / f"study.db{suffix}").unlink(missing_ok=True)
    victim.write_text("precious")
    (folder / f"study.db{suffix}").symlink_to(victim)
    with pytest.raises(OutputError, match=rf"study\.db{suffix} is a link"):
        search(GRID, out=folder, storage=None, trials=2)
    assert victim.read_text() == "precious"
    assert trainer.calls == calls


def test_another_space_does_not_go_on_in_the_same_study(search: Search, tmp_path: Path) -> None:
    search(GRID)
    with pytest.raises(UsageError, match=r"settings or values other than.*`out`"):
        search(GRID.replace("0.3", "0.4"))
    assert (tmp_path / "o" / "space.toml").read_text() == GRID, "that of the trials in the folder"
    assert search(f"# a comment changes nothing\n{GRID}").best is not None


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "nosuchsql://user:secret@host/db",
        "nosuchsql://host/db?user=me&password=secret",
        "nosuchsql://host/db?user=me&password=my@secret",
        "postgresql://user:secret@secret@host:5432/db",
        "postgresql://user:secret@secret:secret@host:5432/db",
        "sqlite:////no/such/folder/study.db",
    ],
)
def test_a_storage_that_cannot_be_had_is_named_without_its_password(search: Search, url: str) -> None:
    with pytest.raises(UsageError, match="journal:FILE") as caught:
        search(GRID, storage=url)
    assert re.sub(":secret.*@", "@", url).partition("?")[0] in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://host:6379/0", "rediss://user:secret@host"])
def test_a_storage_that_unpickles_is_refused(search: Search, url: str) -> None:
    """Whoever writes there would run code here."""
    with pytest.raises(UsageError, match="Optuna unpickles the content of Redis") as caught:
        search(GRID, storage=url)
    assert "secret" not in str(caught.value)


# Optuna's thread that keeps the trial alive may meet the damage too.
@pytest.mark.filterwarnings("ignore:Exception in thread .*heartbeat:pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("harm", ["damaged", "foreign", "lines"])
def test_a_storage_that_fails_in_the_middle_is_one_sentence(
    search: Search, trainer: FakeTrainer, tmp_path: Path, harm: str
) -> None:
    place = tmp_path / ("study.log" if harm == "lines" else "study.db")

    def spoil(call: int) -> None:
        if call == 2 and harm == "foreign":
            with contextlib.closing(sqlite3.connect(place)) as base, base:
                base.execute("DROP TABLE trial_user_attributes")
        elif call == 2:
            place.write_bytes(b"no study" * 5000 + b"\n")

    trainer.before = spoil
    scheme = "journal:" if harm == "lines" else "sqlite:///"
    with pytest.raises(OutputError, match=r"The study in .*study\.(db|log) cannot be read or written: .*to continue"):
        search(GRID, storage=f"{scheme}{place}")
    assert trainer.calls == 2


def test_a_fault_of_ours_is_not_called_the_storages(search: Search, trainer: FakeTrainer) -> None:
    def fault(call: int) -> None:
        raise ZeroDivisionError

    trainer.before = fault
    with pytest.raises(ZeroDivisionError):
        search(GRID)


def test_what_no_trial_could_mend_ends_the_sweep(search: Search, trainer: FakeTrainer) -> None:
    def missing(call: int) -> None:
        raise DataError("There is no folder data.")

    trainer.before = missing
    with pytest.raises(DataError, match="no folder"):
        search(GRID)
    trainer.before = lambda call: None
    assert {t.state for t in search(GRID).trials} == {"complete"}, "no trial was marked as failed"


def test_failures_are_kept_with_their_reason(search: Search, trainer: FakeTrainer) -> None:
    def missing(call: int) -> None:
        if call == 2:
            raise ModelError("There is no weights file.")

    trainer.before = missing
    sweep_result = search(GRID)
    (failed,) = [t for t in sweep_result.trials if t.state == "failed"]
    assert isinstance(failed, TrialResult)
    assert (failed.trial, failed.reason) == (2, "There is no weights file.")
    assert sweep_result.trials[-1] is failed


def test_the_table_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"bundle.calibrate": True, "model.hidden_units": (8, 4), "data.note": "=1", "seed": None}
    trials = (TrialResult(1, "complete", 0.5, settings, seconds=math.nan),)
    sweep_result = SweepResult("study", "folder", "validation.loss", trials, None)
    print_csv(*sweep_result.to_table(), raw=False)
    printed = capsys.readouterr().out
    assert results.sweep_to_csv(sweep_result).decode() == printed
    assert printed.splitlines()[1] == '1,complete,0.5,,,true,"[8, 4]",\'=1,,,,,,,,'


def test_without_optuna_the_install_line_is_named(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[sweep\]"'):
        search(GRID)


# Damaged studies


COLUMNS = (
    ("trial_user_attributes", "value_json"), ("trial_system_attributes", "value_json"),
    ("study_user_attributes", "value_json"), ("trials", "state"), ("trials", "number"), ("trial_values", "value"),
    ("trial_values", "value_type"), ("trial_params", "param_name"), ("trial_params", "param_value"),
    ("trial_params", "distribution_json"), ("trial_intermediate_values", "step"), ("version_info", "schema_version"),
)  # fmt: skip
CELLS = (
    "null", "[]", "{}", "[[1]]", '"x"', "-1", "1e999", '"\\ud800"', '{"x": {}}', "[" * 5_000, "", b"\xff", None,
    1 << 40, -1,
)  # fmt: skip


def damage_cell(path: Path, rng: random.Random) -> str:
    """Replace a value in one row of a study, and return what was done."""
    table, column = rng.choice(COLUMNS)
    value = rng.choice(CELLS)
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = [row for (row,) in database.execute(f"select rowid from {table}")]  # noqa: S608  # names of our own
        if rows:
            with contextlib.suppress(sqlite3.IntegrityError):
                database.execute(f"update {table} set {column} = ? where rowid = ?", (value, rng.choice(rows)))  # noqa: S608
            database.commit()
    return f"{table}.{column} = {value!r:.40}"


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Overwrite or cut bytes of a file, and return what was done."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(200)
    data[at : at + 64] = b"" if rng.random() < 0.2 else rng.randbytes(64)
    path.write_bytes(data[:at] if rng.random() < 0.2 else data)
    return f"bytes at {at}"


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the plots, for tests with many sweeps that do not look at them."""
    for name in ("plot_parallel", "plot_importance"):
        monkeypatch.setattr(comparison_plots, name, lambda *_, **__: b"")
    monkeypatch.setattr(results, "parameter_importance", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("damage", [damage_cell, damage_bytes])
def test_a_damaged_study_is_refused_in_a_sentence(
    search: Search, trainer: FakeTrainer, tmp_path: Path, damage: Callable[[Path, random.Random], str]
) -> None:
    """The study and its folder may come from somebody else; half of the trials are left to run."""
    whole, copy = tmp_path / "whole.db", tmp_path / "copy.db"
    search(GRID, storage=f"sqlite:///{whole}", trials=3)
    refused = 0
    for seed in range(16):
        shutil.copy(whole, copy)
        what = damage(copy, random.Random(seed))  # noqa: S311  # damage, no secrets
        try:
            search(GRID, storage=f"sqlite:///{copy}", trials=4, out=tmp_path / f"o{seed}")
        except SightlineError as error:
            assert error.exit_code == 2, what  # noqa: PT017  # most damage is refused, some does no harm
            assert "\n" not in str(error), what  # noqa: PT017
            refused += 1
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
    assert refused > 2
    assert trainer.calls


def test_an_owner_of_any_number_is_gone(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    search(GRID, storage=f"sqlite:///{path}", trials=1)
    owner = f'"{study.HOST_NAME}:{"9" * 30}"'
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("update trial_user_attributes set value_json = ? where key = 'owner'", (owner,))
        database.execute("update trials set state = 'RUNNING'")
        database.commit()
    assert {t.state for t in search(GRID, storage=f"sqlite:///{path}", trials=1).trials} == {"complete"}


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", ["sweep.json", "space.toml", "results.csv"])
def test_a_damaged_sweep_folder_is_refused_or_written_anew(search: Search, tmp_path: Path, name: str) -> None:
    first = search(GRID)
    for seed in range(10):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "o", tmp_path / "copy")
        damage = damage_file(tmp_path / "copy" / name, np.random.default_rng(seed))
        damage.apply(tmp_path / "copy" / name)
        try:
            again = search(GRID, out=tmp_path / "copy", storage=f"journal:{tmp_path / 'o.log'}")
        except SightlineError as error:
            assert (error.exit_code, str(tmp_path / "copy") in str(error)) == (2, True), damage.description  # noqa: PT017
        else:
            assert settings_by_trial(again) == settings_by_trial(first), damage.description
