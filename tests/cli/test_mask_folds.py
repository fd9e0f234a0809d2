"""`train --folds` with masks: each image is predicted by a model that was not trained on it."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from command import Command
from drawn_scenes import draw_scene, encode
from sightline.compress import candidates
from sightline.data.masks import VOID
from sightline.data.types import OUT_OF_FOLD, Subset
from sightline.errors import DataError, ModelError
from sightline.evaluation.mask_outputs import collect_mask_outputs, join_outputs
from sightline.evaluation.segmentation import SegmentationReport, SegmentationResult
from sightline.inference.predictor import Outputs
from sightline.preprocessing import PreprocessingSpec
from sightline.runs import folds, mask_folds
from sightline.runs.existing_run import check_same_run
from sightline.runs.resolve import RunInputs

pytestmark = pytest.mark.usefixtures("plain_figures")

FOLDS, GROUPS, PER_GROUP, TEST = 2, 10, 3, 4


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten sequences of three scenes with masks, and a test split of four scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    numbers = {f"train/{{}}/s{n // PER_GROUP}_{n}": n for n in range(GROUPS * PER_GROUP)}
    numbers |= {f"test/{{}}/s99_{n}": n for n in range(1000, 1000 + TEST)}
    for name, number in numbers.items():
        for kind, pixels in zip(("images", "masks"), draw_scene(number), strict=True):
            path = folder / f"{name.format(kind)}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    (folder / "classes.csv").write_text("value,name\n0,ground\n1,disk\n2,bar\n9,void\n")
    return folder


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    settings = {"model.task": "segmentation", "device.threads": 1, "split.group": r"pattern:(s\d+)_"}
    return sl.train(
        scenes, recipe="fcn", epochs=2, folds=FOLDS, out=tmp_path_factory.mktemp("run") / "a", progress=False,
        set=settings | {"split.mode": "stratified"},
    )  # fmt: skip


def test_all_images_are_evaluated_each_by_a_model_that_was_not_trained_on_it(run: sl.Run) -> None:
    total = GROUPS * PER_GROUP
    assert run.validation is not None
    assert run.test is not None
    assert (run.result.train.count, run.validation.count, run.test.count) == (total, total, TEST)
    evaluation = run.classifier.evaluate(split="validation", progress=False)
    result = evaluation.result
    assert isinstance(result, SegmentationResult)
    assert evaluation.split == OUT_OF_FOLD
    assert result.groups == GROUPS
    iou = evaluation.metrics["mean_iou"]
    assert iou.value == run.result.details["metrics"]["validation"]["mean_iou"]
    assert iou.interval is not None
    assert iou.interval.low < (iou.value or 0) < iou.interval.high
    held_out: list[str] = []
    sizes = []
    for fold in folds.list_runs(run.directory, FOLDS):
        rows = fold.read_data() or ()
        splits = {row.path: row.split for row in rows}
        of_fold = {split: {row.group for row in rows if row.split == split} for split in ("train", "test")}
        assert not of_fold["train"] & of_fold["test"]
        stored = mask_folds.read_outputs(fold, "test", result.classes)
        assert stored is not None
        paths, outputs = stored
        assert all(splits[path] == "test" for path in paths)
        at = [result.paths.index(path) for path in paths]
        np.testing.assert_array_equal(result.confusions[at], outputs.confusions)
        np.testing.assert_array_equal(result.quality[at], outputs.quality)
        held_out += paths
        sizes.append(len(paths))
    assert sorted(held_out) == sorted(result.paths)
    assert sizes == [total // FOLDS] * FOLDS
    for path, confusion in zip(result.paths, result.confusions, strict=True):
        mask = draw_scene(int(Path(path).stem.partition("_")[2]))[1]
        known = confusion.sum(1)
        expected = {name: int((mask == value).sum()) for value, name in enumerate(("ground", "disk", "bar"))}
        assert known.tolist() == [expected[name] for name in result.classes]


def test_the_final_model_has_the_medians_of_the_folds(run: sl.Run) -> None:
    results = [fold.result for fold in folds.list_runs(run.directory, FOLDS)]
    assert run.result.details["temperature"] == statistics.median_low(r["temperature"] for r in results)
    assert len(run.history) == statistics.median_low(r["best_epoch"] for r in results)


def test_files_and_report_say_what_the_metrics_are_of(run: sl.Run, sightline: Command) -> None:
    assert run.validation is not None
    manifest = sl.load(run.path / "bundle").manifest
    assert manifest is not None
    assert set(manifest.metrics) == {OUT_OF_FOLD, "test"}
    page = (run.path / "report.html").read_text("utf-8")
    assert f"{FOLDS}, each evaluated by a model that was trained on the others" in page
    assert "medians of their epochs and temperatures" in page
    printed = sightline("evaluate", run.path, "--split", "validation", "--format", "json").json
    assert (printed["split"], printed["count"]) == (OUT_OF_FOLD, GROUPS * PER_GROUP)
    assert sightline("evaluate", run.path, "--split", "validation", "--tta", "flip").code == 2


def test_the_images_of_a_given_validation_split_are_in_folds_too(run: sl.Run, scenes: Path) -> None:
    index = sl.Dataset.from_folder(scenes).index
    images = tuple(replace(p, split="validation") if "/s0_" in p.path else p for p in index.images)
    check_same_run(run.directory, RunInputs(run.config, replace(index, images=images)))


def test_the_test_images_are_not_new_to_a_fold(run: sl.Run) -> None:
    fold = sl.load(folds.get_fold_path(run.directory, 0)).evaluate(progress=False)
    assert (fold.split, fold.result.added) == ("test", 0)


def test_candidates_are_evaluated_on_given_validation_images(
    run: sl.Run, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "LATENCY_SECONDS", 0.0)
    with pytest.raises(DataError, match="a run with folds is trained on all of its images, so give others"):
        run.classifier.compress(out=tmp_path / "search", methods="float16", progress=False)
    data = Path(shutil.copytree(scenes, tmp_path / "data"))
    for number in range(2000, 2006):
        for kind, pixels in zip(("images", "masks"), draw_scene(number), strict=True):
            path = data / "val" / kind / f"s{number}_0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(pixels))
    result = run.classifier.compress(data, out=tmp_path / "search", methods="float16", max_drop=50, progress=False)
    assert [candidate.count for candidate in result.candidates] == [6, 6]


def test_a_threshold_is_chosen_on_all_images(run: sl.Run, tmp_path: Path) -> None:
    copy = sl.load(shutil.copytree(run.path, tmp_path / "run"))
    evaluation = copy.evaluate(target_precision=0.5, min_iou=0.05, conservative=False, progress=False)
    assert isinstance(evaluation.report, SegmentationReport)
    assert evaluation.split == "test"
    assert evaluation.report.threshold is not None
    assert evaluation.report.threshold.count == GROUPS * PER_GROUP
    on_all = copy.evaluate(split="validation", progress=False).report
    assert isinstance(on_all, SegmentationReport)
    assert on_all.selective is not None
    assert on_all.selective.met is None, "the threshold was chosen on these images"


def test_damaged_out_of_fold_outputs_are_an_error(run: sl.Run, tmp_path: Path) -> None:
    copy = sl.load(shutil.copytree(run.path, tmp_path / "run"))
    path = tmp_path / "run" / "eval" / "validation" / "masks.npz"
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    damages = (
        {"quality": values["quality"][1:]}, {"pixel_images": values["pixel_images"] + 1000},
        {"paths": np.array("a")}, {"confusions": -values["confusions"] - 1}, {"logits": values["logits"] * np.nan},
    )  # fmt: skip
    for damage in damages:
        np.savez(path, **(values | damage))
        with pytest.raises(ModelError, match=r"masks\.npz cannot be read: .* train the run again with `force`"):
            copy.evaluate(split="validation", progress=False)
    path.write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"masks\.npz cannot be read"):
        copy.evaluate(split="validation", progress=False)
    path.unlink()
    with pytest.raises(ModelError, match="no out-of-fold prediction for"):
        copy.evaluate(split="validation", progress=False)


class NoisyMasks:
    """A model whose logits of a pixel are its color channels."""

    classes, preprocess = ("a", "b", "c"), PreprocessingSpec(8, 8)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        return self.outputs(pixels).probabilities

    def outputs(self, pixels: np.ndarray) -> Outputs:
        logits = (pixels / 64).astype(np.float32)
        p = np.exp(logits)
        return Outputs(p / p.sum(-1, keepdims=True), logits, logits.mean((1, 2)))


def test_joined_outputs_are_those_of_all_images_at_once() -> None:
    rng = np.random.default_rng(0)
    masks = rng.choice(np.array([0, 1, 2, VOID], np.uint8), (30, 8, 8))
    images = rng.integers(0, 256, (30, 8, 8, 3), np.uint8)
    everything = Subset(images, np.arange(30), masks, tuple(map(str, range(30))))
    expected = collect_mask_outputs(NoisyMasks(), everything)
    order = rng.permutation(30)
    parts = [collect_mask_outputs(NoisyMasks(), everything.select(rows)) for rows in np.array_split(order, 3)]
    joined = join_outputs(parts).select(np.argsort(order))
    for name in ("labels", "confusions", "boundaries", "losses", "reliability", "quality"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(expected, name))
    for ours, theirs in zip(joined.outputs.arrays, expected.outputs.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {i: mask.tolist() for i, mask in joined.worst_masks.items()} == {
        i: mask.tolist() for i, mask in expected.worst_masks.items()
    }
    some = joined.select(np.array([7, 3]))
    assert len(some.pixel_labels) == (masks[[7, 3]] != VOID).sum() == len(some.pixel_logits)
    assert np.bincount(some.pixel_images).tolist() == [(masks[i] != VOID).sum() for i in (7, 3)]


@pytest.mark.slow
def test_no_array_of_out_of_fold_outputs_is_trusted(run: sl.Run, tmp_path: Path, sightline: Command) -> None:
    """Whatever is in the place of one, the command answers or says which file is damaged."""
    copy = shutil.copytree(run.path, tmp_path / "run")
    path = copy / "eval" / "validation" / "masks.npz"
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    for name, old in values.items():
        kinds = [np.array(old.reshape(-1)[0]), old[:0], old[..., None], np.array([["a"]])]
        if old.dtype.kind in "iuf":
            kinds += [
                -old - np.ones((), old.dtype),
                old + np.array(1 << 62 if old.dtype.itemsize == 8 else 250, old.dtype),
            ]
        if old.dtype.kind == "f":
            kinds += [np.full_like(old, np.nan), np.full_like(old, np.inf)]
        for number, new in enumerate(kinds):
            np.savez(path, **(values | {name: new}))
            result = sightline("evaluate", copy, "--split", "validation")
            assert result.code in {0, 2}, (name, number, result.err)
            words = "".join(result.err.split())
            assert result.code == 0 or "masks.npz" in words or "out-of-foldprediction" in words, (name, number, words)
