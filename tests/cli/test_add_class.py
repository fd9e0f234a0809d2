"""`sightline add-class`: five images make a class of a normal model, and what it is worth is stated."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from command import COLORS, Command, Outcome, draw_classes
from sightline.api.added_class import AddedClass
from sightline.api.added_row import _evaluate, _Others
from sightline.export.extend_head import Head
from sightline.inference import bundle

pytestmark = pytest.mark.usefixtures("plain_figures")

Trained = tuple[Path, dict[str, Any]]
BLACK = {"black": (10, 10, 10)}


@pytest.fixture(scope="module")
def black(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a class that the run does not have: five to add, and twenty to try."""
    folder = tmp_path_factory.mktemp("black")
    draw_classes(folder / "new", BLACK, 5)
    draw_classes(folder / "try", BLACK | {"red": COLORS["red"]}, 20)
    return folder


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def added(trained: Trained, black: Path, tmp_path_factory: pytest.TempPathFactory) -> AddedClass:
    """The result of adding the class to a copy of the run."""
    run = tmp_path_factory.mktemp("added") / "run"
    shutil.copytree(trained[0], run)
    return sl.load(run).add_class("black", black / "new")


def test_the_result_is_a_normal_model(
    sightline: Command, added: AddedClass, trained: Trained, black: Path, tmp_path: Path
) -> None:
    old, new = sl.load(trained[0]), sl.load(added.path)
    assert added.path.name == "with-black"
    assert new.classes == (*old.classes, "black") == added.classes
    assert (added.count, added.folds, added.split) == (5, 5, "test")
    predicted = sightline("predict", added.path, black / "try", "--format", "json")
    labels = [row["label"] for row in predicted.lines]
    assert labels[:20].count("black") >= 18
    assert labels[20:].count("black") <= 2
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    before, after = (classifier.predictor.outputs(pixels) for classifier in (old, new))
    np.testing.assert_allclose(after.logits[:, :3], before.logits, atol=1e-5)
    np.testing.assert_allclose(after.features, before.features, atol=1e-5)
    evaluated = sightline("evaluate", added.path, black / "try", "--format", "json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["accuracy"] >= 0.9
    exported = sightline("export", added.path, "--parity", black / "try", "--out", tmp_path / "e.onnx")
    assert exported.code == 0, exported.err
    assert [p.label for p in sl.load(tmp_path / "e.onnx").predict(black / "try")] == labels


def test_the_metrics_are_those_of_the_new_model(added: AddedClass, colors: Path, trained: Trained) -> None:
    manifest = json.loads((added.path / "manifest.json").read_text())
    assert added.accuracy_before == pytest.approx(trained[1]["test"]["accuracy"])
    metrics = manifest["metrics"]["test"]
    assert metrics["accuracy"] == added.accuracy
    assert metrics["untested_classes"] == ["black"]
    assert metrics["count"] == added.split_count == trained[1]["test"]["count"]
    with np.load(trained[0] / "eval" / "test" / "predictions.npz") as predictions:
        names = {Path(path).name for path in predictions["paths"].tolist()}
    evaluation = sl.load(added.path).evaluate(colors)
    rows = [row for row in evaluation.predictions if Path(row["path"]).name in names]
    assert len(rows) == added.split_count
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(added.accuracy)
    assert sum(row["predicted"] == "black" for row in rows) == added.taken
    assert evaluation.to_dict()["training_images"]["identical"] > 0, "known, as the bundle is in the run"
    step = manifest["lineage"][-1]
    assert (step["step"], step["class"], step["images"]) == ("add-class", "black", 5)
    assert step["recalled_when_left_out"] == added.recalled
    assert step["calibration"] == "not fitted to black"
    assert manifest["parity"]["max_difference"] < 1e-4
    assert manifest["thresholds"] is None
    assert manifest["reference_examples"][-1]["label"] == "black"
    assert {len(example["probabilities"]) for example in manifest["reference_examples"]} == {4}
    original = json.loads((trained[0] / "bundle" / "manifest.json").read_text())
    assert manifest["weights_sha256"] != original["weights_sha256"]
    features = sl.load(added.path).embed(np.zeros((1, 32, 32, 3), np.uint8)).vectors.shape[1]
    assert manifest["parameters"] == original["parameters"] + features + 1


def test_embeddings_of_the_earlier_model_serve_the_new_one(added: AddedClass, trained: Trained, black: Path) -> None:
    image = black / "try" / "black" / "black-000.png"
    embeddings = sl.load(trained[0]).embed(black / "try")
    assert len(sl.load(added.path).similar(image, embeddings)) == 5


def test_the_text_says_what_the_class_is_worth(sightline: Command, run: Path, black: Path) -> None:
    (run / "thresholds.json").write_text('{"count": 9, "target_precision": 0.9, "confidence": 0.5}')
    result = sightline("add-class", run, "black", black / "new")
    lines = {line.partition(" ")[0]: line for line in result.out.splitlines()}
    assert list(lines) == ["class", "recall", "accuracy", "calibration", "thresholds", "model"]
    assert lines["class"].endswith("black, the last of 4, from 5 images")
    assert " of 5 when each is left out of the fit (95% interval " in lines["recall"]
    assert "its test split); " in lines["accuracy"]
    assert lines["calibration"].endswith("not fitted to black")


def add(
    sightline: Command, model: object, images: object, *options: object, name: str = "black", form: str = "json"
) -> Outcome:
    return sightline("add-class", model, name, images, *options, "--format", form)


def test_arguments_in_another_order_are_answered_with_the_order(sightline: Command, run: Path, black: Path) -> None:
    for arguments in ((run, black / "new", "black"), (run, black / "new", "bla*"), ("black", run, black / "new")):
        result = sightline("add-class", *arguments)
        assert (result.code, result.out) == (2, "")
        assert "The arguments come in this order: `sightline add-class runs/cats fox foxes/`." in result.err


def test_a_folder_with_the_name_of_the_class_does_not_put_the_order_in_doubt(
    sightline: Command, black: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(black)
    result = sightline("add-class", "no-model", "new", "new")
    assert result.code == 2
    assert "no-model" in result.err
    assert "order" not in result.err


@pytest.mark.parametrize("suffix", [".zip", ".onnx"])
def test_a_bundle_needs_reference_images(
    suffix: str, sightline: Command, run: Path, colors: Path, black: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / f"model{suffix}", tmp_path / f"new{suffix}"
    bundle.write(bundle.read(run / "bundle"), model)
    refused = add(sightline, model, black / "new", "--out", out)
    assert refused.code == 2
    assert "give labeled images of its classes with --reference" in refused.err
    assert "give one with --out" in add(sightline, model, black / "new", "--reference", colors).err
    (tmp_path / "one" / "red").mkdir(parents=True)
    shutil.copy(next((colors / "red").iterdir()), tmp_path / "one" / "red")
    refused = add(sightline, model, black / "new", "--reference", tmp_path / "one", "--out", out)
    assert "has only 1 readable image to fit a class against: give more labeled images with --reference" in refused.err
    reference = colors
    if suffix == ".onnx":
        reference = sl.load(model).embed(sl.Dataset.from_folder(colors)).save(tmp_path / "e.npy")
    result = add(sightline, model, black / "new", "--reference", reference, "--out", out)
    assert result.code == 0, result.err
    assert (result.json["split"], result.json["split_count"]) == ("reference", 39)
    assert [p.label for p in sl.load(out).predict(black / "try")][:20].count("black") >= 18


def test_a_second_class_follows_the_first(
    sightline: Command, added: AddedClass, trained: Trained, colors: Path, black: Path, tmp_path: Path
) -> None:
    options = ("--reference", colors, "--out", tmp_path / "b")
    second = add(sightline, added.path, black / "try" / "red", *options, name="rot", form="text")
    assert second.code == 0, second.err
    assert (
        "warning: the reference has no image of 1 class of the model ('black'): images of it may be predicted as the "
        "new class"
    ) in " ".join(second.err.split())
    assert sl.load(tmp_path / "b").classes[-2:] == ("black", "rot")
    assert sl.load(tmp_path / "b").feature_model_id == sl.load(trained[0]).feature_model_id


def test_nothing_is_replaced_unasked(
    sightline: Command, run: Path, black: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add(sightline, run, black / "new").code == 0
    before = (run / "with-black" / "manifest.json").read_bytes()
    again = add(sightline, run, black / "try" / "black")
    assert again.code == 2
    assert "exists: choose another place with --out, or replace it with --force" in again.err
    assert (run / "with-black" / "manifest.json").read_bytes() == before
    assert add(sightline, run, black / "try" / "black", "--force").json["count"] == 20
    (run / "with-black" / "notes.txt").write_text("mine")
    assert "notes.txt" in add(sightline, run, black / "new", "--force").err
    for path in (run / "bundle", tmp_path):
        assert "is not the result of add-class" in add(sightline, run, black / "new", "--out", path, "--force").err
    below_file = run / "run.json" / "a"
    assert "run.json is not writable: Not a directory" in add(sightline, run, black / "new", "--out", below_file).err
    monkeypatch.chdir(run / "with-black")
    assert "is the current folder" in add(sightline, run, black / "new", "--out", ".", "--force").err


def test_images_that_do_not_count_are_reported(sightline: Command, run: Path, black: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(black / "new" / "black", images)
    shutil.copy(images / "black-000.png", images / "copy.png")
    (images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = add(sightline, run, images, form="text")
    assert result.code == 0, result.err
    assert "from 5 images" in result.out
    assert "1 image cannot be read, e.g. " in result.err
    assert "1 image left out as duplicates" in result.err


@pytest.mark.parametrize(
    ("name", "images", "words"),
    [
        ("red", "{black}/new", "'red' is already a class of the model"),
        ("Red", "{black}/new", "differs from the class 'red' only in case"),
        ("\udcff", "{black}/new", "cannot be the name of a class"),
        (
            "black",
            "{black}/new/black/black-000.png",
            "at least 2 different images, preferably 5 or more, but there is 1",
        ),
        ("black", "{black}/nowhere.png", "but there are 0 that can be read, e.g. "),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(
    name: str, images: str, words: str, sightline: Command, run: Path, black: Path
) -> None:
    result = add(sightline, run, images.format(black=black), name=name, form="text")
    assert (result.code, result.out) == (2, "")
    assert words in " ".join(result.err.split())
    assert result.err.count("No such file") == images.count("nowhere"), "a reason is printed once"
    assert "Traceback" not in result.err
    assert not list(run.glob("with-*"))


def test_a_missing_package_is_named(
    sightline: Command, run: Path, black: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else object())
    result = add(sightline, run, black / "new")
    assert "Adding a class needs the package 'onnx'" in result.err
    assert result.code == 2


def test_models_without_an_output_for_each_class_are_refused(
    sightline: Command, run: Path, black: Path, tmp_path: Path, colors: Path
) -> None:
    from sightline.export.keras_to_onnx import cast_weights

    loaded = bundle.read(run / "bundle")
    narrow = bundle.make(loaded.manifest, cast_weights(loaded.model, "float16"), loaded.files)
    bundle.write(narrow, tmp_path / "narrow")
    options = ("--reference", colors, "--out", tmp_path / "new")
    result = add(sightline, tmp_path / "narrow", black / "new", *options)
    assert "its last layer is not one dense layer on its features, in float32" in result.err
    bundle.update_manifest_file(tmp_path / "narrow", precision="float16")
    result = add(sightline, tmp_path / "narrow", black / "new", *options)
    assert "is stored in float16: add the class to the float32 model" in result.err


def test_the_interval_on_the_other_classes_counts_groups() -> None:
    """Of eight patients with ten images each, all images of one are wrong."""
    labels, features = np.zeros(80, np.int32), np.tile(np.array([1, 0], np.float32), (80, 1))
    features[:10] = [0, 1]
    paths = tuple(f"{number}.png" for number in range(80))
    head = Head(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), 1.0)
    others = _Others(features, "test", features, labels, paths)
    grouped = replace(others, groups={path: f"patient {number // 10}" for number, path in enumerate(paths)})
    alone, of_groups = (_evaluate(head, ("a", "b"), "c", of) for of in (others, grouped))
    assert alone.accuracy == of_groups.accuracy == 0.875
    assert of_groups.groups == 8
    assert of_groups.accuracy_interval.low < alone.accuracy_interval.low - 0.2
