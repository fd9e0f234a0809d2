"""Data sets by name: generated beans, scikit-learn's digits, and the data sets of Keras."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import shutil
import sys
import tarfile
import urllib.error
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from sightline import backend
from sightline.config import SplitConfig
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.data.sources import named
from sightline.data.sources.named import BEANS_COUNT, BEANS_SIZE, KERAS_DATASETS, is_named, load_named
from sightline.data.storage import GeneratedStore
from sightline.datasets import coffee_beans
from sightline.errors import DataError, MissingExtraError, UsageError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_idx


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("beans", True),
        ("beans:8", True),
        ("beans@64", True),
        ("beans:400@96", True),
        ("beans:400@96#7", True),
        ("beans#7", True),
        ("digits", True),
        ("mnist", True),
        ("fashion_mnist", True),
        ("cifar10", True),
        ("cifar100", True),
        ("beans:", False),
        ("beans@96:400", False),
        ("beans:-5", False),
        ("beans:4e2", False),
        ("beans:400@96 ", False),
        ("Beans", False),
        ("digits:100", False),
        ("mnist.zip", False),
        ("", False),
    ],
)
def test_names(text: str, named: bool) -> None:
    assert is_named(text) is named


# Beans.


@pytest.mark.parametrize(
    ("text", "count", "size", "seed"),
    [
        ("beans", BEANS_COUNT, BEANS_SIZE, 0),
        ("beans:10", 10, BEANS_SIZE, 0),
        ("beans@32", BEANS_COUNT, 32, 0),
        ("beans:10@32", 10, 32, 0),
        ("beans:10@32#5", 10, 32, 5),
    ],
)
def test_beans_of_a_count_a_size_and_a_seed(text: str, count: int, size: int, seed: int) -> None:
    entries = load_named(text).items
    assert len(entries) == count
    assert [e.label for e in entries[:5]] == ["Dark", "Green", "Light", "Medium", "Dark"]
    assert {e.split for e in entries} == {None}
    store = entries[6].store
    assert isinstance(store, GeneratedStore)
    assert store.shape == (size, size, 3)
    np.testing.assert_array_equal(store.read(entries[6].key), coffee_beans.draw(6, size, seed))


def test_a_set_of_beans_is_1200_images_of_224_pixels() -> None:
    assert (BEANS_COUNT, BEANS_SIZE) == (1200, 224)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beans:0", "at least 8 images, two per roast, got 0"),
        ("beans:7@32", "at least 8 images, two per roast, got 7"),
        ("beans@0", "16 to 1024 pixels per side, got 0"),
        ("beans:10@8", "16 to 1024 pixels per side, got 8"),
        ("beans:10@2000", "16 to 1024 pixels per side, got 2000"),
    ],
)
def test_beans_that_cannot_be_drawn(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_index(text)


def identities(text: str) -> list[str]:
    return [p.sha256 for p in build_index(text).images]


def test_a_bean_is_identified_by_generator_version_seed_index_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ten = identities("beans:10@32")
    assert len(set(ten)) == 10
    assert ten == identities("beans:10@32") == identities("beans:20@32")[:10]
    assert not set(ten) & {*identities("beans:10@48"), *identities("beans:10@32#1")}
    monkeypatch.setattr(coffee_beans, "GENERATOR_VERSION", coffee_beans.GENERATOR_VERSION + 1)
    assert not set(ten) & set(identities("beans:10@32"))


@pytest.mark.usefixtures("own_cache")
def test_beans_go_all_the_way() -> None:
    data = build_dataset(build_index("beans:16@32"), PreprocessingSpec(32, 32), SplitConfig(), 0)
    assert data.classes == coffee_beans.CLASSES
    for i, row in enumerate(data.rows):
        np.testing.assert_array_equal(data.pixels[row], coffee_beans.draw(i, 32))
    assert build_dataset(build_index("beans:16@32"), PreprocessingSpec(32, 32), SplitConfig(), 0).cache_hit


# Digits.


def test_digits_are_1797_gray_images_of_ten_classes() -> None:
    source_index = build_index("digits")
    assert (source_index.name, len(source_index.images)) == ("digits", 1797)
    assert {(p.width, p.height, p.grayscale, p.split) for p in source_index.images} == {(8, 8, True, None)}
    assert Counter(p.label for p in source_index.images).keys() == set("0123456789")
    whole = np.stack([source_index.read(i) for i in range(1797)])
    assert whole.dtype == np.uint8
    assert sorted(np.unique(whole).tolist()) == [round(v * 255 / 16) for v in range(17)]


def test_digits_without_scikit_learn_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'scikit-learn.*pip install "\.\[train\]"'):
        load_named("digits")


# What Keras keeps.


REQUESTED_PATHS: list[Path] = []  # where Keras would have put what it failed to fetch


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which Keras looks for data sets, and no network."""
    REQUESTED_PATHS.clear()
    backend.keras()
    home = tmp_path / "keras home"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(home))  # it reads KERAS_HOME once, when imported

    def refuse(url: str, target: str, *_: object) -> NoReturn:
        REQUESTED_PATHS.append(Path(target))
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    return home


