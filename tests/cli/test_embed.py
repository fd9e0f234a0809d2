"""`sightline embed` and `sightline similar`, with their Python twins: of runs, bundles, lone files and `imagenet`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sightline as sl
from command import COLORS, Command, draw_classes
from sightline.inference import bundle, embedding_files
from sightline.inference.embeddings import Embeddings, join_embeddings

Trained = tuple[Path, dict[str, Any]]


def read(path: Path) -> Embeddings:
    file = embedding_files.open_file(path)
    return join_embeddings(list(file.iterate()), 0, file.model)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine new images of the classes of the run."""
    return draw_classes(tmp_path_factory.mktemp("new") / "images", COLORS, 3)


@pytest.mark.parametrize("form", ["run", "bundle", "zip", "onnx", "keras"])
def test_every_form_of_a_model_gives_the_same_embeddings(
    form: str, sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    run, loaded = trained[0], bundle.read(trained[0] / "bundle")
    with (tmp_path / "m.zip").open("wb") as file:
        bundle.write_zip(loaded, file)
    (tmp_path / "m.onnx").write_bytes(loaded.model)
    expected = sl.load(run).embed(images)
    if form == "keras":
        embeddings = sl.load(run, engine="keras").embed(images)
    else:
        model = {"run": run, "bundle": run / "bundle"}.get(form, tmp_path / f"m.{form}")
        result = sightline("embed", model, images, "--out", tmp_path / "e.npy")
        assert (result.code, result.out) == (0, "")
        assert result.err == f"9 images: {tmp_path / 'e.npy'}\n"
        embeddings = read(tmp_path / "e.npy")
    assert embeddings.model == expected.model
    assert embeddings.paths == tuple(map(str, sorted(images.glob("*/*.png"))))
    assert embeddings.vectors.shape[0] == 9
    np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=1e-4)


def test_the_embedding_is_the_input_of_the_last_layer(trained: Trained, images: Path) -> None:
    classifier = sl.load(trained[0], engine="keras")
    embeddings = classifier.embed(images)
    kernel, bias = classifier.predictor.model.get_layer("predictions").get_weights()  # type: ignore[attr-defined]
    scale = classifier.predictor.model.get_layer("temperature").scale  # type: ignore[attr-defined]
    logits = (embeddings.vectors @ kernel + bias) * scale
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.predict_proba(str(images)), probabilities, atol=1e-5)


