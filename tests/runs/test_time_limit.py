"""What a run with a time limit records of its time, and says of more of it, by its epochs alone."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from new_runs import create_run
from sightline.callbacks import EpochRecord
from sightline.config import StageConfig, recipes, resolve_config
from sightline.runs.failures import record_interruption
from sightline.runs.time_limit import describe_outlook, keep_planned_views, open_budget
from sightline.training.result import StagePlan, TimeRecord

TRANSFER = resolve_config(recipes.load("transfer"), assignments=["train.early_stopping.monitor=val_accuracy"])
EXTENSION = {"from": 2, "to": 3, "stage_epochs_before": 2, "stage_epochs": 3}
QUICK = resolve_config(recipes.load("quick"))  # its stage is called training, and it monitors the loss


def make_history(*accuracies: float | None, stages: tuple[str, ...] = ("head",)) -> list[EpochRecord]:
    """Return epochs of these validation accuracies, in these stages; all others are in the last."""
    names = [*stages, *stages[-1:] * len(accuracies)]
    return [
        EpochRecord(i + 1, names[i], 0.5, 0.8, None if a is None else 1 - a, a, 0.1, 9.0, 30.0)
        for i, a in enumerate(accuracies)
    ]


def make_record(configured: int, epochs: int, seconds: float | None = 60.0, number: str = "1") -> TimeRecord:
    return TimeRecord(stages={number: StagePlan(configured, epochs, seconds, 1.0, 1)})


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (make_record(4, 0), "fine-tune was not reached. Another ten minutes would allow 4 of its 4 epochs; what they"),
        (make_record(40, 0), "would allow 10 of its 40 epochs; what they would bring is unknown, because none has run"),
        (make_record(4, 0, None), "how many of its 4 epochs would fit, and what they would bring, is unknown"),
        (make_record(4, 0, 900), "would not be enough for one more: it takes about 15m."),
    ],
)
def test_nothing_is_promised_of_a_stage_that_was_not_reached(record: TimeRecord, expected: str) -> None:
    history = make_history(0.7)
    assert expected in describe_outlook(record, TRANSFER, history, history[0])


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        (False, "The stage fine-tune was not reached. Another ten minutes would allow 4"),
        (True, "would probably bring little: the last 2 epochs did not improve on epoch 2"),
    ],
)
def test_a_stage_that_early_stopping_ended_is_over(stopped: bool, expected: str) -> None:
    plans = {"0": StagePlan(20, 20, 60.0, 1.0, 1), "1": StagePlan(4, 0, 60.0, 1.0, 1)}
    record = TimeRecord(stages=plans, stopped=stopped)
    history = make_history(0.6, 0.7, 0.65, 0.68)
    assert expected in describe_outlook(record, TRANSFER, history, history[1])


@pytest.mark.parametrize(
    ("record", "accuracies", "best", "expected"),
    [
        (make_record(8, 2), (0.7, 0.72, 0.75), 3, "allow 6 more epochs of fine-tune and probably help, though how"),
        (make_record(8, 2), (0.7, 0.72, 0.75), 3, "was still improving, from 0.7200 to 0.7500 in the last epoch."),
        (make_record(8, 2), (0.7, 0.6, 0.65), 1, "probably bring little: the last 2 epochs did not improve on"),
        (make_record(2, 2), (0.7, 0.8, 0.75), 2, "probably bring little: the last epoch did not improve on epoch 2."),
        (make_record(2, 2), (0.7, 0.7, 0.9), 3, "more --epochs would probably help, though how much is unknown."),
        (make_record(8, 2), (None, None, None), 3, "is unknown: there is no validation split to measure it on."),
    ],
)  # fmt: skip
def test_the_trend_of_the_last_epochs_is_said(
    record: TimeRecord, accuracies: tuple[float | None, ...], best: int, expected: str
) -> None:
    history = make_history(*accuracies, stages=("head", "fine-tune"))
    assert expected in describe_outlook(record, TRANSFER, history, history[best - 1])


def test_the_next_effort_is_an_option_where_there_is_one() -> None:
    history = make_history(0.7, 0.7, 0.9, stages=("head", "fine-tune"))
    for effort, option in (("balanced", "--effort best or more --epochs"), ("best", "last epoch: more --epochs")):
        config = resolve_config(recipes.load("transfer"), assignments=[f"train.effort={effort}"])
        text = describe_outlook(make_record(2, 2), config, history, history[-1])
        assert f"{option} would probably help" in text


def test_a_last_epoch_that_ended_early_did_not_fit() -> None:
    record, history = make_record(2, 2), make_history(0.7, 0.7, 0.9, stages=("head", "fine-tune"))
    record.stopped = True
    text = describe_outlook(record, TRANSFER, history, history[-1])
    assert text.startswith("The limit ended the last epoch early, and the validation accuracy was still improving")


def test_it_follows_the_metric_that_selects_the_epoch() -> None:
    history = make_history(0.5, 0.6, stages=("training",))
    text = describe_outlook(make_record(20, 2, number="0"), QUICK, history, history[-1])
    assert "would allow 10 more epochs of training" in text
    assert "the validation loss was still improving, from 0.5000 to 0.4000 in the last epoch" in text


def test_nothing_is_better_than_perfect() -> None:
    history = make_history(1.0)
    for monitor in ("val_accuracy", "val_calibrated_loss"):
        config = resolve_config(recipes.load("transfer"), assignments=[f"train.early_stopping.monitor={monitor}"])
        outlook = describe_outlook(TimeRecord(), config, history, history[0])
        assert "would bring little: every validation image" in outlook


def test_one_epoch_has_no_trend() -> None:
    fast = resolve_config(recipes.load("transfer"), assignments=["train.effort=fast"])
    history = make_history(0.7)
    text = describe_outlook(TimeRecord(), fast, history, history[0])
    assert "; --effort balanced would fine-tune the network. What more time would bring is unknown: one epoch" in text
    head = make_history(0.7, stages=(TRANSFER.train.stages[0].name,))
    text = describe_outlook(TimeRecord(), TRANSFER, head, head[0])
    assert "the stage fine-tune was left out because there are too few validation images. What more" in text
    text = describe_outlook(make_record(20, 1, number="0"), QUICK, make_history(0.7, stages=("training",)), history[0])
    assert text.endswith("What they would bring is unknown: one epoch shows no trend.")


@pytest.mark.parametrize(
    ("info", "views"),
    [
        ({}, [1, 8, 8]),
        ({"time": {"stages": {"1": [10, 5, 4.0, 0.0, 3]}}}, [1, 8, 8]),
        ({"extensions": [EXTENSION]}, [1, 8, 8]),
        ({"extensions": [EXTENSION], "time": {"stages": {"1": [10, 5, 4.0, 0.0, 3]}}}, [1, 3, 8]),
        ({"extensions": [EXTENSION], "time": {"stages": {"2": [10, 0, None, 0.0, 1]}}}, [1, 8, 8]),
    ],
)
def test_an_extension_keeps_the_views_of_the_stages_that_were_planned(
    info: dict[str, Any], views: list[int], tmp_path: Path
) -> None:
    """Those of an older run, and of a stage without an epoch, are the ones configured."""
    names = [field.name for field in fields(StagePlan)]
    for number, values in info.get("time", {}).get("stages", {}).items():
        info["time"]["stages"][number] = dict(zip(names, values, strict=True))
    run = create_run(tmp_path / "r", **info)
    stages = (StageConfig("head", unfreeze=0), StageConfig("deep", views=8), StageConfig("deeper", views=8))
    config = replace(TRANSFER, train=replace(TRANSFER.train, stages=stages))
    extended = keep_planned_views(run, config)
    assert [stage.views for stage in extended.train.stages] == views
    assert replace(extended, train=config.train) == config


def test_a_session_that_sigterm_ends_counts(tmp_path: Path) -> None:
    run = create_run(tmp_path / "my run")
    config = replace(TRANSFER, train=replace(TRANSFER.train, time_limit="10m"))
    for seconds, elapsed in ((90, 90), (10, 100)):
        budget = open_budget(run, config, time.perf_counter() - seconds)
        assert budget is not None
        assert f"`sightline resume '{run.path}'` continues" in record_interruption(run, budget)
        assert elapsed <= run.info["time"]["elapsed"] < elapsed + 9
    run.update(extensions=[EXTENSION])
    assert open_budget(run, config, time.perf_counter()) is None