@pytest.fixture
def unchecked_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras accept small files of the tests as the original ones."""
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *_, **__: True)


@pytest.mark.parametrize("name", KERAS_DATASETS)
def test_a_set_that_is_not_here_says_what_to_put_where(
    keras_home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        build_index(name)
    message = str(caught.value)
    assert message.startswith(
        f"The data set {name} is not on this machine and could not be downloaded (URL fetch failure"
    )
    assert "Name or service not known" in message
    place = re.search(r"Download (.*) on another machine and put it at (.*)\.$", message)
    assert place is not None
    assert place[1] == KERAS_DATASETS[name].url
    if name == "fashion_mnist":
        assert Path(place[2]).parent == REQUESTED_PATHS[0].parent  # four files
    else:
        assert Path(place[2]) == REQUESTED_PATHS[0]
    assert capsys.readouterr().out == ""  # Keras' own words must not stand where results go


def write_mnist(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{split}": rng.integers(0, 256, (count, 28, 28), np.uint8) if kind == "x" else np.arange(count) % 10
        for split, count in (("train", 30), ("test", 10))
        for kind in "xy"
    }
    np.savez(path, allow_pickle=False, **arrays)


def write_fashion(path: Path) -> None:
    for split, count in (("train", 30), ("t10k", 10)):
        images, labels = np.zeros((count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        images += np.arange(count, dtype=np.uint8)[:, None, None]
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (path.parent / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(encode_idx(array)))


def write_cifar100(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for split, count in (("train", 200), ("test", 100)):
            rng = np.random.default_rng(count)
            batch = {
                b"data": rng.integers(0, 256, (count, 3072)).astype(np.uint8),
                b"fine_labels": (np.arange(count) % 100).tolist(),
            }
            data = pickle.dumps(batch)
            info = tarfile.TarInfo(f"cifar-100-python/{split}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.usefixtures("unchecked_hashes")
@pytest.mark.parametrize(
    ("name", "write_files", "counts", "shape"),
    [
        ("mnist", write_mnist, (30, 10), (28, 28)),
        ("fashion_mnist", write_fashion, (30, 10), (28, 28)),
        ("cifar100", write_cifar100, (200, 100), (32, 32, 3)),
    ],
)
def test_a_set_put_where_the_message_says_is_found(
    keras_home: Path, name: str, write_files: Any, counts: tuple[int, int], shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        build_index(name)
    place = re.search(r"put it at (.*)\.$", str(caught.value))
    assert place is not None
    path = Path(place[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_files(path)
    source_index = build_index(name)
    assert source_index.name == name
    assert Counter(p.split for p in source_index.images) == {"train": counts[0], "test": counts[1]}
    assert [p.label for p in source_index.images[:10]] == list(KERAS_DATASETS[name].classes[:10])
    assert {p.label for p in source_index.images} == set(KERAS_DATASETS[name].classes)
    assert {np.shape(source_index.read(i)) for i in (0, counts[0])} == {shape}
    assert source_index.images[counts[0]].path == f"{name}/test[0]"
    shutil.rmtree(keras_home)


def test_a_damaged_local_file_is_reported(keras_home: Path) -> None:
    (keras_home / "datasets").mkdir()
    (keras_home / "datasets" / "mnist.npz").write_bytes(b"half a download")
    with pytest.raises(DataError, match="The data set mnist is not on this machine and could not be downloaded"):
        build_index("mnist")


def test_the_classes_are_those_that_the_publishers_state() -> None:
    assert {name: len(known.classes) for name, known in KERAS_DATASETS.items()} == {
        "mnist": 10,
        "fashion_mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
    }
    assert all(len(set(known.classes)) == len(known.classes) for known in KERAS_DATASETS.values())
    assert list(KERAS_DATASETS["cifar100"].classes) == sorted(KERAS_DATASETS["cifar100"].classes)
    assert KERAS_DATASETS["fashion_mnist"].classes[:3] == ("T-shirt/top", "Trouser", "Pullover")


def test_every_name_offered_is_one() -> None:
    assert all(is_named(name.replace("COUNT", "8").replace("SIZE", "16")) for name in named.NAMES)
