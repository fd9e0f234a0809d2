"""Each command on a run of each task: right answers, or one sentence that says why not."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from typer.testing import CliRunner

import sightline as sl
from asgi_client import Answer, Request, call
from sightline.api.comparison import compare
from sightline.cli import app
from sightline.compress import candidates
from sightline.errors import ModelError
from sightline.inference.decoded_batch import predict_pixels
from sightline.inference.feature_log import FeatureLog
from sightline.inference.parity import TOLERANCES
from task_images import TASKS, assert_alike, write_task

pytestmark = pytest.mark.usefixtures("plain_figures")

FIELDS = {
    "ordinal": {"label", "expected_grade"}, "hierarchical": {"label", "node", "levels"}, "multi_label": {"labels"},
    "segmentation": {"masks", "areas", "quality"},
}  # fmt: skip
OUTPUTS = {
    "ordinal": {"expected_grade"}, "hierarchical": {"node", "node_probability"}, "multi_label": {"labels"},
    "segmentation": {"mask", "labels", "quality"},
}  # fmt: skip


class Trained(NamedTuple):
    task: str
    run: Path
    data: Path
    image: Path


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    data, settings = write_task(request.param, folder / "data", 160)
    settings = [*settings, "split.mode=stratified", "split.validation=0.35"]
    sl.train(data, recipe="quick", epochs=1, set=settings, out=folder / "run", progress=False)
    image = min((data if data.is_dir() else data.parent).rglob("*.png"))
    return Trained(request.param, folder / "run", data, image)


def succeed(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_embeddings_have_the_labels_of_the_task(trained: Trained, tmp_path: Path) -> None:
    embeddings = sl.load(trained.run).embed(trained.data, labeled=True)
    names = {name for label in embeddings.labels or () for name in (label or "").split(";") if name}
    assert names == set(sl.load(trained.run).classes)
    assert np.isfinite(embeddings.vectors).all()
    folder = trained.data if trained.data.is_dir() else trained.data.parent
    nearest = json.loads(succeed("similar", trained.run, trained.image, folder, "--format", "json").splitlines()[0])
    assert nearest["path"] != str(trained.image)


def test_heat_maps_are_of_classes(trained: Trained, tmp_path: Path) -> None:
    arguments = ("explain", trained.run, trained.image, "--out", tmp_path, "--format", "json")
    row = json.loads(succeed(*arguments))
    assert row["label"] in sl.load(trained.run).classes
    assert ("pixel_fraction" in row) == (trained.task == "segmentation")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_card_and_a_push_state_the_metrics_of_the_task(trained: Trained) -> None:
    card = succeed("model-card", trained.run)
    metric = {
        "ordinal": "| Quadratic weighted kappa |", "hierarchical": "| Hierarchical F1 |",
        "multi_label": "| Mean average precision |", "segmentation": "| Mean IoU |",
    }[trained.task]  # fmt: skip
    assert metric in card
    assert "nothing was sent" in succeed("push", trained.run, "hf:me/x", "--dry-run")


def test_two_runs_stand_side_by_side(trained: Trained, tmp_path: Path) -> None:
    other = shutil.copytree(trained.run, tmp_path / "other")
    comparison = compare([trained.run, other])
    metric = {
        "ordinal": "quadratic_weighted_kappa", "hierarchical": "hierarchical_f1",
        "multi_label": "mean_average_precision", "segmentation": "mean_iou",
    }[trained.task]  # fmt: skip
    first, second = comparison.rows
    assert first.metrics[metric] == second.metrics[metric] is not None
    (pair,) = comparison.paired
    if trained.task == "segmentation":
        assert pair.masks is not None
        assert (pair.masks.difference, pair.masks.p_value, pair.masks.difference_interval) == (0, 1, None)
        assert "no significant difference in mean IoU of an image" in pair.describe()
    else:
        assert pair.comparison is not None
        assert pair.comparison.difference == 0
    assert metric.replace("_", " ") in succeed("compare", trained.run, other).lower()


def test_a_server_answers_with_the_fields_of_the_task(trained: Trained) -> None:
    pytest.importorskip("starlette")
    content, model = trained.image.read_bytes(), sl.load(trained.run / "bundle")
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(content).decode()]}
    infer = {"inputs": [image | {"parameters": {"content_type": "base64"}}]}
    kind = {"content-type": "application/json"}
    own, protocol = exchange(
        model, Request("/predict", content, {"content-type": "image/png"}),
        Request("/v2/models/m/infer", json.dumps(infer).encode(), kind),
    )  # fmt: skip
    prediction = json.loads(own.body)
    assert prediction.keys() >= FIELDS[trained.task]
    outputs = {output["name"]: output["data"] for output in json.loads(protocol.body)["outputs"]}
    assert outputs.keys() >= {"probabilities", "label", *OUTPUTS[trained.task]}
    predicted = model.predict(trained.image)[0].to_dict()
    assert outputs["label"] == [predicted["label"]]
    for name in {"expected_grade", "node_probability", "quality"} & outputs.keys():
        assert outputs[name] == [pytest.approx(predicted[name] or 0)]
    if trained.task != "segmentation":
        assert_alike({name: prediction.get(name) for name in predicted}, predicted | {"path": None})


def exchange(model: sl.Classifier, *requests: Request) -> list[Answer]:
    from sightline.serve.app import create_app

    async def send() -> list[Answer]:
        application = create_app(model, max_bytes=1 << 20, name="m")
        async with application.router.lifespan_context(application):
            return [await call(application, request) for request in requests]

    return asyncio.run(send())


def test_a_log_is_watched(trained: Trained, tmp_path: Path) -> None:
    model = sl.load(trained.run / "bundle")
    if trained.task == "segmentation":
        pytest.skip("logs of masks are watched in tests/cli/test_mask_watch.py")
    log = FeatureLog(tmp_path / "log", model.feature_model_id, model.classes, 1 << 26)
    files = sorted(trained.image.parent.glob("*.png"))[:20]
    pixels = [model.preprocess.decode(file.read_bytes()) for file in files]
    list(predict_pixels(model.predictor, pixels, top=1, thresholds=None, log=log.add))
    log.close()
    for report in (model.watch(tmp_path / "log"), model.watch(tmp_path / "log", reference=trained.data)):
        assert report.count == len(files)
        assert {image.label for image in report.label_first} <= set(model.classes)
        assert (report.accuracy is None) == (trained.task == "multi_label")
        assert (report.micro_f1 is None) == (trained.task != "multi_label")


def test_a_task_whose_models_take_no_new_class_says_what_to_do(trained: Trained, tmp_path: Path) -> None:
    if trained.task == "multi_label":
        pytest.skip("its models take one, see tests/cli/test_added_label.py")
    examples = "masks that have" if trained.task == "segmentation" else "images of"
    with pytest.raises(ModelError, match=rf"{trained.task}, .*: train again with {examples} the new class"):
        sl.load(trained.run).add_class("new", [trained.image], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class StopAfter(sl.Callback):
    """Stops a search once it has written a candidate, as Ctrl-C does."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_message(self, text: str) -> None:
        if text.startswith(f"{self.name}: "):
            raise KeyboardInterrupt


