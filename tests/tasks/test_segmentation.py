"""A model of masks from its training to its files: drawn scenes of disks and bars, at 32 pixels."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # it has no types
import pytest
from PIL import Image

import sightline
from drawn_scenes import SIDE, draw_scene, draw_scenes, encode
from sightline import process
from sightline.api.comparison import describe_run
from sightline.api.masks import choose_name, write_masks
from sightline.cli import main
from sightline.cli.train import print_result
from sightline.compress import candidates, search
from sightline.data.masks import VOID
from sightline.data.types import LabeledSubset, Subset
from sightline.errors import DataError, ModelError, OutputError, SightlineError, UsageError
from sightline.evaluation.mask_outputs import collect_mask_outputs
from sightline.evaluation.segmentation import (
    SegmentationReport,
    SegmentationResult,
    build_report,
    list_image_metrics,
)
from sightline.inference.exporters import EXPORTERS
from sightline.inference.inputs import InputItem
from sightline.inference.mask_colors import make_palette, simulate_vision
from sightline.inference.mask_quality import estimate_iou
from sightline.inference.masks import (
    encode_mask,
    overlay_image,
    overlay_mask,
    predict_masks,
    restore_size,
)
from sightline.inference.parity import TOLERANCES
from sightline.inference.predictor import Outputs
from sightline.inference.results import Thresholds
from sightline.inference.stream import predict
from sightline.preprocessing import PreprocessingSpec
from sightline.preprocessing.spec import Resize
from sightline.tasks.protocol import EvaluationInputs, find_task
from sightline.training.checkpoints import load_latest

pytestmark = pytest.mark.usefixtures("plain_figures")

SETTINGS = {"model.task": "segmentation", "device.threads": 1}


class FakeMasks:
    """A model of two classes with the same probabilities for every pixel."""

    classes = ("a", "b")
    preprocess = PreprocessingSpec(20, 20)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.array([0.7, 0.3], np.float32), (*pixels.shape[:3], 2))

    def outputs(self, pixels: np.ndarray) -> Outputs:
        p = self.probabilities(pixels)
        return Outputs(p, np.log(p), p[:, 0, 0])


@pytest.fixture
def sightline_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Run ``sightline ARGUMENTS...`` in this process; return its exit code and standard output."""

    def execute(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(process, "_claimed", False)
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code if isinstance(code, int) else 0, capsys.readouterr().out

    return execute


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_scenes(tmp_path_factory.mktemp("scenes"), 48, 16)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> sightline.Run:
    return sightline.train(
        str(scenes), recipe="fcn", epochs=3, seed=1, out=tmp_path_factory.mktemp("run") / "a", progress=False,
        set=SETTINGS | {"augment.rotation": 10, "augment.cutmix": 0.5, "train.loss": "dice"}
        | {"train.class_weights": "balanced"},
    )  # fmt: skip


def test_images_of_void_pixels_alone_have_no_metrics(
    run: sightline.Run, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    for number in range(3000, 3003):
        image, mask = draw_scene(number)
        for kind, pixels in (("images", image), ("masks", np.full_like(mask, 9))):
            path = tmp_path / "new" / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    (tmp_path / "new" / "classes.csv").write_text("value,name\n0,ground\n1,disk\n2,bar\n9,void\n")
    code, printed = sightline_command("evaluate", Path(run.path) / "bundle", tmp_path / "new")
    assert code == 0
    assert "loss not defined" in printed
    assert "calibration: not defined, since no pixel has a class" in printed
    assert "nan" not in printed
    code, printed = sightline_command("evaluate", Path(run.path) / "bundle", tmp_path / "new", "--format", "json")
    assert code == 0
    values = json.loads(printed)
    assert values["risk_coverage"] == {"aurc": None, "coverage": [], "risk": []}
    assert (values["accuracy"], values["accuracy_interval"], values["loss"]) == (None, [0, 1], None)
    evaluation = sightline.load(Path(run.path) / "bundle").evaluate(tmp_path / "new", progress=False)
    accuracy = evaluation.metrics["accuracy"]
    assert (accuracy.value, accuracy.interval) == (None, None)
    assert len(evaluation.predictions) == 3
    assert not evaluation.errors, "no mask says that they are wrong"


def test_void_validation_masks_validate_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(12):
        image, mask = draw_scene(number)
        split = "validation" if number < 4 else "train"
        for kind, pixels in (("images", image), ("masks", np.full_like(mask, 9) if number < 4 else mask)):
            path = tmp_path / "data" / split / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    (tmp_path / "data" / "classes.csv").write_text("value,name\n0,ground\n1,disk\n2,bar\n9,void\n")
    run = sightline.train(
        tmp_path / "data", recipe="fcn", epochs=2, out=tmp_path / "run", progress=False, set=SETTINGS
    )  # fmt: skip
    assert [(r.val_loss, r.val_accuracy, r.val_mean_iou) for r in run.history] == [(None, None, None)] * 2
    assert run.result.details["best_epoch"] == min(run.history, key=lambda r: r.loss).epoch
    assert run.validation is not None
    assert (run.validation.accuracy, run.validation.loss) == (None, None)
    again = sightline.Run(run.path)
    assert again.validation == run.validation
    print_result(again.result)
    printed = capsys.readouterr().out
    assert "validation accuracy not defined on 4 images, loss not defined" in printed
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Mean IoU not defined on 4 images" in page
    assert "calibration error of the pixels is not defined" in page
    assert "lost" not in page
    assert describe_run(run.path).accuracy_interval is None


def test_a_changed_mask_is_a_changed_image(run: sightline.Run, scenes: Path) -> None:
    rows = {row.path: row for row in run.directory.read_data() or ()}
    assert all(len(row.mask) == 64 for row in rows.values())
    path = scenes / next(path for path, row in rows.items() if row.split == "validation").replace("images", "masks")
    content = path.read_bytes()
    with Image.open(path) as file:
        mask = np.asarray(file)
    try:
        path.write_bytes(encode(np.rot90(mask)))  # the same classes, and so the same label
        with pytest.raises(DataError, match="1 changed since training"):
            run.classifier.evaluate(progress=False)
        with pytest.raises(OutputError, match="on images other than those now in"):
            sightline.train(
                str(scenes), recipe="fcn", epochs=3, seed=1, out=run.path, progress=False,
                set=SETTINGS | {"augment.rotation": 10, "augment.cutmix": 0.5, "train.loss": "dice"}
                | {"train.class_weights": "balanced"},
            )  # fmt: skip
    finally:
        path.write_bytes(content)


def test_an_evaluation_says_what_it_leaves_out(
    run: sightline.Run, scenes: Path, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    new = tmp_path / "new"
    for number in range(3100, 3103):
        image, mask = draw_scene(number)
        places = {"images": image, "masks": mask, "../classes/disk": image, "../classes/bar": image + 1}
        for folder, pixels in places.items():
            path = new / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    shutil.copy(scenes / "classes.csv", new)
    (new / "masks" / "3101.png").unlink()
    code, printed = sightline_command("evaluate", Path(run.path) / "bundle", new)
    assert code == 0
    assert "1 file could not be used, such as images/3101.png: has no mask" in " ".join(printed.split())
    with pytest.raises(DataError, match="has images without masks"):
        run.classifier.evaluate(tmp_path / "classes", progress=False)


def test_a_run_has_metrics_of_pixels_in_its_files_and_its_report(run: sightline.Run) -> None:
    result = run.result
    assert result.bundle is not None
    assert set(result.details["metrics"]["validation"]) == {"mean_iou", "mean_dice"}
    evaluation = run.classifier.evaluate(progress=False)
    iou = evaluation.metrics["mean_iou"]
    assert iou.value == pytest.approx(result.details["metrics"]["validation"]["mean_iou"])
    assert evaluation.accuracy is not None
    assert evaluation.accuracy > 0.5
    epochs = {record.epoch: record.val_mean_iou for record in run.history}
    validated = run.classifier.evaluate(split="validation", progress=False).metrics["mean_iou"]
    assert validated.value == pytest.approx(epochs[result.details["best_epoch"]], abs=1e-3)
    assert validated.value == pytest.approx(max(value or 0 for value in epochs.values()), abs=1e-3)
    assert [row["path"] for row in evaluation.errors] == [
        row["path"] for row in sorted(evaluation.predictions, key=lambda row: row["iou"])
    ]
    assert isinstance(evaluation.report, SegmentationReport)
    worst = evaluation.report.errors.worst_images
    assert [e.iou for e in worst] == sorted(e.iou for e in worst)
    page = Path(run.path, "report.html").read_text("utf-8")
    for text in (
        "image segmentation",
        "Mean IoU",
        "Worst images",
        f"Predicted mask of {worst[0].path}",
        f"Heat map: evidence for {worst[0].predicted}",
        "of the pixels",
        "validation mean IoU",
    ):
        assert text in page
    with pytest.raises(UsageError, match="confusion of the pixels"):
        _ = evaluation.confusion


@pytest.mark.slow
def test_masks_of_low_quality_are_not_accepted(
    run: sightline.Run, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    classifier = sightline.load(copy)
    image = draw_scene(2003)[0]
    assert classifier.predict_masks([image])[0].decision is None
    validation = classifier.evaluate(split="validation", target_precision=0.5, min_iou=0.2, progress=False)
    thresholds = validation.thresholds
    assert thresholds is not None
    assert (thresholds.min_iou, thresholds.target_precision) == (0.2, 0.5)
    quality = thresholds.quality
    assert quality is not None
    rows = {row["path"]: row for row in validation.predictions}
    accepted = [row for row in rows.values() if row["decision"] == "mask"]
    assert len(accepted) == sum(row["quality"] >= quality for row in rows.values())
    report = validation.report
    assert isinstance(report, SegmentationReport)
    decisions = report.selective
    assert decisions is not None
    assert decisions.coverage == pytest.approx(len(accepted) / len(rows))
    assert decisions.precision == pytest.approx(np.mean([row["iou"] >= 0.2 for row in accepted]))
    assert decisions.mean_iou.value == pytest.approx(np.mean([row["iou"] for row in accepted]))
    curve = report.risk_coverage
    assert curve.risk[-1] == pytest.approx(1 - np.mean([row["iou"] for row in rows.values()]))
    page = (copy / "report.html").read_text("utf-8")
    for text in ("if its quality is at least", "Risk-coverage curve", "Reliability diagram of pixels", "Boundary F1"):
        assert text in page

    reloaded = sightline.load(copy / "bundle")
    prediction, mask = reloaded.predict([image])[0], reloaded.predict_masks([image])[0]
    assert mask.quality is not None
    assert prediction.decision is not None
    assert mask.quality == pytest.approx(prediction.quality)
    assert mask.decision == ("mask" if mask.quality >= quality else "abstain") == prediction.decision.decision
    (tmp_path / "a.png").write_bytes(encode(image))
    _, printed = sightline_command("predict", copy, tmp_path / "a.png", "--masks", tmp_path / "m", "--format", "csv")
    assert next(csv.DictReader(io.StringIO(printed)))["decision"] == mask.decision
    _, printed = sightline_command("predict", copy, tmp_path / "a.png", "--format", "csv")
    row = next(csv.DictReader(io.StringIO(printed)))
    assert row["decision"] == mask.decision
    assert float(row["quality"]) == pytest.approx(mask.quality, abs=1e-5)
    assert "quality 0." in sightline_command("predict", copy, tmp_path / "a.png")[1]
    _, printed = sightline_command("evaluate", copy)
    for text in ("boundary F1", "calibration: ECE", "accepts", "on these 16 images"):
        assert text in printed
    code, printed = sightline_command("evaluate", copy, "--target-precision", "0.99", "--min-iou", "0.99")
    assert code == 1
    assert "validation images do not show" in printed
    assert sightline.load(copy).predict_masks([image])[0].decision == "abstain"


def test_an_evaluation_says_that_it_does_not_tile(
    run: sightline.Run, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    assert "tiles" not in sightline_command("evaluate", copy, "--split", "validation")[1]
    config = (copy / "config.toml").read_text("utf-8")
    assert config.count("tile = 0.0") == 1
    (copy / "config.toml").write_text(config.replace("tile = 0.0", "tile = 0.5"), "utf-8")
    assert "tiles, at the scale 0.5; these metrics" in sightline_command("evaluate", copy, "--split", "validation")[1]


def test_an_image_larger_than_the_network_is_predicted_in_tiles(
    run: sightline.Run, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    scenes = np.concatenate([draw_scene(2010 + i)[0] for i in range(3)], 1)
    (tmp_path / "wide.png").write_bytes(encode(scenes))
    masks = {}
    for tile in (0, 1):
        folder, areas = tmp_path / f"masks{tile}", tmp_path / f"areas{tile}.csv"
        command = ("predict", Path(run.path, "bundle"), tmp_path / "wide.png", "--masks", folder, "--tile", tile)
        assert sightline_command(*command, "--out", areas)[0] == 0
        with Image.open(folder / "wide.png") as file:
            masks[tile] = np.asarray(file)
        (row,) = csv.DictReader(io.StringIO(areas.read_text("utf-8")))
        for k, label in enumerate(run.classifier.classes):
            assert float(row[f"area:{label}"]) == pytest.approx((masks[tile] == k).mean(), abs=1e-5)
    assert masks[0].shape == masks[1].shape == (SIDE, 3 * SIDE)
    assert (masks[0] != masks[1]).any()
    first, last = (mask.mask for mask in sightline.load(run.path).predict_masks([scenes[:, :SIDE], scenes[:, -SIDE:]]))
    assert first is not None
    assert last is not None
    np.testing.assert_array_equal(masks[1][:, :20], first[:, :20], "less where tiles overlap")
    np.testing.assert_array_equal(masks[1][:, -20:], last[:, -20:])


def test_rows_of_masks_go_to_a_table_and_to_a_folder(
    run: sightline.Run, tmp_path: Path, sightline_command: Callable[..., tuple[int, str]]
) -> None:
    bundle, image = Path(run.path, "bundle"), tmp_path / "a.png"
    image.write_bytes(encode(draw_scene(2003)[0]))
    areas, folder = tmp_path / "areas.csv", tmp_path / "all.parquet"
    model = sightline.load(bundle)
    mask = model.predict_masks([image])[0]
    assert mask.quality is not None
    command = ("predict", bundle, image, "--masks", tmp_path / "masks", "--out")
    for _ in range(2):  # the second replaces what the first wrote
        assert sightline_command(*command, areas)[0] == 0
    row = next(csv.DictReader(io.StringIO(areas.read_text("utf-8"))))
    assert {label: float(row[f"area:{label}"]) for label, _ in mask.areas} == pytest.approx(dict(mask.areas), abs=1e-5)
    assert sightline_command(*command, folder)[0] == 2
    assert not folder.exists()

    model.thresholds = Thresholds(9, target_precision=0.9, min_iou=0.5, quality=mask.quality + 0.01)
    model.write_predictions(image, folder, progress=False)
    (cells,) = pq.read_table(folder / "part-00000000.parquet").to_pylist()
    assert (cells["decision"], cells["labels"]) == ("abstain", [label for label, _ in mask.areas])
    assert cells["quality"] == pytest.approx(mask.quality, abs=1e-5)


def test_checkpoints_have_no_outputs_of_each_pixel(run: sightline.Run) -> None:
    saved = load_latest(Path(run.path, "checkpoints"))
    assert saved is not None
    assert "best_logits" not in saved.arrays


def test_masks_are_written_at_the_size_of_the_image(run: sightline.Run, tmp_path: Path) -> None:
    image, _ = draw_scene(2000)
    large = np.asarray(Image.fromarray(image).resize((80, 60)))
    (tmp_path / "a.png").write_bytes(encode(large))
    (tmp_path / "bad.png").write_bytes(b"no image")
    bundle = sightline.load(Path(run.path, "bundle"))
    masks = bundle.predict_masks([tmp_path / "a.png", tmp_path / "bad.png", large], out=tmp_path / "masks")
    first, bad, array = masks
    assert first.mask is not None
    assert array.mask is not None
    assert (first.mask.shape, first.mask.max() < 3, bad.mask) == ((60, 80), True, None)
    assert "not an image" in str(bad.error)
    np.testing.assert_array_equal(first.mask, array.mask)
    assert sum(area for _, area in first.areas) == pytest.approx(1)
    assert [mask.file for mask in masks] == ["a.png", None, "2.png"]
    assert [mask.to_dict().get("file") for mask in masks] == ["a.png", None, "2.png"]
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == [
        "2.overlay.png", "2.png", "a.overlay.png", "a.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "masks" / "a.png") as file:
        assert file.mode == "P"
        np.testing.assert_array_equal(np.asarray(file), first.mask)
    with Image.open(tmp_path / "masks" / "a.overlay.png") as file:
        assert file.size == (80, 60)
    bundle.predict_masks(tmp_path / "a.png", out=tmp_path / "masks")  # replaces what it wrote
    (tmp_path / "masks" / "a.png").write_bytes(encode(large))
    with pytest.raises(OutputError, match="was not written by Sightline"):
        bundle.predict_masks(tmp_path / "a.png", out=tmp_path / "masks")
    prediction = bundle.predict(tmp_path / "a.png")[0]
    assert prediction.labels == tuple(label for label, _ in first.areas)
    assert sum(c.probability for c in prediction.top) == pytest.approx(1, abs=1e-5)


def test_a_long_image_has_a_mask_of_its_size_and_a_smaller_overlay(run: sightline.Run, tmp_path: Path) -> None:
    image = np.asarray(Image.fromarray(draw_scene(2002)[0]).resize((5000, 20)))
    mask = sightline.load(Path(run.path, "bundle")).predict_masks([image], out=tmp_path)[0].mask
    assert mask is not None
    assert mask.shape == (20, 5000)
    with Image.open(tmp_path / "0.overlay.png") as file:
        assert file.size == (4096, 16)


def test_the_overlay_is_of_the_page_that_the_model_reads() -> None:
    file = io.BytesIO()
    pages = [Image.new("RGB", (8, 6), color) for color in ("black", "white")]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    png = overlay_image(PreprocessingSpec(page=2), file.getvalue(), np.full((6, 8), VOID, np.uint8), 2)
    with Image.open(io.BytesIO(png)) as overlay:
        assert np.asarray(overlay).min() == 255


def test_an_image_without_an_overlay_is_an_error_of_its_row(run: sightline.Run, tmp_path: Path) -> None:
    contents = [encode(draw_scene(2003)[0]), b"no image any more"]
    items = [InputItem("a.png", lambda: contents.pop(0)), InputItem("b.png", lambda: encode(draw_scene(2004)[0]))]
    first, second = write_masks(run.classifier.predictor, items, tmp_path, 0.0, None)
    assert "not an image" in str(first.error)
    assert second.mask is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.overlay.png", "b.png"]


def test_exports_agree_on_all_pixels(run: sightline.Run, tmp_path: Path) -> None:
    exported = run.classifier.export(tmp_path / "model", progress=False)
    assert exported.parity.max_difference < 1e-4
    assert exported.parity.top1_agreement == 1
    keras = sightline.load(run.path, engine="keras")
    image = draw_scene(2001)[0]
    mask, other = (model.predict_masks([image])[0].mask for model in (keras, sightline.load(tmp_path / "model")))
    assert mask is not None
    assert other is not None
    assert (mask == other).mean() > 0.999
    with pytest.raises(UsageError, match="shifted views: use `tta` flip"):
        keras.with_tta("flip-shift").predict_masks([image])
    flipped = keras.with_tta().predict_masks([image])[0].mask
    mirrored = keras.with_tta().predict_masks([image[:, ::-1]])[0].mask
    assert flipped is not None
    assert mirrored is not None
    assert (flipped == mirrored[:, ::-1]).mean() > 0.999


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ("onnx", "int8"),
        pytest.param("saved_model", "float32", marks=pytest.mark.slow),
        pytest.param("openvino", "float32", marks=pytest.mark.installed),
        pytest.param("openvino", "int8", marks=pytest.mark.installed),
        pytest.param("litert", "float32", marks=pytest.mark.installed),
    ],
)
def test_each_format_predicts_the_same_masks(run: sightline.Run, tmp_path: Path, form: str, precision: str) -> None:
    for package in EXPORTERS[form].packages:
        pytest.importorskip(package)
    exported = run.classifier.export(tmp_path / "model", to=form, precision=precision, progress=False)
    assert exported.path is not None
    assert exported.parity.top1_agreement >= (1 if precision == "float32" else 0.99)
    image = np.asarray(Image.fromarray(draw_scene(2001)[0]).resize((70, 50)))
    for tile in (0, 1):
        mask, other = (
            model.predict_masks([image], tile=tile)[0].mask
            for model in (run.classifier, sightline.load(tmp_path / "model"))
        )
        assert mask is not None
        assert other is not None
        assert (mask == other).mean() >= (0.999 if precision == "float32" else 0.97)


@pytest.mark.slow
def test_a_compressed_model_is_compared_by_the_iou_of_each_image(
    run: sightline.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "LATENCY_SECONDS", 0.0)
    result = run.classifier.compress(out=tmp_path / "search", methods="float16", max_drop=5, progress=False)
    evaluation = run.classifier.evaluate(split="validation", progress=False).report.evaluation
    assert isinstance(evaluation, SegmentationResult)
    original, half = result.candidates
    assert original.scores is not None
    assert half.scores is not None
    ious = [row["iou"] for row in list_image_metrics(evaluation)]
    assert original.scores.compressed_score == pytest.approx(np.mean(ious), abs=1e-6)
    assert original.metrics["mean_iou"] == pytest.approx(evaluation.metrics["mean_iou"].value, abs=1e-6)
    assert half.scores.compressed_score == pytest.approx(np.mean(ious), abs=0.01)
    assert result.best == half
    image = draw_scene(2001)[0]
    mask, other = (
        model.predict_masks([image])[0].mask for model in (run.classifier, sightline.load(tmp_path / "search" / "best"))
    )
    assert mask is not None
    assert other is not None
    assert (mask == other).mean() > 0.99


@pytest.mark.slow
def test_a_model_of_masks_is_pruned(run: sightline.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_ROUNDS", 2)
    messages: list[str] = []

    class Messages(sightline.Callback):
        def on_message(self, text: str) -> None:
            messages.append(text)

    result = run.classifier.compress(out=tmp_path / "search", epochs=4, max_drop=100, callback=Messages())
    left_out = [text.split(",")[0].split(":")[0] for text in messages if "is left out" in text]
    assert left_out == ["shrink-head is left out", "distill is left out"]
    rows = {candidate.name: candidate for candidate in result.candidates}
    assert rows["prune-2"].parameters < rows["prune-1"].parameters < rows["original"].parameters
    assert rows["prune-2-int8"].metrics["mean_iou"] > 0.3
    small = sightline.load(tmp_path / "search" / "candidates" / "prune-2" / "bundle")
    mask = small.predict_masks([draw_scene(2001)[0]])[0].mask
    assert mask is not None
    assert mask.shape == (SIDE, SIDE)


def test_a_form_of_a_model_that_returns_nan_does_not_agree() -> None:
    """Whichever image has it: comparisons with NaN are always false."""
    masks = np.full((3, 2, 2, 2), 0.5, np.float32)
    for number in range(3):
        damaged = masks.copy()
        damaged[number, 0, 0, 1] = np.nan
        parity = find_task("segmentation").compare(masks, damaged)
        assert np.isnan(parity.max_difference)
        assert not parity.is_within(TOLERANCES["float32"])


def test_what_masks_have_no_meaning_for_is_refused(run: sightline.Run, scenes: Path, tmp_path: Path) -> None:
    image = draw_scene(0)[0]
    for method in ("rise", "gradcam++"):
        with pytest.raises(UsageError, match="this model predicts masks: use `method` gradcam or occlusion"):
            run.classifier.explain([image], method=method)
    with pytest.raises(UsageError, match="are for labels of whole images"):
        run.classifier.evaluate(coverage=0.9)
    with pytest.raises(UsageError, match="says which masks count for `target_precision`"):
        run.classifier.evaluate(min_iou=0.9)
    for method, reason in (("shrink-head", "a decoder has no flattened maps"), ("distill", "too much memory")):
        with pytest.raises(UsageError, match=f"method {method} is not possible .*{reason}.* prune,int8,float16"):
            run.classifier.compress(methods=["float16", method])
    with pytest.raises(ModelError, match=r"segmentation, .*: train again with masks that have the new class"):
        run.classifier.add_class("line", [image, image])
    for setting in (
        {"augment.label_mixing": "union"}, {"augment.randaugment": 2},
        {"train.loss": "binary"}, {"train.loss": "asymmetric"}, {"model.head": "sigmoid"},
        {"evaluation.target_recall": 0.9}, {"evaluation.target_fnr": 0.1},
        {"evaluation.coverage": 0.9},
    ):  # fmt: skip
        with pytest.raises(SightlineError, match="is for labels of whole images"):
            sightline.train(str(scenes), recipe="fcn", out=tmp_path / "b", set=SETTINGS | setting, progress=False)
    views = SETTINGS | {"train.stages.1.views": 2}
    with pytest.raises(UsageError, match="whose masks would not move with them: set views to 1"):
        sightline.train(scenes, recipe="transfer", out=tmp_path / "b", set=views, progress=False)
    with pytest.raises(UsageError, match=r"masks need a decoder, .* Compare the out-of-fold mean IoU of .*--folds 2"):
        sightline.learning_curve(scenes, set=SETTINGS, progress=False)
    with pytest.raises(UsageError, match=r"a mask states only one: use augment\.cutmix"):
        sightline.train(scenes, recipe="fcn", out=tmp_path / "b", set=SETTINGS | {"augment.mixup": 0.2}, progress=False)
    classes = tmp_path / "plain"
    for label in ("cat", "dog"):
        for number in range(3):
            path = classes / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(draw_scene(number + 50 * (label == "dog"))[0]))
    with pytest.raises(DataError, match="has images without masks"):
        sightline.train(str(classes), recipe="fcn", out=tmp_path / "c", set=SETTINGS, progress=False)


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (30, 20), (47, 31)])
@pytest.mark.parametrize("resize", get_args(Resize))
def test_a_mask_is_resized_as_its_image_is(resize: Resize, width: int, height: int) -> None:
    spec = PreprocessingSpec(48, 40, resize=resize)
    colors = np.array([[250, 30, 30], [30, 250, 30], [30, 30, 250], [220, 220, 30]], np.uint8)
    mask = np.zeros((height, width), np.uint8)  # four rectangles, of unequal sides
    mask[height // 3 :] += 1
    mask[:, 2 * width // 5 :] += 2
    resized = spec.apply_to_mask(mask, VOID)
    expected = np.where((resized != VOID)[..., None], colors[np.where(resized == VOID, 0, resized)], 0)
    neighbors = [np.roll(resized, (y, x), (0, 1)) for y in (-2, -1, 0, 1, 2) for x in (-2, -1, 0, 1, 2)]
    inner = np.all([resized == other for other in neighbors], 0)  # two pixels or more from an edge
    assert set(resized[inner]) - {VOID} == {0, 1, 2, 3}
    np.testing.assert_array_equal(spec.apply(colors[mask])[inner], expected[inner])


@pytest.mark.parametrize("resize", get_args(Resize))
def test_a_mask_returns_to_the_pixels_that_it_is_of(resize: Resize) -> None:
    spec = PreprocessingSpec(20, 20, 3, resize=resize)
    mask = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3), 20, 0), 20, 1)
    restored = restore_size(spec, spec.apply_to_mask(mask, VOID), 60, 40)
    has_class = restored != VOID
    assert restored.shape == mask.shape
    assert has_class.mean() == pytest.approx(1 if resize != "crop" else 2 / 3, abs=0.02)
    assert (restored[has_class] == mask[has_class]).mean() > 0.85


def test_the_mean_iou_of_an_epoch_counts_each_class_alike() -> None:
    task, masks = find_task("segmentation"), np.zeros((2, 10, 10), np.uint8)
    masks[0, 0], masks[1, 0] = 1, VOID
    all_first = np.broadcast_to(np.array([1, 0, 0], np.float32), (2, 10, 10, 3))
    score = task.score_batches([(all_first[:1], masks[:1]), (all_first[1:], masks[1:])])
    assert score.accuracy == pytest.approx(180 / 190)
    assert score.mean_iou == pytest.approx(180 / 190 / 2)  # the third class has no pixel
    assert task.score(all_first, np.full_like(masks, VOID)).mean_iou == 0
    with pytest.raises(UsageError, match="val_mean_iou, which is a metric of masks"):
        sightline.train("beans:4@32", set={"train.early_stopping.monitor": "val_mean_iou"}, progress=False)
    settings = {"train.early_stopping.monitor": "val_calibrated_loss", "model.task": "multi_label"}
    with pytest.raises(UsageError, match="val_calibrated_loss, which is for one class per image: choose val_loss"):
        sightline.train("beans:4@32", set=settings, progress=False)


def test_padding_does_not_count_for_the_quality_of_a_mask() -> None:
    class SureOfWhite(FakeMasks):
        preprocess = PreprocessingSpec(20, 20, resize="pad")

        def probabilities(self, pixels: np.ndarray) -> np.ndarray:
            return np.where(pixels[..., :1] > 128, np.array([0.9, 0.1]), np.array([0.5, 0.5])).astype(np.float32)

    model, task, wide = SureOfWhite(), find_task("segmentation"), np.full((10, 40, 3), 255, np.uint8)
    quality = estimate_iou(np.broadcast_to(np.array([0.9, 0.1], np.float32), (5, 20, 2)))
    assert next(iter(predict_masks(model, [InputItem("a", lambda: wide)]))).quality == pytest.approx(quality)
    prediction = next(iter(predict(model, [InputItem("a", lambda: wide)], interpret=task.interpret)))
    assert prediction.quality == pytest.approx(quality)
    assert prediction.top[0].probability == pytest.approx(0.9)
    masks = np.zeros((1, 20, 20), np.uint8)
    subset = Subset(model.preprocess.apply(wide)[None], np.arange(1), masks, ("a",), np.array([[40, 10]]))
    outputs = collect_mask_outputs(model, subset.select(np.arange(1)).head(1))
    assert outputs.quality == pytest.approx([quality])
    np.testing.assert_allclose(outputs.outputs.probabilities, [[0.9, 0.1]], rtol=1e-5)


def test_colors_of_masks_are_distinct() -> None:
    palette = make_palette(21)
    assert len({tuple(color) for color in make_palette(254)[:254].tolist()}) == 254
    seen = simulate_vision(palette[:22])  # and the color of pixels without a class
    distances = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=3) + np.eye(22)
    assert distances.min() > 0.05, "two are alike, for some readers"
    assert distances[0].min() > 0.09
    assert seen[0, :21, 0].min() > 0.4, "nearly black"
    np.testing.assert_array_equal(make_palette(3)[:3], palette[:3])
    mask = np.array([[0, 1], [2, VOID]], np.uint8)
    with Image.open(io.BytesIO(encode_mask(mask, 3))) as file:
        np.testing.assert_array_equal(np.asarray(file.convert("RGB"))[0, 1], palette[1])
    pixels = np.full((2, 2, 1), 100, np.uint8)
    overlay = overlay_mask(pixels, mask, 3)
    np.testing.assert_array_equal(overlay[1, 1], [100, 100, 100])
    np.testing.assert_array_equal(overlay[0, 1], (50 + palette[1] / 2).round())


def test_names_of_masks_do_not_repeat() -> None:
    taken: dict[str, int] = {}
    assert [choose_name(path, taken) for path in ("a/1.jpg", "b/1.jpg", "[3]")] == ["1", "1-2", "3"]
    assert choose_name("1.overlay.png", taken) == "1-3"  # not the name of the overlay of 1.jpg
    assert [choose_name(path, taken) for path in ("x-2.png", "x.png", "y/x.png", "z/X.png")] == [
        "x-2", "x", "x-3", "X-4",
    ]  # fmt: skip
    long = choose_name("\u732b" * 83 + ".jpg", taken)
    assert 0 < len(f"{long}.overlay.png".encode()) <= 255
    assert choose_name("\udcff.jpg", taken) == "mask"


@pytest.mark.parametrize("resize", get_args(Resize))
def test_masks_of_thin_images_have_their_size(resize: Resize) -> None:
    spec = PreprocessingSpec(32, 32, resize=resize)
    for size in itertools.product((1, 2, 3, 4, 5, 300, 301), repeat=2):
        mask = restore_size(spec, np.zeros((32, 32), np.uint8), *size)
        assert mask.shape == size[::-1]
        assert (mask == 0).any()


def test_the_temperature_is_that_of_the_pixels_with_a_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 4000).astype(np.uint8)
    guesses = np.where(rng.random(labels.shape) < 0.8, labels, 1 - labels)
    logits = 5 * np.eye(2, dtype=np.float32)[guesses]
    task = find_task("segmentation")
    temperature = task.fit_temperature(logits, labels)
    assert temperature is not None
    assert temperature > 2
    void, wrong = np.full(4000, VOID, np.uint8), -logits
    assert task.fit_temperature(np.concatenate([logits, wrong]), np.concatenate([labels, void])) == temperature


