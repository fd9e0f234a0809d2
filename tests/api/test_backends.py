"""Runs of each task on each backend that is installed, and in each format; the suite itself runs on TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sightline as sl
from command import COLORS, draw_classes
from sightline.inference.exporters import EXPORTERS
from task_images import TASKS, assert_alike, write_task

pytestmark = pytest.mark.usefixtures("plain_figures")

OTHERS = tuple(pytest.param(name, marks=pytest.mark.installed) for name in ("jax", "torch"))
QUICK = {"multi_label": "jax"}  # the backend of each of these tasks; other combinations are slow
WHOLE = "segmentation"  # the task that is resumed and exported on each backend; `make test-slow` does so with all
SCRIPT = """
import json, sys
import numpy as np
import sightline as sl
from empty_figures import empty_figures
from sightline.errors import Interrupted

figures = empty_figures()
figures.__enter__()

class Stop(sl.Callback):
    def on_epoch_end(self, record):
        raise Interrupted("Stopped.")

data, image, formats, *settings = sys.argv[1:]
options = {"recipe": "quick", "set": settings, "progress": False, "epochs": 2}
run = sl.train(data, out="run", **options)
runs = [run]
model = sl.load("run", engine="keras")
exports, int8 = {}, 1.0
if formats:
    try:
        sl.train(data, out="stopped", callback=Stop(), **options)
    except Interrupted:
        runs.append(sl.Run("stopped").resume(progress=False))
    for name in formats.split(","):
        file = "onnx.onnx" if name == "onnx" else name
        exports[name] = model.export(file, to=name, progress=False).parity.max_difference
    int8 = model.export("int8.onnx", precision="int8", progress=False).parity.top1_agreement
np.save("probabilities.npy", model.predict_proba([image]))
evaluation = model.evaluate(progress=False)
print(json.dumps({
    "weights": [each.result.weights_sha256 for each in runs], "exports": exports, "int8": int8,
    "prediction": model.predict(image)[0].to_dict(), "accuracy": evaluation.accuracy,
    "own": run.result.to_dict()["test" if run.result.test else "validation"]["accuracy"],
}))
"""


def run_python(backend: str, folder: Path, *arguments: str) -> str:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", [pytest.param("tensorflow", marks=pytest.mark.slow), *OTHERS])
def test_a_run_on_each_backend(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)  # on JAX, the programs of a user
    data = draw_classes(tmp_path / "colors", COLORS, 40)  # learned in few steps
    train = ("train", str(data), "--model", "cifar10-simple", "--epochs", "3", "--out", "r", "--format", "json")
    settings = ("--set", "augment.rotation=5", "--set", "model.hidden_units=[64]")
    done = run_python(backend, tmp_path, "-m", "sightline", *train, *settings)
    accuracy = json.loads(done)["test"]["accuracy"]
    assert accuracy > 0.8
    assert sl.load(tmp_path / "r").evaluate(progress=False).accuracy == accuracy, "in another process"


def find_image(data: Path) -> Path:
    return min((data if data.is_dir() else data.parent).rglob("*.png"))


def list_combinations() -> list[Any]:
    """Each task on each backend, slow if not in `QUICK`; whether the run is also resumed and exported."""
    combinations = []
    for task, backend, is_whole in product(TASKS, ("tensorflow", "jax", "torch"), (False, True)):
        if task == WHOLE and not is_whole:
            continue
        is_slow = QUICK.get(task) != backend or is_whole != (task == WHOLE)
        marks = [pytest.mark.slow] * is_slow + [pytest.mark.installed] * (backend != "tensorflow")
        combinations.append(pytest.param(task, is_whole, backend, marks=marks))
    return combinations


@pytest.mark.parametrize(("task", "is_whole", "backend"), list_combinations())
def test_each_task_on_each_backend(task: str, is_whole: bool, backend: str, tmp_path: Path) -> None:
    """The files of a run predict alike on other backends, and a resumed one ends with the weights of a whole one."""
    data, settings = write_task(task, tmp_path / "data", 60)
    image = find_image(data)
    formats = [name for name in ("onnx", "openvino", "safetensors") if is_whole and has_packages(name)]
    mixing = [] if task == "segmentation" else ["augment.mixup=0.2"]
    arguments = [str(data), str(image), ",".join(formats), *settings, "augment.horizontal_flip=true", *mixing]
    done = json.loads(run_python(backend, tmp_path, "-c", SCRIPT, *arguments))
    assert (len(done["weights"]), len(set(done["weights"]))) == (1 + is_whole, 1)
    assert done["accuracy"] == pytest.approx(done["own"])
    assert list(done["exports"]) == formats
    assert max(done["exports"].values(), default=0) < 1e-4
    assert done["int8"] > 0.9
    expected = np.load(tmp_path / "probabilities.npy")
    for path in ("run/bundle", *("onnx.onnx" if name == "onnx" else name for name in formats)):
        np.testing.assert_allclose(sl.load(tmp_path / path).predict_proba([image]), expected, atol=1e-4)
    keras = sl.load(tmp_path / "run", engine="keras")  # on the backend of this process
    np.testing.assert_allclose(keras.predict_proba([image]), expected, atol=1e-4)
    assert_alike(keras.predict(image)[0].to_dict(), done["prediction"])


def has_packages(form: str) -> bool:
    return all(importlib.util.find_spec(package) for package in EXPORTERS[form].packages)


@pytest.fixture(scope="module", params=TASKS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[sl.Run, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    data, settings = write_task(request.param, folder / "data", 80)
    return sl.train(data, recipe="quick", epochs=1, set=settings, out=folder / "run", progress=False), find_image(data)


@pytest.mark.slow_with(
    "ordinal-onnx-int8", "ordinal-safetensors-float32", "hierarchical-safetensors-float32", "hierarchical-onnx-int8"
)
@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("onnx", "int8"), ("safetensors", "float32"),
        pytest.param("saved_model", "float32", marks=pytest.mark.slow),
        *(pytest.param("openvino", precision, marks=pytest.mark.installed) for precision in ("float32", "int8")),
        pytest.param("litert", "float32", marks=pytest.mark.installed),
    ],
)  # fmt: skip
def test_each_task_in_each_format(run: tuple[sl.Run, Path], form: str, precision: str, tmp_path: Path) -> None:
    """The exported model has the same fields in its predictions: expected grades, levels, label sets, mask quality."""
    if not has_packages(form):
        pytest.skip(f"the packages of {form} are not installed")
    classifier, image = run[0].classifier, run[1]
    file = tmp_path / ("model.onnx" if form == "onnx" else "model")
    parity = classifier.export(file, to=form, precision=precision, progress=False).parity
    assert parity.top1_agreement >= (1 if precision == "float32" else 0.9)
    exported = sl.load(file)
    assert (exported.classes, exported.task.name) == (classifier.classes, classifier.task.name)
    difference = compute_largest_difference(exported.predict_proba([image]), classifier.predict_proba([image]))
    assert difference < (1e-4 if precision == "float32" else 0.05)
    if precision == "float32":
        assert_alike(exported.predict(image)[0].to_dict(), classifier.predict(image)[0].to_dict())
    else:
        assert exported.predict(image)[0].to_dict().keys() == classifier.predict(image)[0].to_dict().keys()


def compute_largest_difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    return float(np.abs(first - second).max())
