"""A loaded model can be copied, pickled and sent to other processes, whatever its format."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import Command
from sightline import Classifier, load
from sightline.errors import ModelError
from sightline.inference import bundle
from sightline.inference.exporters import EXPORTERS
from sightline.inference.results import Thresholds
from sightline.runs.directory import RunDirectory

FOLDER_FORMATS = tuple(name for name, exporter in EXPORTERS.items() if not exporter.is_bundle)
INSTALLED = (pytest.mark.installed, pytest.mark.slow)
FOLDER_PARAMETERS = [
    pytest.param(name, marks=INSTALLED if name in {"openvino", "litert"} else ()) for name in FOLDER_FORMATS
]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


def unpickle(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301  # pickled by this test


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: unpickle(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "twice": lambda model: copy.deepcopy(unpickle(pickle.dumps(model))),
}


@pytest.fixture(scope="module")
def stored(trained: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the path of the model in a given format."""
    from sightline.api.export import export_model

    folder = tmp_path_factory.mktemp("stored")
    run = Path(shutil.copytree(trained[0], folder / "run"))

    def path_of(name: str) -> Path:
        if name in {"openvino", "litert"}:
            pytest.importorskip({"openvino": "openvino", "litert": "ai_edge_litert"}[name])
        if name in FOLDER_FORMATS and not (folder / name).exists():
            export_model(run, name, out=folder / name)
        if name == "zip" and not (folder / "b.zip").exists():
            bundle.write_zip(bundle.read(run / "bundle"), folder / "b.zip")
        places = {"bundle": run / "bundle", "zip": folder / "b.zip", "file": run / "bundle" / "model.onnx"}
        return places.get(name, folder / name)

    return path_of


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["run", "bundle", "zip", "file", "mirrored", "keras", *FOLDER_PARAMETERS])
def test_a_copy_predicts_bit_for_bit(stored: Callable[[str], Path], form: str, way: str) -> None:
    if form == "mirrored":
        model = load(stored("run")).with_tta()
    else:
        model = load(stored("run"), engine="keras") if form == "keras" else load(stored(form))
    other = WAYS[way](model)
    assert isinstance(other, Classifier)
    assert (other.classes, other.preprocess, other.manifest) == (model.classes, model.preprocess, model.manifest)
    one, two = model.predictor.outputs(PIXELS), other.predictor.outputs(PIXELS)
    for name in ("probabilities", "logits", "features"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert model.predict(list(PIXELS)) == other.predict(list(PIXELS))


@pytest.mark.parametrize("form", ["run", "saved_model"])
def test_a_copy_needs_no_file_of_the_model(
    stored: Callable[[str], Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy predicts after the run is deleted, with the thresholds of the run."""
    place = Path(shutil.copytree(stored(form), tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    if form == "run":
        RunDirectory(place).write_thresholds(Thresholds(confidence=0.4, target_precision=0.9, count=10))
    model = load("model")
    predictions = model.predict(list(PIXELS))
    data = pickle.dumps(model)
    monkeypatch.chdir("/")
    if model.run is not None:
        assert unpickle(data).run.info == model.run.__class__(place).info, "found from any working directory"
    shutil.rmtree(place)
    assert unpickle(data).predict(list(PIXELS)) == predictions
    assert unpickle(data).with_tta().thresholds == unpickle(data).thresholds
    assert (predictions[0].decision is not None) == (form == "run")


@pytest.mark.parametrize(
    "form",
    ["run", *(pytest.param(name, marks=pytest.mark.slow) for name in ("keras", "saved_model"))],  # TensorFlow, twice
)
def test_new_processes_predict_alike(stored: Callable[[str], Path], form: str, colors: Path) -> None:
    model = load(stored("run"), engine="keras") if form == "keras" else load(stored(form))
    paths = [str(path) for path in sorted((colors / "red").iterdir())[:4]]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        predictions = list(pool.map(model.predict, [paths, paths[::-1]]))
    assert predictions[0] == model.predict(paths)
    assert predictions[1] == model.predict(paths[::-1])


@pytest.mark.parametrize("form", ["run", *FOLDER_PARAMETERS])
def test_threads_may_use_one_copy(stored: Callable[[str], Path], form: str) -> None:
    """All threads start together, so that they load and use the copy concurrently."""
    model = load(stored(form))
    shared, ready = copy.deepcopy(model).predictor, threading.Barrier(4)

    def ask(number: int) -> Any:
        ready.wait()
        return [shared.probabilities(np.roll(PIXELS, number, axis=1)) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        probabilities = list(pool.map(ask, range(4)))
    for number, several in enumerate(probabilities):
        expected = model.predictor.probabilities(np.roll(PIXELS, number, axis=1))
        for array in several:
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("form", ["run", "keras", "bundle", "saved_model"])
def test_a_loaded_model_predicts_after_its_files_have_moved(
    stored: Callable[[str], Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(shutil.copytree(stored("run" if form == "keras" else form), tmp_path / "model"))
    monkeypatch.chdir(tmp_path)
    model = load("model", engine="keras" if form == "keras" else "onnx")
    place.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    again = load(tmp_path / "moved", engine="keras" if form == "keras" else "onnx")
    assert model.predict(list(PIXELS)) == again.predict(list(PIXELS))
    assert model.embed(list(PIXELS)).model == again.feature_model_id


def test_what_comes_out_of_a_pickle_is_checked_as_a_file_is(stored: Callable[[str], Path]) -> None:
    """A graph with unknown operations is rejected from a pickle too."""
    model = load(stored("bundle"))
    data = pickle.dumps(model)
    assert data.count(b"Softmax") >= 1
    with pytest.raises(ModelError, match="Softmix"):
        unpickle(data.replace(b"Softmax", b"Softmix"))


def test_thresholds_of_an_export_are_kept(stored: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored("saved_model"), tmp_path / "model"))
    model = load(folder)
    assert model.thresholds is None
    thresholds = Thresholds(confidence=0.5, target_precision=0.9, count=10)
    model.save_thresholds(thresholds)
    again = load(folder)
    assert again.thresholds == model.thresholds == thresholds
    assert replace(again.manifest, thresholds=None) == load(stored("saved_model")).manifest


def test_thresholds_are_read_once_and_replaced_when_saved(stored: Callable[[str], Path], tmp_path: Path) -> None:
    run = RunDirectory(Path(shutil.copytree(stored("run"), tmp_path / "run")))
    run.write_thresholds(Thresholds(confidence=0.4, target_precision=0.9, count=10))
    model = load(run.path)
    assert model.run is not None
    (run.path / "thresholds.json").write_text("damaged after it was loaded", encoding="utf-8")
    predictions = model.predict(list(PIXELS))
    assert all(prediction.decision is not None for prediction in predictions)
    assert model.predict(list(PIXELS)) == predictions
    assert list(model.iter_predictions(list(PIXELS))) == predictions
    second = Thresholds(confidence=0.999999, target_precision=0.99, count=10)
    model.save_thresholds(second)
    assert model.with_tta().thresholds == model.thresholds == second == load(model.run.path).thresholds


@pytest.mark.parametrize("form", FOLDER_PARAMETERS)
def test_every_command_takes_an_export(
    sightline: Command, stored: Callable[[str], Path], form: str, colors: Path, tmp_path: Path
) -> None:
    folder, run = stored(form), stored("run")
    images = sorted((colors / "red").iterdir())[:3]
    result = sightline("predict", folder, *images, "--format", "json")
    assert result.code == 0
    for one, two in zip(result.lines, sightline("predict", run, *images, "--format", "json").lines, strict=True):
        assert (one["path"], one["label"]) == (two["path"], two["label"])
        assert one["probability"] == pytest.approx(two["probability"], abs=1e-4)
    payload = sightline("evaluate", folder, colors, "--format", "json").json
    assert payload["count"] == 120
    assert (
        payload["accuracy"]
        == sightline("evaluate", run, colors, "--include-training", "--format", "json").json["accuracy"]
    )
    response = sightline("explain", folder, images[0], "--out", tmp_path / "figures", "--format", "json")
    assert response.code == 0
    assert response.lines[0]["method"] == ("gradcam" if form == "safetensors" else "occlusion")  # it has gradients
    assert Path(response.lines[0]["figure"]).is_file()
    models = {"openvino": "model.xml", "litert": "model.tflite", "saved_model": "saved_model"}
    model = models.get(form, f"model.{form}")
    assert sightline("predict", folder / model, images[0]).code == 0, "its model file works like the folder"
    again = sightline("export", folder, "--out", tmp_path / "x", "--parity", colors)
    assert again.code == 2
    assert "give its run" in " ".join(again.err.split())
    with pytest.raises(ModelError, match="contains no Keras model"):
        load(folder, engine="keras")


@pytest.mark.parametrize(
    "form",
    [
        "run",
        pytest.param("saved_model", marks=pytest.mark.slow),
        *(pytest.param(name, marks=INSTALLED) for name in ("litert", "openvino")),
    ],
)
def test_only_predictions_are_printed(stored: Callable[[str], Path], form: str, colors: Path) -> None:
    """The C++ runtimes would otherwise log their build options."""
    image = next((colors / "red").iterdir())
    command = [sys.executable, "-m", "sightline", "predict", str(stored(form)), str(image), "--format", "json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "KERAS_BACKEND"))}
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert len(completed.stdout.splitlines()) == 1
