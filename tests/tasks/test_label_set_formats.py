"""A model of several labels in every format and precision of the registry: the same labels, predicted and served."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from asgi_client import Request, call
from sightline.inference.exporters import EXPORTERS
from task_images import assert_alike, write_label_sets, write_task

pytestmark = pytest.mark.usefixtures("plain_figures")

MARKS = {"openvino": pytest.mark.installed, "litert": pytest.mark.installed, "saved_model": pytest.mark.slow}
FORMATS = [
    pytest.param(form, precision, marks=MARKS.get(form, ()))
    for form in ("onnx", "bundle", "openvino", "litert", "saved_model", "safetensors")
    for precision in EXPORTERS[form].precisions
]
TOLERANCES = {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05, "int8": 0.1}  # of a probability
COUNT = 24


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data, settings = write_task("multi_label", folder / "data", 120)
    settings = [*settings, "split.mode=stratified", "evaluation.target_fnr=0.3", "evaluation.target_precision=0.6"]
    sl.train(data, recipe="quick", epochs=8, seed=1, set=settings, out=folder / "run", progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = write_label_sets(tmp_path_factory.mktemp("new") / "images", COUNT, seed=7).parent
    return [folder / f"{i}.png" for i in range(COUNT)]


def test_every_format_is_tested() -> None:
    assert {parameter.values[0] for parameter in FORMATS} == {
        name for name, exporter in EXPORTERS.items() if type(exporter).__module__.startswith("sightline.")
    }


@pytest.mark.parametrize(("form", "precision"), FORMATS)
def test_a_format_predicts_and_serves_the_same_labels(
    run: Path, images: list[Path], tmp_path: Path, form: str, precision: str
) -> None:
    for package in EXPORTERS[form].packages:
        pytest.importorskip(package)
    model = sl.load(run / "bundle")
    out = tmp_path / f"model{EXPORTERS[form].suffixes[-1]}"
    exported = sl.load(run).export(out, to=form, precision=precision, progress=False)
    assert exported.accepted
    other = sl.load(out)
    assert (other.task.name, other.classes) == ("multi_label", model.classes)
    assert model.thresholds is not None
    assert other.thresholds is not None
    expected, probabilities = model.predict_proba(images), other.predict_proba(images)
    tolerance = TOLERANCES[precision]
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)

    predictions, others = model.predict(images), other.predict(images)
    assert len({prediction.label for prediction in predictions}) > 2, "a model that tells what an image shows"
    if precision == "float32":
        assert other.thresholds == model.thresholds
        assert_alike([p.to_dict() for p in others], [p.to_dict() for p in predictions])
    cuts = model.thresholds.labels
    assert cuts is not None
    for row, prediction, changed in zip(expected, predictions, others, strict=True):
        assert prediction.labels is not None
        assert changed.labels is not None
        limits = {name: np.inf if cut is None else cut for name, cut in cuts.items()}  # None: never predicted
        clear = {name for name, p in zip(model.classes, row, strict=True) if abs(p - limits[name]) > tolerance}
        assert clear & set(prediction.labels) == clear & set(changed.labels)
        assert (prediction.undecided is None, prediction.label_set is None) == (
            changed.undecided is None, changed.label_set is None,
        )  # fmt: skip

    served = serve(other, images[:6])
    for answer, prediction in zip(served, others, strict=False):
        content = prediction.to_dict() | {"path": None}
        assert_alike({name: answer.get(name) for name in content}, content)


def serve(model: sl.Classifier, images: list[Path]) -> list[dict[str, object]]:
    """Return what a server of the model answers to each image."""
    pytest.importorskip("starlette")
    from sightline.serve.app import create_app

    async def send() -> list[str]:
        application = create_app(model, max_bytes=1 << 20, name="m")
        async with application.router.lifespan_context(application):
            kind = {"content-type": "image/png"}
            answers = [await call(application, Request("/predict", p.read_bytes(), kind)) for p in images]
        assert [answer.status for answer in answers] == [200] * len(images)
        return [answer.body for answer in answers]

    return list(map(json.loads, asyncio.run(send())))
