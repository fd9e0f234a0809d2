"""`sightline watch` and `Classifier.watch`: on logs as the server writes them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

import sightline as sl
from command import COLORS, Command, draw_classes
from sightline.api.reference_sample import load_sample
from sightline.api.watching import WatchReport
from sightline.evaluation import validation_sample
from sightline.evaluation.drift import Drift
from sightline.inference import bundle
from sightline.inference.feature_log import FILES, FeatureLog
from sightline.inference.inputs import make_items
from sightline.inference.predictor import ModelOutputs
from sightline.runs import finalize
from watched_log import write_log

Trained = tuple[Path, dict[str, Any]]


def decode_all(classifier: sl.Classifier, folder: Path) -> NDArray[np.uint8]:
    items = make_items(sorted(folder.rglob("*.png")))
    return np.stack([classifier.preprocess.decode(item.read()) for item in items])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_classes(tmp_path_factory.mktemp("reference") / "images", COLORS, 24)


@pytest.fixture(scope="module")
def watched(trained: Trained, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a sample of the images in `reference`, and beside it a quiet log and one of inverted images."""
    classifier = sl.load(trained[0])
    pixels = decode_all(classifier, reference)
    folder = tmp_path_factory.mktemp("watched")
    labels = np.repeat(np.arange(3, dtype=np.int32), 24)
    outputs = classifier.predictor.outputs(pixels)
    loaded = bundle.read(trained[0] / "bundle")
    sample = finalize.make_sample_file(ModelOutputs(outputs, labels), classifier.task, None)
    assert list(sample) == ["validation.npz"]
    bundle.write(bundle.make(loaded.manifest, loaded.model, {**loaded.files, **sample}), folder / "model")
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(pixels))
    write_log(classifier, folder / "quiet.log", pixels[rows])
    write_log(classifier, folder / "drifted.log", np.concatenate([pixels[rows[:20]], 255 - pixels[rows]]))
    return folder


def test_a_quiet_log_is_reported_with_the_images_to_label(sightline: Command, watched: Path) -> None:
    figure = watched / "evidence.png"
    result = sightline("watch", watched / "quiet.log", watched / "model", "--top", 3, "--figure", figure)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["images", "drift", "accuracy"]
    assert "none shown: evidence" in lines[1]
    assert "false alarms: at most 0.05 over all looks" in lines[1]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert len(lines) - lines.index("") == 5  # an empty line, a header, and 3 images


def test_a_drifted_log_exits_with_1_in_every_format(sightline: Command, watched: Path) -> None:
    arguments = ("watch", watched / "drifted.log", watched / "model", "--top", 4)
    text, dumped, table = (sightline(*arguments, "--format", form) for form in ("text", "json", "csv"))
    assert (text.code, dumped.code, table.code) == (1, 1, 1)
    values = json.loads(dumped.out)
    assert values["drifted"]
    assert 20 < values["drift"]["alarm"] <= 92
    assert values["images"] == 92
    assert values["accuracy"]["count"] == 92 - values["drift"]["start"] + 1
    assert any("has drifted" in caveat for caveat in values["accuracy"]["caveats"])
    assert f"alarm at image {values['drift']['alarm']}" in text.out
    assert "not to be trusted" in text.out
    rows = list(csv.DictReader(io.StringIO(table.out)))
    assert [row["id"] for row in rows] == [image["id"] for image in values["label_first"]]
    assert len(rows) == 4
    report = sl.load(watched / "model").watch(watched / "drifted.log", top=4)
    assert report.to_dict() == values
    assert list(report.to_frame()["id"]) == [row["id"] for row in rows]
    assert "label first" in repr(report)
    assert "<table>" in report._repr_html_()


def test_evidence_of_some_hundreds_has_no_exponent() -> None:
    drift = Drift(0.05, 162, 74, "classifier", 896.4, np.zeros(182))
    report = WatchReport("cats.log", "model", 182, "first", "last", drift, None, None, None, ())
    (sentence,) = (text for name, text in report.list_sentences() if name == "drift")
    assert "evidence 900 (" in sentence


def test_a_log_that_may_have_dropped_images_says_so(watched: Path, tmp_path: Path) -> None:
    log = tmp_path / "full.log"
    shutil.copy(watched / "quiet.log", log)
    classifier = sl.load(watched / "model")
    assert classifier.watch(log).notes == ()
    for number in range(1, FILES):
        shutil.copy(watched / "quiet.log", f"{log}.{number}")
    (note,) = classifier.watch(log).to_dict()["notes"]
    assert "may have dropped its oldest images" in note


