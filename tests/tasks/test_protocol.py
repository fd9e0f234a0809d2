"""The registry of tasks, and where the name of a task is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import backend, jsonio, metrics
from sightline.api.loading import load
from sightline.api.training import train_run
from sightline.config import resolve_config
from sightline.data.types import Subset
from sightline.errors import UsageError
from sightline.inference.manifest import Manifest
from sightline.preprocessing import PreprocessingSpec
from sightline.tasks.protocol import BUILT_IN, TASKS, find_task, register_task
from sightline.tasks.single_label import SingleLabel


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_task_is_found_by_its_name(name: str) -> None:
    assert find_task(name).name == name
    assert find_task(name) is TASKS[name]


def test_an_unknown_task_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^There is no task 'multi-label'\. Did you mean 'multi_label'\?$"):
        train_run(tmp_path / "missing", set=["model.task=multi-label"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_name_is_registered_once() -> None:
    find_task("single_label")
    with pytest.raises(UsageError, match="There is already a task 'single_label'"):
        register_task("single_label")(SingleLabel)


@pytest.mark.usefixtures("plain_figures")
def test_a_run_and_its_bundle_record_the_task(tmp_path: Path) -> None:
    settings = ["train.epochs=1", "train.track=[]", "model.name=cifar10-simple", "model.hidden_units=[64]"]
    train_run("beans:24@32", recipe="quick", set=settings, out=tmp_path / "run")
    assert 'task = "single_label"' in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert jsonio.read_object(tmp_path / "run" / "bundle" / "manifest.json")["task"] == "single_label"
    assert load(tmp_path / "run" / "bundle").task is find_task("single_label")


def test_a_manifest_without_a_task_is_of_single_label_classification() -> None:
    values = Manifest("net", ("a", "b"), PreprocessingSpec(8, 8)).to_dict()
    assert values.pop("task") == "single_label"
    assert Manifest.from_dict(values).task == "single_label"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_accuracy_of_a_step_is_a_metric_whose_variables_exist(name: str) -> None:
    """A function, such as that of masks was, makes TensorFlow trace the first step twice."""
    labels: NDArray[Any] = np.arange(4, dtype=np.int32) % 3
    if name == "segmentation":
        labels = np.zeros((4, 8, 8), np.uint8)
    elif name in {"multi_label", "hierarchical"}:  # of nodes too
        labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.uint8)
    train = Subset(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), labels, ("",) * 4)
    objective = find_task(name).make_objective(resolve_config(), train, 3, None)
    accuracy = objective.build_accuracy()
    assert isinstance(accuracy, backend.keras().metrics.Metric)
    assert (accuracy.name, len(accuracy.variables)) == ("categorical_accuracy", 2)


def test_the_gradient_is_that_of_the_loss() -> None:
    task, rng = find_task("single_label"), np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(0, 3, 5).astype(np.int32)
    gradient = task.differentiate_loss(logits, labels)
    step = 1e-6
    for k in range(3):
        moved = logits.copy()
        moved[:, k] += step
        change = (task.differentiate_loss(moved, labels).losses - gradient.losses).sum(1) / step
        np.testing.assert_allclose(change, gradient.residuals[:, k], atol=1e-5)
    loss, accuracy, _ = task.score(logits.astype(np.float32), labels)
    assert gradient.losses.sum(1).mean() == pytest.approx(loss, rel=1e-6)
    assert gradient.correct.mean() == accuracy
    np.testing.assert_allclose(task.activate(logits.astype(np.float32)), metrics.softmax(logits.astype(np.float32)))
