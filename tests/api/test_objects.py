"""The four objects: `Dataset`, `Run`, `Classifier` and `Evaluation`, on images in memory."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import add
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import sightline as sl
from recording import RecordingCallback
from sightline.api.argument_types import check_types
from sightline.api.images import split_images
from sightline.datasets import coffee_beans
from sightline.evaluation.learning_curve import LearningCurve
from sightline.explain.explanation import Explanation
from sightline.inference.embeddings import Embeddings
from sightline.inference.masks import MaskPrediction
from sightline.progress import ProgressDisplay, show_progress

pytestmark = pytest.mark.usefixtures("plain_figures")

SIDE, COUNT = 32, 80
untyped: Any = sl  # for calls that a type checker would refuse
QUICK: dict[str, Any] = {
    "recipe": "quick", "model": "cifar10-simple", "epochs": 2, "seed": 1, "set": ["model.hidden_units=[64]"]
}  # fmt: skip


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[str]]:
    """Return drawn coffee beans [count, 32, 32, 3] and their roasts."""
    x = np.stack([coffee_beans.draw(i, SIDE, seed) for i in range(count)])
    return x, [coffee_beans.CLASSES[i % len(coffee_beans.CLASSES)] for i in range(count)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 drawn beans, one subfolder per roast."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for i, (pixels, label) in enumerate(zip(*draw(12), strict=True)):
        (root / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def beans() -> sl.Dataset:
    return sl.Dataset.from_arrays(*draw(COUNT), name="beans")


@pytest.fixture(scope="module")
def run(beans: sl.Dataset, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    return sl.train(beans, out=tmp_path_factory.mktemp("runs") / "a", **QUICK)


def write_table(photos: Path, path: Path) -> list[tuple[str, str]]:
    rows = [(str(file), file.parent.name) for file in sorted(photos.rglob("*.png"))]
    if path.suffix == ".csv":
        text = io.StringIO()
        csv.writer(text).writerows([("file", "roast"), *rows])
        path.write_text(text.getvalue())
    else:
        path.write_text(json.dumps([{"file": file, "roast": roast} for file, roast in rows]))
    return rows


def test_a_dataset_is_made_of_anything_that_holds_labels(photos: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    column = {"label": "roast"}
    write_table(photos, tmp_path / "t.json")
    rows = write_table(photos, tmp_path / "t.csv")
    frame = pandas.DataFrame([*rows, (None, "Green")], columns=["file", "roast"])
    x, y = draw(12)
    for data in (
        sl.Dataset.from_folder(photos),
        sl.Dataset.from_csv(tmp_path / "t.csv", column=column),
        sl.Dataset.from_manifest(tmp_path / "t.json", column=["label=roast"]),
        sl.Dataset.from_dataframe(frame, column=column),
        sl.Dataset.from_arrays(x, y),
        sl.Dataset.from_arrays(x, [coffee_beans.CLASSES.index(name) for name in y], classes=coffee_beans.CLASSES),
        sl.Dataset.from_source("beans:12@32"),
    ):
        assert len(data) == 12
        assert data.classes == tuple(sorted(coffee_beans.CLASSES))
        assert set(data.counts.values()) == {3}
        assert "12 images in 4 classes" in repr(data)
        assert "<table>" in data._repr_html_()


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([np.array(["cat", "dog"]), np.array(["dog"])], ("cat", "dog")),
        ([("cat", "dog"), ("dog",)], ("cat", "dog")),
        ([b"cat", b"dog"], ("cat", "dog")),
        ([np.float32(1), np.float32(2)], ("1", "2")),
    ],
    ids=["arrays", "tuples", "bytes", "NumPy's numbers"],
)
def test_labels_of_a_frame_are_read_whatever_holds_them(
    photos: Path, labels: list[Any], classes: tuple[str, ...]
) -> None:
    pandas = pytest.importorskip("pandas")
    paths = sorted(map(str, photos.rglob("*.png")))[:2]
    frame = pandas.DataFrame({"path": paths, "label": pandas.Series(labels, dtype=object)})
    assert sl.Dataset.from_dataframe(frame).classes == classes


@pytest.mark.parametrize(("root", "name"), [("", "dataframe"), ("photos", "photos")])
def test_a_frame_is_not_named_after_the_current_folder(root: str, name: str, tmp_path: Path) -> None:
    frame = pytest.importorskip("pandas").DataFrame({"path": ["a.png"], "label": ["a"]})
    folder = tmp_path / root
    folder.mkdir(exist_ok=True)
    Image.fromarray(draw(1)[0][0]).save(folder / "a.png")
    with contextlib.chdir(folder):
        options: dict[str, Any] = {"root": folder} if root else {}
        assert sl.Dataset.from_dataframe(frame, **options).index.name == name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.train("beans:8", devices="few"), "`devices` expects a number, at least 1, or all, not 'few'."),
        (lambda: sl.train("beans:8", track="paper"), "`track` cannot be 'paper'"),
        (lambda: sl.train("beans:8", column=["label"]), "`column` expects ROLE=NAME such as label=breed"),
        (lambda: sl.train("beans:8", num_workers=2), "`num_workers` cannot be combined with `engine` local"),
        (lambda: sl.describe("quick", size="big"), "`size` big is not an image size"),
    ],
    ids=["devices", "track", "column", "engine", "size"],
)
def test_messages_name_the_arguments_of_python(call: Callable[[], object], message: str) -> None:
    with pytest.raises(sl.UsageError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "--" in caught.value.message, "the command line has options"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  # our own


def test_errors_of_properties_and_of_iterators_name_arguments(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("file,kind\na.jpg,cat\n")
    with pytest.raises(sl.DataError, match=re.escape('Name it with `column=["label=NAME"]`')):
        _ = sl.Dataset(table).classes

    @check_types
    def count() -> Iterator[int]:
        yield 1
        raise sl.UsageError("Leave out --no-cache.")

    numbers = count()
    assert next(numbers) == 1
    with pytest.raises(sl.UsageError, match="Leave out `cache=False`"):
        next(numbers)


def test_a_report_is_shown_in_a_line(run: sl.Run) -> None:
    ev = run.classifier.evaluate()
    assert re.fullmatch(
        r"EvaluationReport\(test, \d+ images?: accuracy .*; calibration, .*errors, .*\)", repr(ev.report)
    )
    assert re.fullmatch(r"EvaluationResult\(\d+ images?: accuracy [^;]*\)", repr(ev.result))


def test_empty_arrays_are_called_so() -> None:
    with pytest.raises(sl.DataError, match="no images: the arrays are empty"):
        _ = sl.Dataset.from_arrays(np.zeros((0, 8, 8, 3), np.uint8), []).classes


@pytest.mark.parametrize("names", [("path", "label", "label"), ("path", "label", 1, "1"), ("path", "label", "label ")])
def test_a_frame_whose_columns_have_one_name_is_refused(names: tuple[Any, ...]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["a.png", *"abc"], ["b.png", *"abc"]]).iloc[:, : len(names)]
    frame.columns = list(names)
    repeated = str(names[-1]).strip()
    with pytest.raises(sl.DataError, match=f"has 2 columns called '{repeated}'.*: rename or drop the others"):
        sl.Dataset.from_dataframe(frame)


def test_values_with_arrays_are_compared_without_them() -> None:
    """The == of two arrays is an array, which has no truth value."""
    mask, heat = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32)
    for make in (lambda: MaskPrediction("a.png", mask), lambda: Explanation("a.png", "gradcam", heat=heat)):
        value, other = make(), make()
        assert value == value  # noqa: PLR0124
        assert value != other
        assert len({value, other}) == 2
    assert "array" not in repr(MaskPrediction("a.png", mask))
    curves = [LearningCurve(2, 10, 1.0, (), fitted=np.zeros((3, 4))) for _ in range(2)]
    assert curves[0] == curves[1]


def test_each_label_of_an_image_is_a_class_of_its_dataset(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))[:3]
    rows = zip(files, ("cat;tree", "tree", ""), ("train", "train", "test"), strict=True)
    text = "path,labels,split\n" + "".join(f"{path},{labels},{split}\n" for path, labels, split in rows)
    (tmp_path / "labels.csv").write_text(text)
    data = sl.Dataset.from_csv(tmp_path / "labels.csv", set={"model.task": "multi_label"})
    assert data.counts == {"cat": 1, "tree": 2}
    assert data.classes == ("cat", "tree")
    assert "3 images in 2 classes" in repr(data)
    assert "<td>tree</td><td>2</td><td>2</td><td>0</td>" in data._repr_html_()


def test_a_dataset_can_be_pickled_before_and_after_it_is_read(photos: Path) -> None:
    x, y = draw(12)
    for data in (sl.Dataset.from_folder(photos), sl.Dataset.from_arrays(x, y), sl.Dataset("beans:12@32")):
        counts = data.counts
        assert pickle.loads(pickle.dumps(data)).counts == counts  # noqa: S301  # pickled by this test


def test_an_unread_dataset_is_described_without_reading_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    data = sl.Dataset.from_folder(tmp_path / "empty")
    assert "not read yet" in repr(data)
    assert "not read yet" in data._repr_html_()
    with pytest.raises(sl.DataError, match="No images"):
        len(data)


def test_images_in_memory_are_counted_without_reading_them() -> None:
    assert repr(sl.Dataset.from_arrays(*draw(12))) == "Dataset('arrays', 12 images)"


def test_arrays_may_state_their_splits() -> None:
    x, y = draw(12)
    data = sl.Dataset.from_arrays(x[:8], y[:8], split="train") + sl.Dataset.from_arrays(x[8:], y[8:], split="test")
    assert [image.split for image in data.index.images] == ["train"] * 8 + ["test"] * 4
    assert "<th>train</th><th>test</th>" in data._repr_html_()


def _rows_of_hugging_face() -> Any:
    """Return what seems to be a data set of the package `datasets`."""
    return type("Dataset", (list,), {"__module__": "datasets.arrow_dataset", "to_pandas": None})([{"label": 0}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sl.Dataset.from_folder("nowhere"), "There is no folder 'nowhere'"),
        (lambda: sl.Dataset.from_folder("cifar10"), r"Dataset\.from_source\('cifar10'\)"),
        (lambda: sl.Dataset.from_csv("t.json"), r"Dataset\.from_manifest"),
        (lambda: sl.Dataset.from_manifest("nowhere.csv"), "There is no file"),
        (lambda: sl.Dataset.from_source("cifar11"), "There is no data set 'cifar11'"),
        (
            lambda: sl.Dataset.from_arrays(np.zeros((2, 8, 8, 3)), [0, 1]),  # type: ignore[arg-type]
            r"got float64 \[2, 8, 8, 3\]: its values are fractions, so use \(255 \* x\)",
        ),
        (lambda: sl.Dataset.from_arrays(np.zeros((2, 8, 8, 3), np.uint8), [0]), "2 images but 1 label"),
        (lambda: untyped.Dataset.from_arrays(draw(2)[0], [0, 1], classes=2), "classes must be a list of names"),
        (lambda: sl.Dataset.from_arrays(*draw(4), split="dev"), "no split 'dev'"),  # type: ignore[arg-type]
        (lambda: sl.Dataset.from_arrays(draw(4)[0], np.eye(4)), r"4 images but 16 labels: .*y\.argmax\(1\)"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], ["a", float("nan")]), r"arrays\[1\] has no label \(nan\)"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], np.array(["a", None])), r"arrays\[1\] has no label \(None\)"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], ["a", "c"], classes=["a", "b"]), "'c' is a label but not one of"),
        (
            lambda: sl.Dataset.from_arrays([draw(1)[0][0], draw(1)[0][0, :8]], ["a", "b"]),  # type: ignore[arg-type]
            r"not one array: bring them to one size and use np\.stack\(x\)",
        ),
        (
            lambda: sl.Dataset.from_arrays(cast("Any", [(draw(1)[0][0], 0), (draw(1)[0][0, :8], 1)]), [0, 1]),
            r"The items of x are tuples, such as an image with its label: give the images alone",
        ),
        (lambda: untyped.Dataset.from_arrays(iter(draw(2)[0]), [0, 1]), r"x is of the type .*iterator: give one uint8"),
        (lambda: untyped.Dataset.from_arrays(None, [0, 1]), "x is of the type NoneType: give one uint8 array"),
        (lambda: untyped.Dataset.from_arrays([Path("a.png")], ["a"]), "x holds paths, not pixels"),
        (lambda: untyped.Dataset.from_arrays("photos", ["a"]), r"use Dataset\.from_folder for a folder"),
        (lambda: sl.Dataset.from_arrays(np.array([*draw(2)[0], None], object)[:2], [0, 1]), r"use np\.stack\(x\)"),
        (
            lambda: sl.Dataset.from_arrays(draw(2)[0].reshape(2, -1), [0, 1]),
            r"use x\.reshape\(len\(x\), height, width\)",
        ),
        (
            lambda: sl.Dataset.from_arrays(draw(2)[0], [{"a"}, {"a", "b"}]),
            r"arrays\[0\] has the label \{'a'\}: give one",
        ),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], [["a", "b"], ["a", "b"]]), "2 images but 4 labels: give one label"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], ["a", ""]), r"arrays\[1\] has no label \(''\)"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], np.array([False, True]), classes=["a", "b"]), r"y\.astype\(int\)"),
        (
            lambda: untyped.Dataset.from_arrays(draw(2)[0], [0, 1], classes=["a", None]),
            r"none of them missing, not \['a', N",
        ),
        (
            lambda: untyped.Dataset.from_arrays(draw(2)[0], [0, 1], classes={0: "a", 1: "b"}),
            "in the order of their number",
        ),
        (
            lambda: untyped.Dataset.from_arrays(*draw(2), split=np.array(["train", "test"])),
            "split must be a string, not",
        ),
        (lambda: untyped.train(*draw(2)), r"takes only data by position: .* data is Dataset\.from_arrays\(x, y\)"),
        (
            lambda: sl.Dataset.from_dataframe(pandas_frame([b"png"], ["a"])),
            "The column 'path' .* holds images, not paths",
        ),
        (
            lambda: sl.Dataset.from_dataframe(pandas_frame([*draw(1)[0]], ["a"])),
            r"or use Dataset\.from_arrays\(np\.stack\(frame\['path'\]\), y\) if they have one size",
        ),
        (
            lambda: sl.Dataset.from_dataframe(pandas_frame(["a.png"], ["a"]).rename(columns={"label": "roast"})),
            r"for the labels: its columns are path, roast\. Name it with `column=\[\"label=NAME\"\]`",
        ),
        (
            lambda: sl.Dataset.from_dataframe(pandas_frame(["a.png"], ["a"])),
            r'relative to with `set=\["data\.root=FOLDER"\]`, or the column',
        ),
        (
            lambda: sl.Dataset.from_arrays(draw(2)[0], [*np.zeros((2, SIDE, SIDE), np.uint8)]),
            "2,048 labels: give one label for each image; for several, or masks, save",
        ),
        (sl.Dataset.from_folder, "takes one or more paths"),
        (lambda: sl.Dataset.from_folder(["photos"]), "one or more paths"),  # type: ignore[arg-type]
        (lambda: sl.Dataset(None), "not from NoneType"),  # type: ignore[arg-type]
        (lambda: sl.Dataset(cast("Any", {"photos": 1})), "not from dict"),
        (lambda: sl.Dataset(""), "No source given: pass a folder"),
        (lambda: sl.Dataset.from_folder(""), "No source given: pass"),
        (lambda: sl.Dataset([]).classes, "No source given"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], [["a"], ["a", "b"]]), "labels are rows of different lengths"),
        (
            lambda: sl.Dataset.from_arrays(draw(2)[0], cast("Any", {"a", "b"})),
            "must be a list or an array with one for",
        ),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], cast("Any", None)), "must be a list or an array with one for each"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], [0, 1], classes="ab"), "a list of names in the order of their"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], [0, 1], classes=cast("Any", {"a", "b"})), "in the order of their"),
        (lambda: sl.Dataset.from_arrays(draw(2)[0], [0, 1], classes=["a", "a"]), "a list of different names"),
        (lambda: sl.Dataset.from_arrays(cast("Any", []), []), r"got float64 \[0\]\.$"),
        (lambda: sl.Dataset("digits").preview("a.png", count=0), "count is the number of images, at least 1, not 0"),
        (lambda: sl.push(cast("Any", None), "hf:me/cats"), "model must be a run, a classifier or the path of one"),
        (lambda: sl.Dataset(sl.Dataset("digits")), r"not in a list: join several with \+"),  # type: ignore[arg-type]
        (lambda: sl.train([sl.Dataset("digits")]), r"join several with \+, as in first \+ second"),  # type: ignore[list-item]
        (lambda: sl.Dataset("digits", column="label=a"), r"column is not the string 'label=a', but a list: write \["),
        (lambda: sl.Dataset("digits").check(allow="split-leakage"), "allow is not the string 'split-leakage'"),
        (lambda: sl.Dataset.from_arrays(cast("Any", _GpuTensor()), [0]), r"x cannot be converted .*: use Tensor\.cpu"),
        (
            lambda: sl.Dataset.from_arrays(draw(1)[0], cast("Any", _GpuTensor())),
            r"labels cannot be converted to a NumPy array",
        ),
        (lambda: sl.Dataset(_rows_of_hugging_face()), r"save_to_disk\('folder/'\), then Dataset\.from_folder"),
        (
            lambda: sl.Dataset.from_dataframe(_rows_of_hugging_face()),
            r"not a pandas DataFrame: use frame\.save_to_disk",
        ),
        (lambda: sl.Dataset.from_dataframe([1, 2]), r"of the type builtins\.list, not a pandas DataFrame\.$"),
        (lambda: sl.Dataset(pandas_frame(["a.png"], ["a"])), r"use Dataset\.from_dataframe\(frame\)"),
        (
            lambda: sl.Dataset("photos", set={"train.epochs": 5}),
            r"accepts only settings that begin with data\. or input\.",
        ),
        (lambda: sl.Dataset("photos", set="data.class_level=2"), "a dict or a list"),
        (lambda: sl.Dataset("photos", column={"lable": "roast"}), "'lable'"),
        (lambda: sl.train(np.zeros((2, 8, 8, 3), np.uint8)), r"Dataset\.from_arrays"),  # type: ignore[arg-type]
    ],
)
def test_what_holds_no_labels_is_refused(
    make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sl.SightlineError, match=message):
        make()


def test_check_lists_the_findings(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    labels = sorted(path.name for path in photos.iterdir())
    twin = next((tmp_path / "photos" / labels[0]).iterdir())
    shutil.copy(twin, tmp_path / "photos" / labels[1] / "twin.png")
    report = sl.Dataset.from_folder(tmp_path / "photos").check(html=tmp_path / "doctor.html")
    assert report.errors == 1
    assert report.findings[0].kind == "conflicting-duplicates"
    assert "conflicting-duplicates" in repr(report)
    assert "<td>conflicting-duplicates</td>" in report._repr_html_()
    assert "drop the wrong ones (`write_fixes`" in report.findings[0].advice, "no option of the command line"
    assert report.to_frame()["kind"][0] == "conflicting-duplicates"
    assert (tmp_path / "doctor.html").is_file()
    clean = replace(report, audit=replace(report.audit, findings=()))
    assert repr(clean) == "photos: 13 images in 4 classes, no findings"
    assert list(clean.to_frame().columns) == list(report.to_frame().columns)


def test_a_run_tells_what_it_did(run: sl.Run, beans: sl.Dataset) -> None:
    assert run.status == "complete"
    assert run.config.train.epochs == 2
    assert [epoch.epoch for epoch in run.history] == [1, 2]
    assert list(run.history.to_frame()["epoch"]) == [1, 2]
    assert run.test is not None
    assert f"{run.test.describe_accuracy()} on {run.test.count} test images" in repr(run)
    assert "95% interval" in repr(run)
    assert "srcdoc=" in run._repr_html_()
    assert sl.Run(run.path).result == run.result
    with pytest.raises(sl.ModelError, match="is not a run"):
        sl.Run(run.path / "eval")


@pytest.mark.skipif(os.name == "nt", reason="there are no named pipes in folders")
def test_a_notebook_shows_the_page_of_a_run_without_scripts_and_waits_for_no_pipe(run: sl.Run, tmp_path: Path) -> None:
    assert " sandbox></iframe>" in run._repr_html_()
    copy = sl.Run(shutil.copytree(run.path, tmp_path / "run"))
    (copy.path / "report.html").unlink()
    os.mkfifo(copy.path / "report.html")
    assert "<th>epoch</th>" in copy._repr_html_()


def test_a_run_that_is_gone_is_not_taken_for_an_empty_one(run: sl.Run, tmp_path: Path) -> None:
    opened = sl.Run(shutil.copytree(run.path, tmp_path / "run"))
    opened.path.rename(tmp_path / "moved")
    loaded = sl.load(copy := shutil.copytree(run.path, tmp_path / "copy"))
    shutil.rmtree(copy)
    for read in (
        lambda: opened.history, lambda: opened.status, lambda: opened.config, lambda: sl.Run(opened.path),
        loaded.evaluate, lambda: sl.load(copy),
    ):  # fmt: skip
        with pytest.raises(sl.ModelError, match=r"(There is no folder|no such file or folder)"):
            read()
    assert repr(opened) == f"Run({str(opened.path)!r}, moved or deleted)"
    assert "moved or deleted" in opened._repr_html_()


def test_a_run_that_was_interrupted_has_no_result_yet(run: sl.Run, tmp_path: Path) -> None:
    stopped = sl.Run(shutil.copytree(run.path, tmp_path / "run"))
    info = json.loads((stopped.path / "run.json").read_text())
    del info["result"]
    (stopped.path / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    for read in (lambda: stopped.result, lambda: stopped.validation, lambda: stopped.test):
        with pytest.raises(sl.ModelError, match=r"has no result yet: .*interrupted.*sightline resume"):
            read()


def test_a_path_is_not_a_classifier(run: sl.Run) -> None:
    with pytest.raises(sl.UsageError, match=r"Classifier opens no files: use sightline\.load\('runs/a'\)"):
        untyped.Classifier("runs/a")


@pytest.mark.parametrize(
    "item",
    [(draw(1)[0][0], "light"), [draw(1)[0], np.zeros(1)], ["a.png", "b.png"]],
    ids=["image and label", "batch", "nested paths"],
)
def test_pairs_and_batches_are_distinguished_from_images(run: sl.Run, item: Any) -> None:
    with pytest.raises(sl.UsageError, match=r"An item of images is a (tuple|list), .*image for image, label in pairs"):
        run.classifier.predict([item])


def test_the_history_shows_no_empty_columns(run: sl.Run) -> None:
    heading = repr(run.history).splitlines()[0].split()
    assert "val_accuracy" in heading
    assert not {"val_mean_iou", "penalty"} & {*heading}
    assert "penalty" not in run.history._repr_html_()
    assert "penalty" in run.history.to_frame(), "with the same columns whatever they hold"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda run: run.classifier.predict("a.png", top="3"), "top must be a whole number, not the string '3'."),
        (lambda run: run.classifier.predict("a.png", top=True), "top must be a whole number, not True."),
        (lambda run: run.classifier.evaluate(coverage="0.9"), "coverage must be a number, not the string '0.9'."),
        (lambda run: run.resume(epochs=2.5), "epochs must be a whole number, not 2.5."),
        (lambda run: run.compare(3), "compare takes runs or their paths, not 3."),
        (lambda run: run.classifier.compress(methods=[3]), "methods must be a string or a list of strings, not [3]."),
        (
            lambda run: run.classifier.compress(methods=[]),
            "No compression method is given: choose from shrink-head, prune, distill, int8, float16.",
        ),
        (
            lambda run: run.classifier.compress(max_drop=float("nan")),
            "max_drop is a drop in percentage points, from 0 to 100, not nan.",
        ),
        (
            lambda run: run.classifier.compress(max_drop=float("inf")),
            "max_drop is a drop in percentage points, from 0 to 100, not inf.",
        ),
        (
            lambda run: run.classifier.compress(max_params=0),
            "max_params is a number of parameters, at least 1, not 0.",
        ),
        (
            lambda run: run.classifier.compress(epochs=-1),
            "epochs is the number of epochs of each fine-tuning, at least 0, not -1.",
        ),
        (
            lambda _: untyped.learning_curve("photos", more=5),
            "more is a list of numbers of additional labels, at least 1 each, not 5.",
        ),
        (
            lambda _: untyped.learning_curve("photos", more=[2.5]),
            "more is a list of numbers of additional labels, at least 1 each, not [2.5].",
        ),
        (lambda _: untyped.describe("quick", steps=0), "steps is the number of steps in an epoch, at least 1, not 0."),
        (lambda _: untyped.train("photos", epochs="5"), "epochs must be a whole number, not the string '5'."),
        (lambda _: untyped.train("photos", seed="a"), "seed must be a whole number, not the string 'a'."),
        (
            lambda _: untyped.train("photos", learning_rate=float("nan")),
            "train.optimizer.learning_rate must be a finite number, not nan.",
        ),
        (lambda _: untyped.train("photos", devices=0), "`devices` expects a number, at least 1, or all, not 0."),
        (lambda _: untyped.train("photos", cache="no"), "cache must be True or False, not the string 'no'."),
        (lambda _: untyped.Dataset.from_csv(3), "path must be a string or a path, not 3."),
        (lambda _: untyped.Run(b"runs"), "path must be a string or a path, not a bytes."),
        (lambda _: untyped.load(""), "path is empty: give a path."),
        (lambda _: untyped.train("photos", weights=""), "weights is empty: give a path."),
        (lambda _: untyped.train("photos", recpie="digits"), "train() has no option 'recpie'. Did you mean 'recipe'?"),
        (lambda _: untyped.train("photos", mixup=1), "train() has no option 'mixup': use set={'augment.mixup': ...}."),
        (
            lambda _: untyped.sweep("photos", "s.toml", mixup=1),
            "sweep() has no option 'mixup': use set={'augment.mixup': ...}.",
        ),
        (
            lambda run: run.classifier.predict("a.png", epochs=1),
            "predict() has no option 'epochs'. Valid names: callback, images, knn, progress, reference, set, top.",
        ),
        (lambda _: untyped.Dataset("photos", page=2), "Dataset() has no option 'page': use set={'input.page': ...}."),
        (
            lambda _: untyped.Dataset.from_folder("photos", mixup=1),
            "from_folder() has no option 'mixup'. Valid names: set.",
        ),
        (lambda _: untyped.Run("a", rseult=1), "Run() has no option 'rseult'. Did you mean 'result'?"),
        (lambda run: run.classifier.predict("a.png", tops=1), "predict() has no option 'tops'. Did you mean 'top'?"),
        (lambda _: untyped.load(None), "path must be a string or a path, not None."),
        (lambda _: untyped.describe("quick", classes="4"), "classes must be a whole number, not the string '4'."),
        (lambda _: untyped.describe("quick", set=None), 'set must be a dict or a list of "KEY=VALUE", not None.'),
        (lambda _: untyped.Dataset("photos", column=3), 'column must be a dict or a list of "ROLE=NAME", not 3.'),
        (lambda _: untyped.train("photos", allow=[3]), "allow must be a list of strings, not [3]."),
        (lambda _: untyped.train("photos", track=3), "track must be a string or a list of strings, not 3."),
        (
            lambda _: untyped.train("photos", set={"train.epochs": print}),
            "A setting is a number, a text, True, False or a list of these, not <built-in function print>.",
        ),
        (lambda run: run.classifier.evaluate(tta=["flip"]), "tta must be a string, not a list."),
        (
            lambda run: run.classifier.predict("a.png", 3),
            "predict() takes only images by position: name the options, as in top=....",
        ),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_by_its_name(run: sl.Run, call: Callable[[Any], Any], sentence: str) -> None:
    with pytest.raises(sl.UsageError, match=f"^{re.escape(sentence)}$"):
        call(run)


def test_numbers_of_numpy_are_numbers(run: sl.Run, photos: Path) -> None:
    image = next(photos.rglob("*.png"))
    assert len(run.classifier.predict(image, top=cast("int", np.int64(1)))) == 1


@pytest.mark.parametrize("wrong", [print, sl.Callback])
def test_a_callback_that_is_none_is_refused_before_any_work(
    run: sl.Run, beans: sl.Dataset, tmp_path: Path, wrong: Any
) -> None:
    clf, (x, _) = run.classifier, draw(2)
    for call in (
        lambda: sl.train(beans, out=tmp_path / "run", callback=wrong, **QUICK),
        lambda: clf.predict(x, callback=wrong),
        lambda: clf.iter_predictions(x, callback=wrong),
        lambda: clf.iter_embeddings(x, callback=wrong),
    ):
        with pytest.raises(sl.UsageError, match=r"expected an object of a subclass of sightline\.Callback"):
            call()
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_to_an_address(
    run: sl.Run, beans: sl.Dataset, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clf, data, out = run.classifier, sl.Dataset.from_folder(photos), "s3://bucket/a"
    for write in (
        lambda: sl.train(beans, out=out, **QUICK),
        lambda: sl.sweep(data, "transfer-table", out=out),
        lambda: sl.pull("hf:me/cats", out),
        lambda: sl.describe("quick", schedule=f"{out}.png"),
        lambda: sl.learning_curve(data, figure=f"{out}.png"),
        lambda: run.compare("runs/b", figure=f"{out}.png"),
        lambda: data.preview(f"{out}.png"),
        lambda: data.check(html=out),
        lambda: data.check(write_fixes=out),
        lambda: data.check(write_folders=out),
        lambda: clf.explain(draw(1)[0], out=out),
        lambda: clf.export(f"{out}.zip", to="bundle"),
        lambda: clf.add_class("fox", draw(3)[0], out=out),
        lambda: clf.embed(draw(1)[0]).save(f"{out}.npy"),
    ):
        with pytest.raises(
            sl.UsageError, match=r"^s3://bucket/a[a-z.]* is an address, but this is written to a local disk"
        ):
            write()
    assert not list(tmp_path.iterdir())


def test_a_path_may_begin_with_the_home_folder(
    run: sl.Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(photos)
    shutil.copytree(run.path, tmp_path / "run")
    image = shutil.copy(next(photos.rglob("*.png")), tmp_path / "1.png")
    clf = sl.load("~/run")
    assert sl.Run("~/run").path == clf.path == tmp_path / "run"
    assert clf.predict("~/*.png") == clf.predict(image)
    assert clf.embed("~/1.png").save("~/e.npy") == tmp_path / "e.npy"
    assert len(clf.similar(str(next(photos.rglob("*.png"))), "~/e.npy")) == 1
    assert sl.Dataset.from_folder(photos).preview("~/grid.png").figure == str(tmp_path / "grid.png")
    sl.Dataset.from_folder(photos).check(html="~/page.html", write_fixes="~/fixes.jsonl")
    assert sl.Dataset.from_folder(photos).check(patch="~/fixes.jsonl").patch is None
    clf.explain("~/1.png", out="~/maps", method="occlusion")
    assert {path.name for path in tmp_path.iterdir()} == {
        "run", "1.png", "e.npy", "e.npy.jsonl", "grid.png", "page.html", "fixes.jsonl", "maps",
    }  # fmt: skip
    with pytest.raises(sl.DataError, match="There is no folder '~nobody-of-this-name/a'"):
        sl.Dataset.from_folder("~nobody-of-this-name/a")


def test_options_have_the_names_of_the_command_line(beans: sl.Dataset, tmp_path: Path) -> None:
    trained = sl.train(
        beans, recipe="quick", model="cifar10-simple", weights="none", epochs=1, batch_size=16, learning_rate=0.01,
        seed=3, cache=False, set=["train.optimizer.name=sgd", "model.hidden_units=[64]"], out=tmp_path / "b",
    )  # fmt: skip
    settings = trained.config
    assert (settings.train.epochs, settings.train.batch_size, settings.seed) == (1, 16, 3)
    assert (settings.train.optimizer.name, settings.train.optimizer.learning_rate) == ("sgd", 0.01)
    assert settings.data.cache is False


def test_probabilities_and_score_are_those_of_the_predictions(run: sl.Run) -> None:
    x, y = draw(8, seed=1)
    clf = run.classifier
    p = clf.predict_proba(x)
    assert p.dtype == np.float32
    assert p.shape == (8, 4)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    predictions = clf.predict(x)
    assert [one.label for one in predictions] == [clf.classes[k] for k in p.argmax(1)]
    np.testing.assert_allclose([float(one.probability or 0) for one in predictions], p.max(1), atol=1e-6)
    assert clf.score(x, y) == np.mean([one.label == label for one, label in zip(predictions, y, strict=True)])
    assert clf.score(x, [str(label).encode() for label in y]) == clf.score(x, y)
    assert clf.predict_proba(x[0]).shape == (1, 4), "one image is a batch of one"
    assert clf.predict_proba([]).shape == (0, 4)


def test_what_cannot_be_scored_is_refused(run: sl.Run, tmp_path: Path) -> None:
    clf = run.classifier
    x, _ = draw(2)
    with pytest.raises(sl.DataError, match=r"y holds 'Burnt', which is not a class"):
        clf.score(x, ["Dark", "Burnt"])
    with pytest.raises(sl.DataError, match=r"y holds the number 1, .*np\.array\(classes\)\[y\]"):
        clf.score(x, [1, 0])
    with pytest.raises(sl.DataError, match=r"y has the shape \[2, 4\], .*y\.argmax\(1\)"):
        clf.score(x, np.eye(4)[:2])
    with pytest.raises(sl.DataError, match="got 2 images and 1 label"):
        clf.score(x, ["Dark"])
    with pytest.raises(sl.DataError, match="y must be a list or an array with a label for each image, not None"):
        clf.score(x, cast("Any", None))
    with pytest.raises(sl.DataError, match="y has rows of different lengths"):
        clf.score(x, [["Dark"], ["Dark", "Light"]])
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(sl.DataError, match=r"broken\.jpg cannot be classified"):
        clf.predict_proba(tmp_path / "broken.jpg")


def test_images_come_in_any_form(run: sl.Run, tmp_path: Path) -> None:
    x = draw(3)[0]
    path = tmp_path / "bean.png"
    Image.fromarray(x[0]).save(path)
    clf, content = run.classifier, path.read_bytes()
    expected = clf.predict_proba(x[:1])
    with path.open("rb") as file:
        np.testing.assert_array_equal(clf.predict_proba(file), expected)
    forms: list[Any] = [
        path, str(path), content, bytearray(content), memoryview(content), io.BytesIO(content), Image.open(path), x[0],
        [io.BytesIO(content)], [x[0]], np.array([str(path)]), np.array([path], object), (image for image in x[:1]),
        _Tensor(x[0]), _Tensor(x[:1]), [_Tensor(x[0])],
    ]  # fmt: skip
    for image in forms:
        np.testing.assert_array_equal(clf.predict_proba(image), expected)


def pandas_frame(paths: list[Any], labels: list[str]) -> Any:
    return pytest.importorskip("pandas").DataFrame({"path": paths, "label": labels})


def close(file: io.BytesIO) -> io.BytesIO:
    file.close()
    return file


def read_to_end(content: bytes) -> io.BytesIO:
    file = io.BytesIO(content)
    file.read()
    return file


class _GpuTensor:
    """What does not convert to a NumPy array, as a tensor on a GPU."""

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.uint8]:
        raise TypeError("use Tensor.cpu()")


class _Tensor:
    """What converts to a NumPy array, as the tensors of PyTorch and TensorFlow do."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self._values = values

    def __array__(self, *_: Any, **__: Any) -> NDArray[np.uint8]:
        return self._values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: x / 255,
            r"Image \[0\]: .* got float64 \[32, 32, 3\]: its values are fractions, so use \(255 \* x\)",
        ),
        (lambda x: x.astype(np.float32), r"use x\.round\(\)\.astype\('uint8'\)\.$"),
        (lambda x: x.astype(int), r"use x\.astype\('uint8'\)\.$"),
        (lambda x: x.astype(np.uint16) * 257, r"its values run from \d+ to .*scale them to 0 to 255"),
        (lambda x: x > 100, r"use 255 \* x\.astype\('uint8'\)\.$"),
        (lambda x: x.transpose(2, 0, 1), r"one image with its channels first or 3 grayscale images"),
        (lambda x: x.transpose(2, 0, 1)[None], r"the channels come first, so use x\.transpose\(0, 2, 3, 1\)\.$"),
        (lambda x: [x.transpose(2, 0, 1)], r"Image \[0\]: .*come first, so use x\.transpose\(1, 2, 0\)\.$"),
        (lambda x: x[..., :2], r"it has 2 channels, so choose one of them, as in x\[\.\.\., 0\]\.$"),
        (lambda x: x[:4, :4, :2], r"it has 2 channels"),
        (lambda x: np.tile(x, 2)[None], r"got uint8 \[1, 32, 32, 6\]: it has 6 channels, so choose three of them"),
        (lambda x: x[..., [0] * 5], r"got uint8 \[32, 32, 5\]: it has 5 channels, so choose three of them"),
        (lambda x: [x, x.tolist()], r"Image \[1\]: .*use np\.array\(x, 'uint8'\)\.$"),
        (lambda x: np.zeros((2, 2, 8, 8, 3), np.uint8), r"got uint8 \[2, 8, 8, 3\]\.$"),
        (lambda x: {"image": x}, "of the type dict"),
        (
            lambda x: [{"image": x, "label": 0}],
            r"Image \[0\] is a row with 'image', 'label': give the column of images",
        ),
        (lambda x: [(x, x[:8])], r"An item of images is a tuple, such as an image with its label"),
        (lambda x: _GpuTensor(), r"images cannot be converted to a NumPy array: use Tensor\.cpu\(\)"),
        (lambda x: [x, _GpuTensor()], r"An image cannot be converted to a NumPy array: use Tensor\.cpu\(\)"),
        (lambda x: None, "of the type NoneType"),
        (lambda x: [x, None], r"Image \[1\] is missing: it is None instead of a path or an image\. Leave it out"),
        (lambda x: [x, float("nan")], r"Image \[1\] is missing: it is nan instead of"),
        (lambda x: pandas_frame(["a.png", None], ["a", "b"])["path"], r"Image \[1\] is missing"),
        (lambda x: pandas_frame([None], ["a"])["path"].astype("string"), r"use frame\['path'\]\.dropna\(\)\.$"),
        (lambda x: np.full_like(x, np.nan, float), "it holds NaN, which is not a brightness"),
        (lambda x: io.StringIO("text"), "text mode"),
        (lambda x: close(io.BytesIO(b"an image")), r"An image file cannot be read \(.*closed file.*\): open it with"),
        (lambda x: read_to_end(b"an image"), r"call seek\(0\) on it"),
        (lambda x: pandas_frame(["a.png"], ["a"]), r"give its column of paths, as in frame\['path'\]"),
        (lambda x: sl.Dataset.from_arrays(x[None], ["a"]), r"images is a Dataset: clf\.evaluate"),
        (lambda x: Embeddings(x[0].astype("f4"), (), (), (), "m"), "images is of the type Embeddings, but images are"),
    ],
)
def test_an_input_that_is_not_an_image_is_rejected_with_the_way_to_make_it_one(
    run: sl.Run, make: Any, message: str
) -> None:
    image = make(draw(1)[0][0])
    for method in (run.classifier.predict_proba, run.classifier.predict):
        with pytest.raises(sl.UsageError, match=message):
            method(image)


