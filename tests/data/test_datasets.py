"""Data sets by name: generated beans, scikit-learn's digits, and the data sets of Keras."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import shutil
import struct
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
from sightline.data import beans, datasets
from sightline.data.dataset import assemble
from sightline.data.datasets import BEANS_COUNT, BEANS_SIZE, KERAS_SETS, is_named, load
from sightline.data.index import index
from sightline.data.stores import DrawnStore
from sightline.errors import DataError, MissingExtraError, UsageError
from sightline.preprocess import Preprocess


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
    entries = load(text).entries
    assert len(entries) == count
    assert [e.label for e in entries[:5]] == ["Dark", "Green", "Light", "Medium", "Dark"]
    assert {e.part for e in entries} == {None}
    store = entries[6].store
    assert isinstance(store, DrawnStore)
    assert store.shape == (size, size, 3)
    np.testing.assert_array_equal(store.read(entries[6].key), beans.draw(6, size, seed))


def test_a_set_of_beans_is_1200_pictures_of_224_pixels() -> None:
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
        index(text)


def identities(text: str) -> list[str]:
    return [p.sha256 for p in index(text).pictures]


def test_a_bean_is_known_by_code_seed_number_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ten = identities("beans:10@32")
    assert len(set(ten)) == 10
    assert ten == identities("beans:10@32") == identities("beans:20@32")[:10]
    assert not set(ten) & {*identities("beans:10@48"), *identities("beans:10@32#1")}
    changed = tmp_path / "beans.py"
    changed.write_bytes(Path(beans.__file__).read_bytes() + b"\n# drawn otherwise")
    monkeypatch.setattr(beans, "__file__", str(changed))
    assert not set(ten) & set(identities("beans:10@32"))


@pytest.mark.usefixtures("own_cache")
def test_beans_go_all_the_way() -> None:
    data = assemble(index("beans:16@32"), Preprocess(32, 32), SplitConfig(), 0)
    assert data.classes == beans.CLASSES
    for i, row in enumerate(data.rows):
        np.testing.assert_array_equal(data.pixels[row], beans.draw(i, 32))
    assert assemble(index("beans:16@32"), Preprocess(32, 32), SplitConfig(), 0).cache_hit


# Digits.


def test_digits_are_1797_grey_pictures_of_ten_classes() -> None:
    found = index("digits")
    assert (found.name, len(found.pictures)) == ("digits", 1797)
    assert {(p.width, p.height, p.grey, p.part) for p in found.pictures} == {(8, 8, True, None)}
    assert Counter(p.label for p in found.pictures).keys() == set("0123456789")
    whole = np.stack([found.read(i) for i in range(1797)])
    assert whole.dtype == np.uint8
    assert sorted(np.unique(whole).tolist()) == [round(v * 255 / 16) for v in range(17)]


def test_digits_without_scikit_learn_name_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'scikit-learn.*pip install "sightline\[train\]"'):
        load("digits")


# What Keras keeps.


WANTED: list[Path] = []  # where Keras would have put what it failed to fetch


@pytest.fixture
def keras_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which Keras looks for data sets, and no network."""
    WANTED.clear()
    backend.keras()
    home = tmp_path / "keras home"
    home.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(home))  # it reads KERAS_HOME once, when imported

    def refuse(url: str, target: str, *_: object) -> NoReturn:
        WANTED.append(Path(target))
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)
    return home


@pytest.fixture
def any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Keras take small files of ours for the true ones."""
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *_, **__: True)


@pytest.mark.parametrize("name", KERAS_SETS)
def test_a_set_that_is_not_here_says_what_to_put_where(
    keras_home: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        index(name)
    message = str(caught.value)
    assert message.startswith(
        f"The data set {name} is not on this machine and could not be downloaded (URL fetch failure"
    )
    assert "Name or service not known" in message
    place = re.search(r"Download (.*) on another machine and put it at (.*)\.$", message)
    assert place is not None
    assert place[1] == KERAS_SETS[name].url
    if name == "fashion_mnist":
        assert Path(place[2]).parent == WANTED[0].parent  # four files
    else:
        assert Path(place[2]) == WANTED[0]
    assert capsys.readouterr().out == ""  # Keras' own words must not stand where results go


def idx(array: np.typing.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def put_mnist(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": rng.integers(0, 256, (count, 28, 28), np.uint8) if kind == "x" else np.arange(count) % 10
        for part, count in (("train", 30), ("test", 10))
        for kind in "xy"
    }
    np.savez(path, allow_pickle=False, **arrays)


def put_fashion(path: Path) -> None:
    for part, count in (("train", 30), ("t10k", 10)):
        images, labels = np.zeros((count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        images += np.arange(count, dtype=np.uint8)[:, None, None]
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (path.parent / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))


def put_cifar100(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for part, count in (("train", 200), ("test", 100)):
            rng = np.random.default_rng(count)
            batch = {
                b"data": rng.integers(0, 256, (count, 3072)).astype(np.uint8),
                b"fine_labels": (np.arange(count) % 100).tolist(),
            }
            data = pickle.dumps(batch)
            info = tarfile.TarInfo(f"cifar-100-python/{part}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.usefixtures("any_file")
@pytest.mark.parametrize(
    ("name", "put", "counts", "shape"),
    [
        ("mnist", put_mnist, (30, 10), (28, 28)),
        ("fashion_mnist", put_fashion, (30, 10), (28, 28)),
        ("cifar100", put_cifar100, (200, 100), (32, 32, 3)),
    ],
)
def test_a_set_put_where_the_message_says_is_found(
    keras_home: Path, name: str, put: Any, counts: tuple[int, int], shape: tuple[int, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        index(name)
    place = re.search(r"put it at (.*)\.$", str(caught.value))
    assert place is not None
    path = Path(place[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    put(path)
    found = index(name)
    assert found.name == name
    assert Counter(p.part for p in found.pictures) == {"train": counts[0], "test": counts[1]}
    assert [p.label for p in found.pictures[:10]] == list(KERAS_SETS[name].classes[:10])
    assert {p.label for p in found.pictures} == set(KERAS_SETS[name].classes)
    assert {np.shape(found.read(i)) for i in (0, counts[0])} == {shape}
    assert found.pictures[counts[0]].path == f"{name}/test[0]"
    shutil.rmtree(keras_home)


def test_a_damaged_local_file_is_told(keras_home: Path) -> None:
    (keras_home / "datasets").mkdir()
    (keras_home / "datasets" / "mnist.npz").write_bytes(b"half a download")
    with pytest.raises(DataError, match="The data set mnist is not on this machine and could not be downloaded"):
        index("mnist")


def test_the_classes_are_those_that_the_publishers_state() -> None:
    assert {name: len(known.classes) for name, known in KERAS_SETS.items()} == {
        "mnist": 10,
        "fashion_mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
    }
    assert all(len(set(known.classes)) == len(known.classes) for known in KERAS_SETS.values())
    assert list(KERAS_SETS["cifar100"].classes) == sorted(KERAS_SETS["cifar100"].classes)
    assert KERAS_SETS["fashion_mnist"].classes[:3] == ("T-shirt/top", "Trouser", "Pullover")


def test_every_name_offered_is_one() -> None:
    assert all(is_named(name.replace("COUNT", "8").replace("SIZE", "16")) for name in datasets.NAMES)