def test_the_interval_of_an_image_is_not_that_of_its_pixels() -> None:
    predictor = FakeMasks()
    subset = Subset(np.zeros((1, 20, 20, 3), np.uint8), np.arange(1), np.zeros((1, 20, 20), np.uint8), ("a",))
    outputs = collect_mask_outputs(predictor, subset)
    inputs = EvaluationInputs(("a", "b"), outputs, LabeledSubset(subset, (), ()), "test", None)
    report = build_report(inputs, outputs)
    interval = report.evaluation.accuracy_interval
    assert interval.high - interval.low > 0.5


@contextmanager
def two_cores_for(minutes: float) -> Iterator[None]:
    """Limit the processor time to that of two cores in these minutes.

    A run that needs more cannot end in time on two cores. Unlike elapsed time, processor time hardly depends on other
    work on the machine.
    """
    begun = sum(os.times()[:4])
    yield
    assert sum(os.times()[:4]) - begun <= 2 * 60 * minutes


@pytest.mark.slow
def test_the_network_of_the_tutorials_reaches_its_mean_iou_on_drawn_beans(tmp_path: Path) -> None:
    """0.905 and 0.907 were measured; the order of sums, and so the weights, differ a little between processors."""
    settings = {
        "augment.rotation": 20, "augment.brightness": 0.2, "augment.contrast": 0.2, "device.threads": 2,
    }  # fmt: skip
    with two_cores_for(minutes=3):
        run = sightline.train("beans:400@64", recipe="fcn", epochs=60, out=tmp_path / "a", progress=False, set=settings)
    assert run.classifier.classes == ("background", "bean")
    assert run.result.details["metrics"]["test"]["mean_iou"] >= 0.9
    others = sightline.load(Path(run.path, "bundle")).evaluate("beans:8@64#7", progress=False)
    assert others.result.count == 8


@pytest.mark.slow
def test_the_default_network_segments_real_street_scenes(shared: Path, tmp_path: Path) -> None:
    """It takes a quarter of an hour on two cores; a validation mean IoU of 0.659 was measured with 20 epochs."""
    settings = {"model.task": "segmentation", "input.height": 180, "input.width": 240, "device.threads": 2}
    scenes = shared / "data" / "camvid"
    with two_cores_for(minutes=15):
        run = sightline.train(scenes, epochs=20, out=tmp_path / "a", progress=False, set=settings)
    assert run.result.model.startswith("efficientnet-lite0")
    assert len(run.classifier.classes) == 11
    assert run.result.details["metrics"]["validation"]["mean_iou"] >= 0.55


@pytest.mark.slow
def test_the_network_of_the_tutorials_learns_drawn_scenes(tmp_path: Path) -> None:
    scenes = draw_scenes(tmp_path / "scenes", 300, 60)
    run = sightline.train(str(scenes), set=SETTINGS, out=tmp_path / "run", progress=False)
    assert run.result.model == "fcn"
    assert run.result.details["metrics"]["validation"]["mean_iou"] > 0.9