@pytest.mark.parametrize("shape", [(3, 28, 28), (30, 16, 8)])
def test_grayscale_models_take_a_stack_of_grayscale_images(shape: tuple[int, ...]) -> None:
    stack = np.zeros(shape, np.uint8)
    assert [image.shape for image in split_images(stack, channels=1)] == [shape[1:]] * shape[0]


def test_an_unknown_option_is_rejected(run: sl.Run) -> None:
    with pytest.raises(sl.UsageError, match="no test-time augmentation 'flp'"):
        run.classifier.evaluate(tta="flp")  # type: ignore[arg-type]
    with pytest.raises(sl.UsageError, match=r"no engine 'kera'\. Did you mean 'keras'"):
        sl.load(run.path, engine="kera")  # type: ignore[arg-type]
    with pytest.raises(sl.UsageError, match="at least 1, not 0"):
        run.classifier.predict(draw(1)[0], top=0)


def test_integer_labels_score_by_the_number_that_they_are(tmp_path: Path) -> None:
    x, y = draw(COUNT)
    numbers = np.array([coffee_beans.CLASSES.index(name) for name in y])
    numbered = sl.train(sl.Dataset.from_arrays(x, numbers), out=tmp_path / "n", **(QUICK | {"epochs": 1}))
    clf = numbered.classifier
    assert clf.classes == ("0", "1", "2", "3")
    assert clf.score(x, numbers) == np.mean(clf.predict_proba(x).argmax(1) == numbers)
    assert clf.score(x, numbers.astype(float)) == clf.score(x, numbers)