def test_images_that_cannot_be_read_have_rows_that_say_why(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    good = images / "red" / "red-000.png"
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n, then nothing")
    predicted = sightline("predict", trained[0], good, bad, tmp_path / "missing.png", "--format", "json")
    result = sightline("embed", trained[0], good, bad, tmp_path / "missing.png", "--out", tmp_path / "e.csv")
    assert (predicted.code, result.code) == (1, 1)
    reason = predicted.lines[1]["error"]
    assert result.err.splitlines() == [
        f"3 images, 2 of them failed: {tmp_path / 'e.csv'}", f"failed     {bad}: {reason} (the first of 2)",
    ]  # fmt: skip
    embeddings = read(tmp_path / "e.csv")
    assert list(embeddings.errors) == [row.get("error") for row in predicted.lines]
    assert list(embeddings.paths) == [row["path"] for row in predicted.lines]
    assert np.isnan(embeddings.vectors[1:]).all()
    assert list(embeddings.is_valid) == [True, False, False]
    searched = sightline("similar", trained[0], bad, images)
    assert searched.code == 1
    assert searched.out.split(maxsplit=1)[1].strip() == str(embeddings.errors[1])


def test_labels_are_stored_when_asked_for(sightline: Command, trained: Trained, images: Path, tmp_path: Path) -> None:
    result = sightline("embed", trained[0], images, "--labeled", "--out", tmp_path / "e.parquet")
    assert result.code == 0, result.err
    embeddings = read(tmp_path / "e.parquet")
    assert embeddings.labels == ("blue",) * 3 + ("green",) * 3 + ("red",) * 3
    twin = sl.load(trained[0]).embed(sl.Dataset.from_folder(images))
    np.testing.assert_array_equal(twin.vectors, embeddings.vectors)
    assert (twin.labels, twin.paths) == (embeddings.labels, embeddings.paths)
    assert sl.load(trained[0]).embed(images).labels == (None,) * 9


def test_arrays_and_nothing_at_all_have_embeddings(trained: Trained, images: Path) -> None:
    classifier = sl.load(trained[0])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    embeddings = classifier.embed(pixels)
    assert embeddings.paths == ("[0]", "[1]", "[2]")
    assert classifier.embed([]).vectors.shape == (0, embeddings.vectors.shape[1])
    dataset = sl.Dataset.from_arrays(pixels, ["a", "b", "a"])
    assert classifier.embed(dataset).labels == ("a", "b", "a")
    np.testing.assert_array_equal(classifier.embed(dataset).vectors, embeddings.vectors)
    nearest = classifier.similar(pixels[1], embeddings, top=3)[0]
    assert (nearest.image, nearest.path) == ("[0]", "[1]")
    assert nearest.similarity == pytest.approx(1)


@pytest.mark.parametrize("suffix", [None, ".npy", ".parquet", ".csv"])
def test_similar_images_are_the_same_from_a_folder_and_from_a_file(
    suffix: str | None, sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    data, image = images, images / "green" / "green-001.png"
    if suffix is not None:
        data = tmp_path / f"e{suffix}"
        assert sightline("embed", trained[0], images, "--out", data).code == 0
    result = sightline("similar", trained[0], image, data, "--top", "4", "--format", "json")
    assert (result.code, result.err) == (0, "")
    assert [row["rank"] for row in result.lines] == [1, 2, 3, 4]
    assert {row["image"] for row in result.lines} == {str(image)}
    assert str(image) not in {row["path"] for row in result.lines}, "an image is not compared with itself"
    similarities = [row["similarity"] for row in result.lines]
    assert similarities == sorted(similarities, reverse=True)
    twin = sl.load(trained[0]).similar(image, images, top=4)
    assert [row.path for row in twin] == [row["path"] for row in result.lines]
    np.testing.assert_allclose([row.similarity or 0.0 for row in twin], similarities, atol=1e-6)
    text = sightline("similar", trained[0], image, data, "--top", "1").out
    assert text == f"{similarities[0]:.4f}  {twin[0].path}\n"
    table = sightline("similar", trained[0], images / "green", data, "--top", "1", "--format", "csv").out.splitlines()
    assert table[0] == "image,rank,path,similarity,error"
    assert len(table) == 4


def test_embeddings_of_another_model_are_refused(
    sightline: Command, trained: Trained, colors: Path, images: Path, tmp_path: Path
) -> None:
    sl.load(trained[0]).embed(images).save(tmp_path / "e.npy")
    other = tmp_path / "other"
    shutil.copytree(trained[0] / "bundle", other)
    bundle.update_manifest_file(other, weights_sha256=64 * "0")
    result = sightline("similar", other, images / "red" / "red-000.png", tmp_path / "e.npy")
    assert (result.code, result.out) == (2, "")
    assert "holds embeddings of another model (cifar10-simple " in result.err
    assert result.err.count(". ") == 0, "one sentence"
    with pytest.raises(sl.DataError, match="data holds embeddings of another model"):
        sl.load(other).similar(images / "red" / "red-000.png", sl.load(trained[0]).embed(images))


def test_new_thresholds_do_not_change_the_model_of_embeddings(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "bundle", tmp_path / "copy")
    bundle.update_manifest_file(tmp_path / "copy", thresholds={"count": 9, "confidence": 0.5}, temperature=1.5)
    assert sl.load(tmp_path / "copy").feature_model_id == sl.load(trained[0]).feature_model_id


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("embed", "{run}", "{images}", "--out", "{tmp}/e.txt"), "should end with .parquet, .npy or .csv"),
        (
            ("embed", "{run}", "{images}", "--out", "s3://bucket/e.npy"),
            "is written to a local disk: give a local path",
        ),
        (("embed", "{run}", "{images}", "--out", "{tmp}/mine.csv"), "exists and is not a file of embeddings"),
        (("embed", "{run}", "{images}", "--out", "{tmp}/mine.csv/e.npy"), "mine.csv is not writable: Not a directory"),
        (("embed", "{run}", "{tmp}/empty", "--out", "{tmp}/e.npy"), "contains no images"),
        (("embed", "{images}", "{images}", "--out", "{tmp}/e.npy"), "is a folder of images, not a model"),
        (("similar", "{run}", "{images}", "{tmp}/mine.npy"), "is not a file of embeddings"),
        (("similar", "{run}", "{images}", "{tmp}/nowhere"), "The image to compare with cannot be read: "),
        (("similar", "{run}", "{images}", "{tmp}/empty"), "contains no images"),
        (("predict", "{run}", "{run}"), "is a model, not images: name the images"),
        (("predict", "{images}", "{run}"), "The arguments come in this order: `sightline predict runs/cats new/ "),
        (
            ("evaluate", "{images}", "{run}"),
            "The arguments come in this order: `sightline evaluate runs/cats labeled/`.",
        ),
        (("embedding", "x"), "Did you mean 'embed'"),
        (("nearest", "x"), "Did you mean 'similar'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_an_error_that_says_what_to_do(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("mine.csv", "mine.npy"):
        (tmp_path / name).write_text("path,label\n")
    result = sightline(*(a.format(run=trained[0], images=images, tmp=tmp_path) for a in arguments))
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert "Traceback" not in result.err
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "mine.csv", "mine.npy"}


def test_a_bundle_is_searched_without_a_training_framework(trained: Trained, images: Path) -> None:
    code = (
        "import sys; from sightline.cli import main\n"
        "try: main()\nfinally: print(sorted({'keras', 'tensorflow', 'onnx', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    image = images / "red" / "red-000.png"
    completed = subprocess.run(
        [sys.executable, "-c", code, "similar", trained[0] / "bundle", image, images],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert completed.stdout.splitlines()[-1] == "[]", completed.stderr
    assert len(completed.stdout.splitlines()) == 6


@pytest.mark.slow
def test_photographs_of_one_species_are_similar(shared: Path) -> None:
    folder = shared / "data" / "cats_vs_dogs" / "test"
    embeddings = sl.load("imagenet").embed(folder)
    assert embeddings.vectors.shape == (240, 1280)
    rows = sl.load("imagenet").similar(folder, embeddings, top=1)
    same = sum(Path(row.image).parent == Path(str(row.path)).parent for row in rows)
    assert len(rows) == 240
    assert same >= 226  # measured: 231


@pytest.mark.parametrize("suffix", [None, ".npy"])
def test_nearest_neighbors_classify_with_a_class_of_five_images(
    suffix: str | None, sightline: Command, trained: Trained, tmp_path: Path
) -> None:
    """`black` is not a class of the run."""
    data = draw_classes(tmp_path / "reference", COLORS | {"black": (10, 10, 10)}, 5)
    new = draw_classes(tmp_path / "new", {"black": (10, 10, 10), "red": COLORS["red"]}, 6)
    reference = data
    if suffix is not None:
        reference = tmp_path / f"reference{suffix}"
        assert sightline("embed", trained[0], data, "--labeled", "--out", reference).code == 0
    options = ("--knn", "3", "--reference", reference)
    result = sightline("predict", trained[0], new, *options, "--format", "json", "--probabilities")
    assert (result.code, result.err) == (0, "")
    assert [row["label"] for row in result.lines] == ["black"] * 6 + ["red"] * 6
    assert set(result.lines[0]["probabilities"]) == {*COLORS, "black"}
    classifier = sl.load(trained[0])
    twin = classifier.predict(new, knn=3, reference=reference)
    assert [p.probability for p in twin] == pytest.approx([row["probability"] for row in result.lines], abs=1e-4)
    neighbors = classifier.with_neighbors(sl.Dataset.from_folder(data), knn=3)
    assert neighbors.classes == ("black", "blue", "green", "red")
    assert neighbors.score(str(new), ["black"] * 6 + ["red"] * 6) == 1
    np.testing.assert_array_equal(neighbors.embed(new).vectors, classifier.embed(new).vectors)
    for write in (
        neighbors.export,
        neighbors.model_card,
        lambda: neighbors.add_class("fox", new),
        lambda: sl.push(neighbors, "hf:me/cats", dry_run=True),
    ):
        with pytest.raises(sl.ModelError, match="exists in memory only, and no file can hold it"):
            write()


def test_reference_images_that_are_to_be_predicted_are_counted(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    """They are recognized by their features, so those in a file count, too, and a copy under another name."""
    reference = tmp_path / "reference.npy"
    assert sightline("embed", trained[0], images, "--labeled", "--out", reference).code == 0
    new = draw_classes(tmp_path / "new", {"red": COLORS["red"]}, 2)
    shutil.copy(images / "blue" / "blue-001.png", new / "red" / "copy.png")
    for known in (images, reference):
        result = sightline("predict", trained[0], new, "--knn", "3", "--reference", known)
        assert result.code == 0
        assert result.err.startswith("1 image to predict is among the reference images too, by their features: ")


def test_slow_calls_report_their_progress(trained: Trained, images: Path) -> None:
    classifier, events = sl.load(trained[0]), list[tuple[str, int, int]]()

    class Recorder(sl.Callback):
        def on_progress(self, task: str, done: int, total: int) -> None:
            events.append((task, done, total))

    calls: dict[str, Any] = {
        "predicting": lambda: classifier.predict(images, callback=Recorder()),
        "embedding": lambda: classifier.embed(images, callback=Recorder()),
        "embedding 2": lambda: classifier.similar(images / "red" / "red-000.png", [images], callback=Recorder()),
        "embedding 3": lambda: classifier.with_neighbors(images, callback=Recorder()),
        "explaining": lambda: classifier.explain(images, callback=Recorder()),
    }
    for name, call in calls.items():
        events.clear()
        call()
        assert (name.split()[0], 9, 9) in events, name
    events.clear()
    classifier.predict((path for path in images.rglob("*.png")), callback=Recorder())
    assert events[0] == ("predicting", 1, 0), "the images of a generator cannot be counted before"
    assert events[-1] == ("predicting", 9, 9)


def test_reference_images_that_cannot_be_read_are_left_out(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(images, data)
    (data / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = sightline("predict", trained[0], images / "red", "--knn", "3", "--reference", data)
    assert result.code == 0
    assert result.err.startswith("1 reference image cannot be read, e.g. red/bad.png: ")
    assert len(result.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--knn", "3"), "--knn and --reference go together"),
        (("--reference", "{images}"), "--knn and --reference go together"),
        (("--knn", "10", "--reference", "{images}"), "between 1 and 9, the number of reference images, not 10"),
        (("--knn", "1", "--reference", "{tmp}/e.npy"), "has no label"),
        (("--knn", "1", "--reference", "{tmp}/nowhere"), "There is no folder, file or data set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_neighbors_that_cannot_vote_are_an_error(
    sightline: Command, trained: Trained, images: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    sl.load(trained[0]).embed(images).save(tmp_path / "e.npy")
    places = {"images": images, "tmp": tmp_path}
    result = sightline("predict", trained[0], images, *(option.format(**places) for option in options))
    assert (result.code, result.out) == (2, "")
    assert words in result.err