def test_labeled_images_stand_in_for_a_sample(sightline: Command, watched: Path, reference: Path) -> None:
    lone = watched / "model" / "model.onnx"
    refused = sightline("watch", watched / "quiet.log", lone)
    assert (refused.code, refused.out) == (2, "")
    assert "has no sample of its validation images: give labeled images" in refused.err
    result = sightline("watch", watched / "drifted.log", lone, "--reference", reference, "--format", "json")
    assert result.code == 1
    assert json.loads(result.out)["drift"]["alarm"] is not None


def test_what_cannot_be_watched_is_refused(sightline: Command, watched: Path, tmp_path: Path) -> None:
    model = watched / "model"
    empty = tmp_path / "empty.log"
    write_log(sl.load(model), empty, np.zeros((0, 32, 32, 3), np.uint8))
    other = tmp_path / "other.log"
    FeatureLog(other, "net@" + 64 * "0", ("a",), 1 << 20).close()
    packed = tmp_path / "quiet.log.gz"
    packed.write_bytes(gzip.compress((watched / "quiet.log").read_bytes()))
    for arguments, words in (
        ((empty, model), "has no images yet"),
        ((other, model), "other.log is the log of another model (net 000000000000, not "),
        ((other, model), "cannot be compared: give the model that was served."),
        ((watched / "none.log", model), "cannot be read as a log of features"),
        ((packed, model), "it is compressed: unpack it first"),
        ((watched / "quiet.log", model, "--level", "1"), "between 0 and 1"),
        ((watched / "quiet.log", model, "--figure", "a.svg"), ".png"),
        ((model, watched / "quiet.log"), "The arguments come in this order: `sightline watch cats.log runs/cats`."),
    ):
        result = sightline("watch", *arguments)
        assert (result.code, result.out) == (2, "")
        assert words in result.err


def test_an_export_has_the_sample_as_its_own_graph_computes_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_sample, "MIN_IMAGES", 10)
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    classifier = sl.load(run)
    labeled = classifier.labeled_images().load("validation").subset
    sample = finalize.sample_validation(classifier.task, classifier.predictor, labeled, {})
    loaded = bundle.read(run / "bundle")
    bundle.write(bundle.make(loaded.manifest, loaded.model, {**loaded.files, **sample}), run / "bundle")
    samples = {}
    for precision in ("float32", "int8"):
        sl.load(run).export(tmp_path / f"{precision}.zip", precision=precision, tolerance=1)
        exported = sl.load(tmp_path / f"{precision}.zip")
        samples[precision] = load_sample(exported)
        log = tmp_path / f"{precision}.log"
        write_log(exported, log, labeled.pixels[labeled.rows])
        assert exported.watch(log).drift.alarm is None
    assert samples["float32"].to_bytes() == sample["validation.npz"]
    assert samples["int8"].features.shape == samples["float32"].features.shape
    assert not np.array_equal(samples["int8"].features, samples["float32"].features)


def photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image as another camera takes it: half the resolution, warmer, noisy, and strongly compressed."""
    small = image.resize((max(16, image.width // 2), max(16, image.height // 2)))
    levels = np.asarray(small) * np.array([1.08, 1, 0.88]) + rng.normal(0, 8, (small.height, small.width, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=40)
    return Image.open(file)


@pytest.mark.slow  # trains a head on 600 photographs, and predicts 960
def test_photographs_that_are_dark_blurred_or_of_another_camera_are_found(shared: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = shared / "data/cats_vs_dogs"
    run = sl.train(
        photos / "train", recipe="transfer", out=tmp_path / "run", set={"split.validation": 0.4, "split.test": 0}
    )
    classifier = sl.load(tmp_path / "run")
    assert isinstance(run, sl.Run)
    files = sorted((photos / "test").rglob("*.jpg"))
    originals = [Image.open(files[i]).convert("RGB") for i in rng.permutation(len(files))]
    streams = {
        "quiet": originals,
        "dark": [ImageEnhance.Brightness(image).enhance(0.4) for image in originals],
        "blurred": [image.filter(ImageFilter.GaussianBlur(2)) for image in originals],
        "camera": [photograph(image, rng) for image in originals],
    }
    assert len(originals) >= 200
    for name, images in streams.items():
        path = tmp_path / f"{name}.log"
        write_log(classifier, path, np.stack([classifier.preprocess.apply(image) for image in images]))
        report = classifier.watch(path)
        if name == "quiet":
            assert report.drift.alarm is None
            assert report.accuracy is not None
            assert report.accuracy.accuracy.value is not None
            assert report.accuracy.accuracy.value > 0.9
        else:
            assert report.drift.alarm is not None, name
            assert report.drift.alarm < 500