@pytest.mark.slow_with("segmentation", "ordinal", "hierarchical")
def test_a_smaller_model_is_chosen_by_the_metric_of_the_task(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "LATENCY_SECONDS", 0.0)
    model, out = sl.load(trained.run), tmp_path / "search"
    arguments = ("compress", trained.run, "--out", out, "--methods", "int8,float16", "--max-drop", "100")
    with pytest.raises(KeyboardInterrupt):
        model.compress(out=out, methods="int8,float16", max_drop=100, callback=StopAfter("original-float16"))
    record = out / "candidates" / "original-float16" / "record.json"
    before = record.stat().st_mtime_ns
    printed = succeed(*arguments)
    assert record.stat().st_mtime_ns == before, "it was read, not built again"

    headline, score = {
        "multi_label": ("mean_average_precision", "example_f1"), "segmentation": ("mean_iou", "image_iou"),
    }.get(trained.task, ("accuracy", ""))  # fmt: skip
    payload = json.loads((out / "pareto_front.json").read_text(encoding="utf-8"))
    original, half, int8 = payload["candidates"]
    own = json.loads((trained.run / "bundle" / "manifest.json").read_text(encoding="utf-8"))["metrics"]["validation"]
    assert original["accuracy"] == pytest.approx(own["accuracy"])
    assert payload["best"] == min(payload["candidates"], key=lambda row: row["bytes"])["name"] != "original"
    assert payload["comparison"]["split"] == ("validation" if trained.task == "segmentation" else "test")
    assert headline.replace("_", " ").replace("iou", "IoU") in printed
    if score:
        assert original["metrics"][headline] == pytest.approx(own[headline]["value"], abs=1e-6)
        assert {half["scores"]["metric"], int8["scores"]["metric"], payload["comparison"]["metric"]} == {score}
        assert "permutation test p = " in printed
    else:
        assert "scores" not in original
        assert "McNemar p = " in printed

    small, copy = (sl.load(path) for path in (out / "best", out / "candidates" / "original-float16" / "bundle"))
    pixels = model.labeled_images().load("validation").subset.take(slice(0, 40))
    expected = model.predictor.probabilities(pixels)
    assert model.task.compare(expected, copy.predictor.probabilities(pixels)).is_within(TOLERANCES["float16"])
    assert model.task.compare(expected, small.predictor.probabilities(pixels)).top1_agreement > 0.9
    manifest = json.loads((out / "best" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["metrics"]["validation"].keys() == own.keys()
    assert (small.thresholds is None) == (model.thresholds is None)
    assert small.predict(trained.image)[0].to_dict().keys() == model.predict(trained.image)[0].to_dict().keys()

    impossible = CliRunner().invoke(app, [*map(str, arguments), "--max-size", "1KB"])
    assert impossible.exit_code == 1, impossible.output
    assert "No candidate meets the budget. Nearest: " in impossible.stdout
    assert not (out / "best").exists()