def test_integers_are_their_own_names_whichever_others_there_are(tmp_path: Path) -> None:
    x, _ = draw(COUNT)
    y, held_out = np.arange(COUNT) % 12, slice(60, 70)  # of the classes 0 to 9
    train = sl.Dataset.from_arrays(x[:60], y[:60], split="train")
    test = sl.Dataset.from_arrays(x[held_out], y[held_out], split="test")
    assert train.classes == tuple(map(str, range(12)))
    assert test.classes == tuple(map(str, range(10)))
    clf = sl.train(train + test, out=tmp_path / "a", **(QUICK | {"epochs": 1})).classifier
    assert clf.classes == train.classes
    assert clf.evaluate(train + test).split == "test"
    assert clf.evaluate(sl.Dataset.from_arrays(x[70:75], y[:5])).confusion.sum(axis=1).tolist() == [1] * 5 + [0] * 7


def test_predictions_are_a_table(run: sl.Run, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.fromarray(draw(1)[0][0]).save(tmp_path / "one.png")
    predictions = run.classifier.predict([tmp_path / "one.png", tmp_path / "broken.jpg"])
    frame = predictions.to_frame()
    assert list(frame.columns) == ["path", "label", "probability", "decision", "error"]
    assert frame["label"][0] in run.classifier.classes
    assert frame["error"][1]
    assert "broken.jpg" in repr(predictions)
    assert "<td>" in predictions._repr_html_()
    assert [one.path for one in predictions[1:]] == [str(tmp_path / "broken.jpg")]
    for more in (
        predictions + predictions.copy(),
        predictions * 2,
        2 * predictions,
        add(list(predictions), predictions),
    ):
        assert list(more.to_frame().columns) == list(frame.columns)
        assert (len(more), repr(more).count("broken.jpg")) == (4, 2)


def test_a_prediction_shows_what_it_has(run: sl.Run) -> None:
    (p,) = run.classifier.predict(draw(1)[0], top=1)
    assert repr(p) == f"Prediction(path='[0]', label={p.label!r}, probability={p.probability}, top={p.top})"


def test_a_table_without_rows_has_columns(run: sl.Run) -> None:
    predictions = run.classifier.predict([])
    assert list(predictions.to_frame().columns) == ["path", "label", "probability", "decision"]
    assert list(predictions[:1].copy().to_frame()["label"]) == []
    ev = run.classifier.evaluate()
    assert list(ev.errors[:0].to_frame().columns) == list(ev.to_frame().columns)


def test_a_run_on_arrays_gets_thresholds_of_the_same_arrays(run: sl.Run, beans: sl.Dataset) -> None:
    ev = run.classifier.evaluate(coverage=0.8)
    assert ev.split == "test"
    assert ev.thresholds is not None
    predictions = sl.load(run.path).predict(draw(1)[0])
    assert predictions[0].decision is not None, "they are saved with the model"
    assert predictions[0].decision.set is not None
    assert list(predictions.to_frame()["set"]) == [", ".join(predictions[0].decision.set)]
    again = sl.load(run.path).evaluate(beans, target_precision=0.5, conservative=False)
    assert again.split == "test"
    assert again.accuracy == ev.accuracy
    assert again.thresholds is not None
    assert again.thresholds.target_precision == 0.5


def test_without_the_arrays_a_sentence_says_what_is_missing(run: sl.Run, beans: sl.Dataset) -> None:
    clf = sl.load(run.path)
    with pytest.raises(sl.DataError, match=r"trained on images in memory .*give the same data again"):
        clf.evaluate()
    others = sl.Dataset.from_arrays(*draw(12, seed=5))
    assert clf.evaluate(others).split == "other"
    with pytest.raises(sl.DataError, match=r"Thresholds are fitted on validation images.* same data again"):
        clf.evaluate(others, coverage=0.8)
    with pytest.raises(sl.UsageError, match="`column` and `set` say how to read"):
        clf.evaluate(set={"data.class_level": 2})
    with pytest.raises(sl.UsageError, match=r"begin with data\. here.* not 'input.page=2'"):
        clf.evaluate(others, set={"input.page": 2})  # it would change nothing


@pytest.mark.slow
def test_a_run_on_arrays_is_trained_further(run: sl.Run, beans: sl.Dataset, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "b")
    longer = sl.Run(tmp_path / "b", data=beans).resume(epochs=3)
    assert len(longer.history) == 3
    assert longer.classifier.evaluate().accuracy == getattr(longer.test, "accuracy", None)


def test_an_evaluation_shows_its_metrics(run: sl.Run) -> None:
    ev = run.classifier.evaluate()
    assert ev.metrics["accuracy"].value == ev.accuracy == ev.metrics["top_1"].value
    assert "top_1" not in repr(ev), "it is the accuracy"
    metric = ev.metrics["macro_f1"]
    assert metric.value is not None
    assert metric.interval is not None
    assert metric.interval.low <= metric.value <= metric.interval.high
    assert repr(metric).startswith(f"{metric.value:.4g} (95% interval ")
    assert "macro_f1" in repr(ev), "by the name that ev.metrics takes"
    assert "<td>macro_f1</td>" in ev._repr_html_()
    assert len(ev.to_frame()) == ev.confusion.sum()
    assert len(ev.errors) == ev.confusion.sum() - np.trace(ev.confusion)
    assert all(row["label"] != row["predicted"] for row in ev.errors)
    confidences = [row["probability"] for row in ev.errors]
    assert confidences == sorted(confidences, reverse=True)
    assert ev.to_dict()["accuracy"] == ev.accuracy


@pytest.mark.usefixtures("drawn_figures")
def test_the_confusion_matrix_is_a_figure(run: sl.Run, tmp_path: Path) -> None:
    evaluation, path = run.classifier.evaluate(), tmp_path / "confusion.png"
    figure = evaluation.plot_confusion(path)
    with Image.open(io.BytesIO(figure._repr_png_())) as image, Image.open(path) as written:
        assert image.width > 100
        assert image.tobytes() == written.tobytes()
    evaluation.plot_confusion(path)  # in place of the former one, but of no other file
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(sl.OutputError, match="exists and was not written by Sightline"):
        evaluation.plot_confusion(path)


def test_a_classifier_explains_exports_and_describes_itself(run: sl.Run, tmp_path: Path) -> None:
    clf = run.classifier
    (explanation,) = clf.explain(draw(1)[0], method="occlusion")
    assert explanation.heat is not None
    exported = clf.export(tmp_path / "model.onnx")
    assert exported.accepted
    np.testing.assert_allclose(
        sl.load(tmp_path / "model.onnx").predict_proba(draw(4)[0]), clf.predict_proba(draw(4)[0]), atol=1e-4
    )
    with pytest.raises(sl.ModelError, match="was not written"):
        clf.export(tmp_path / "small.onnx", precision="int8", tolerance=0)
    assert not (tmp_path / "small.onnx").exists()
    assert "cifar10-simple" in clf.model_card()
    assert "4 classes: " in repr(clf)
    assert "cifar10-simple" in clf._repr_html_()


def test_a_pickled_classifier_leaves_the_arrays_behind(run: sl.Run) -> None:
    assert run.classifier.trained_on is not None
    copy = pickle.loads(pickle.dumps(run.classifier))  # noqa: S301  # our own
    assert copy.trained_on is None
    np.testing.assert_array_equal(copy.predict_proba(draw(2)[0]), run.classifier.predict_proba(draw(2)[0]))


def test_runs_are_compared(run: sl.Run, tmp_path: Path) -> None:
    run.classifier.evaluate()
    shutil.copytree(run.path, tmp_path / "twin")
    comparison = run.compare(tmp_path / "twin", figure=tmp_path / "curves.png")
    assert [row.name for row in comparison.rows] == ["a", "twin"]
    assert comparison.paired[0].comparison is not None
    assert comparison.paired[0].comparison.difference == 0
    assert "twin vs. a: " in repr(comparison)
    assert repr(comparison).splitlines()[0].split() == ["a", "twin"], "a column for each run"
    assert list(comparison.to_frame()["run"]) == ["a", "twin"]
    assert (tmp_path / "curves.png").is_file()
    with pytest.raises(sl.UsageError, match="given twice"):
        run.compare(run)


def test_a_network_is_described(tmp_path: Path) -> None:
    description = sl.describe("cifar10-simple", classes=4, diagram=tmp_path / "d.svg")
    assert description.classes == 4
    assert (tmp_path / "d.svg").is_file()
    with pytest.raises(sl.UsageError, match="no recipe, model or run"):
        sl.describe("cifar10-simpel")


def test_a_frame_needs_pandas_and_says_so(run: sl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(sl.MissingExtraError, match=r'pandas.* pip install "\.\[pandas\]"'):
        run.history.to_frame()


def test_progress_is_shown_unless_it_is_silenced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress() as display:  # standard error is a file
        display.on_message("indexing")
    assert "indexing" in capsys.readouterr().err
    own = RecordingCallback()
    with show_progress(progress=True, callback=own) as callback:
        callback.on_message("use --folds 5")
    assert own.lines == ["use `folds=5`"], "a Python function has arguments, not options"
    with show_progress(progress=False) as quiet:
        quiet.on_message("indexing")
    with ProgressDisplay() as display, show_progress(callback=display) as of_command:
        of_command.on_message("use --folds 5")
    assert capsys.readouterr().err == "use --folds 5\n"


def test_results_are_shown_in_a_line_or_a_table(run: sl.Run, beans: sl.Dataset, tmp_path: Path) -> None:
    clf = run.classifier
    assert re.fullmatch(
        r"ExportResult\('.*\.onnx', onnx in float32, \d+\.\d+ MB; probabilities differ by at most \S+ on \d+ images\)",
        repr(clf.export(tmp_path / "model.onnx")),
    )
    explanations = clf.explain(draw(1)[0], method="occlusion")
    assert repr(explanations[0]).startswith("Explanation('[0]', ")
    assert "array" not in repr(explanations[0])
    assert list(explanations.to_frame()["method"]) == ["occlusion"]
    description = sl.describe("cifar10-simple", classes=4)
    assert f"{description.parameters:,} parameters" in repr(description)
    assert len(description.to_frame()) == len(description.layers)
    preview = beans.preview(tmp_path / "grid.png")
    assert Image.open(io.BytesIO(preview._repr_png_())).format == "PNG"
