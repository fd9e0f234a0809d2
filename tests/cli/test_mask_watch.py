"""`sightline watch` with a model of masks: drift, the estimated IoU, and the masks to look at first."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import Command
from drawn_scenes import draw_scene, draw_scenes, encode
from sightline.api.reference_sample import load_sample
from sightline.errors import DataError, ModelError
from sightline.evaluation.segmentation import SegmentationResult
from sightline.evaluation.segmentation_metrics import compute_image_iou
from sightline.inference.decoded_batch import predict_pixels
from sightline.inference.feature_log import FeatureLog

pytestmark = pytest.mark.usefixtures("plain_figures")

VALIDATION = 48
NEW = range(2000, 2064)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    scenes = draw_scenes(tmp_path_factory.mktemp("scenes"), 32, VALIDATION)
    settings = {"model.task": "segmentation", "device.threads": 1}
    out = tmp_path_factory.mktemp("run") / "a"
    return sl.train(scenes, recipe="fcn", epochs=3, out=out, progress=False, set=settings)


def write_log(classifier: sl.Classifier, path: Path, images: list[np.ndarray]) -> Path:
    log = FeatureLog(path, classifier.feature_model_id, classifier.classes, 1 << 24)
    for start in range(0, len(images), 16):
        predict_pixels(
            classifier.predictor, [classifier.preprocess.apply(image) for image in images[start : start + 16]], top=1,
            thresholds=None, interpret=classifier.task.interpret, log=log.add,
        )  # fmt: skip
    log.close()
    return path


@pytest.fixture(scope="module")
def quiet(run: sl.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = [draw_scene(number)[0] for number in NEW]
    return write_log(sl.load(run.path / "bundle"), tmp_path_factory.mktemp("log") / "quiet.log", images)


def test_scenes_like_those_of_validation_are_quiet_and_their_iou_is_estimated(
    run: sl.Run, quiet: Path, tmp_path: Path
) -> None:
    model = sl.load(run.path / "bundle")
    sample = load_sample(model)
    assert len(sample.ious) == len(sample.confidences) == VALIDATION
    report = model.watch(quiet, top=5, progress=False)
    assert report.drift.alarm is None
    assert report.accuracy is None
    estimate = report.mask_iou
    assert estimate is not None
    assert estimate.count == len(NEW)
    validation = run.classifier.evaluate(split="validation", progress=False).result
    assert isinstance(validation, SegmentationResult)
    assert estimate.validation_iou == pytest.approx(compute_image_iou(validation.confusions).mean(), abs=1e-4)
    folder = tmp_path / "new"
    for number in NEW:
        for kind, pixels in zip(("images", "masks"), draw_scene(number), strict=True):
            path = folder / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    (folder / "classes.csv").write_text("value,name\n0,ground\n1,disk\n2,bar\n9,void\n")
    true = model.evaluate(folder, progress=False).result
    assert isinstance(true, SegmentationResult)
    assert estimate.iou.interval is not None
    low, high = estimate.iou.interval
    assert low - 0.02 < compute_image_iou(true.confusions).mean() < high + 0.02
    assert report.label_first[0].quality == pytest.approx(true.quality.min(), abs=0.2)
    assert list(report.to_frame().columns) == ["rank", "id", "time", "label", "probability", "quality"]


def test_other_images_are_an_alarm_in_every_format(run: sl.Run, sightline: Command, tmp_path: Path) -> None:
    model = sl.load(run.path)
    images = [draw_scene(number)[0] for number in NEW]
    log = write_log(model, tmp_path / "drifted.log", images[:8] + [255 - image for image in images])
    arguments = ("watch", log, run.path, "--top", 3, "--format")
    text, dumped, table = (sightline(*arguments, form) for form in ("text", "json", "csv"))
    assert (text.code, dumped.code, table.code) == (1, 1, 1)
    values = json.loads(dumped.out)
    assert values["drifted"]
    assert values["accuracy"] is None
    assert values["mask_iou"]["count"] == len(NEW) + 8 - values["drift"]["start"] + 1
    assert any("has drifted" in caveat for caveat in values["mask_iou"]["caveats"])
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert [row["id"] for row in rows] == [image["id"] for image in values["label_first"]]
    assert [float(row["quality"]) for row in rows] == pytest.approx([i["quality"] for i in values["label_first"]])
    lines = [line.split("  ")[0] for line in text.out.splitlines()]
    assert lines[:3] == ["images", "drift", "mask IoU"]
    assert "quality" in text.out


def test_a_machine_that_serves_watches_without_the_packages_of_training(
    run: sl.Run, quiet: Path, sightline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("keras", "matplotlib", "onnx", "sklearn", "sklearn.isotonic", "tomlkit"):
        monkeypatch.setitem(sys.modules, package, None)
    result = sightline("watch", quiet, run.path / "bundle")
    assert (result.code, result.err) == (0, "")
    assert "mask IoU" in result.out


def test_images_with_masks_stand_in_for_a_sample(run: sl.Run, quiet: Path, tmp_path: Path) -> None:
    lone = sl.load(run.path / "bundle" / "model.onnx")
    with pytest.raises(ModelError, match="has no sample of its validation images: give labeled images"):
        lone.watch(quiet, progress=False)
    scenes = draw_scenes(tmp_path / "scenes", 24, 8)
    report = sl.load(run.path / "bundle").watch(quiet, reference=scenes, progress=False)
    assert report.drift.alarm is None
    assert report.mask_iou is not None
    with pytest.raises(DataError, match="The reference has 4 readable images"):
        sl.load(run.path / "bundle").watch(quiet, reference=draw_scenes(tmp_path / "few", 4, 0), progress=False)


def test_a_log_without_qualities_is_not_one_of_masks(run: sl.Run, quiet: Path, tmp_path: Path) -> None:
    lines = quiet.read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines[1:]]
    for entry in entries:
        del entry["quality"]
    path = tmp_path / "plain.log"
    path.write_text("\n".join([lines[0], *map(json.dumps, entries)]) + "\n", "utf-8")
    with pytest.raises(DataError, match="does not record the quality of masks"):
        sl.load(run.path).watch(path, progress=False)
