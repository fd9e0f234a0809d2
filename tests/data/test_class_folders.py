"""Class folders of links: what they hold, names that no folder can have, and images without a file of their own."""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import draw_classes
from sightline import Dataset
from sightline.data.class_folders import escape_name, write_class_folders
from sightline.data.indexing import build_index
from sightline.data.types import Index
from sightline.errors import DataError, OutputError, UsageError

CLASSES = {"cat": (200, 60, 60), "dog": (60, 60, 200)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_classes(tmp_path / "photos", CLASSES, 3, 16)


def relabel(index: Index, labels: dict[int, str]) -> Index:
    images = (replace(image, label=labels.get(i, image.label)) for i, image in enumerate(index.images))
    return replace(index, images=tuple(images))


def list_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


def test_splits_and_several_labels_have_folders_of_their_own(photos: Path, tmp_path: Path) -> None:
    index = relabel(build_index(photos), {0: "cat;dog", 1: ""})
    splits = ("train", "train", "test", "train", "test", None)
    images = tuple(replace(p, split=s) for p, s in zip(index.images, splits, strict=True))  # type: ignore[arg-type]
    written = write_class_folders(replace(index, images=images, several_labels="two"), tmp_path / "out")
    assert list_files(tmp_path / "out") == [
        "test/cat/cat-002.png", "test/dog/dog-001.png", "train/cat/cat-000.png", "train/dog/cat-000.png",
        "train/dog/dog-000.png",
    ]  # fmt: skip
    assert (written.images, written.hard_links, written.left_out) == (4, 5, 2)
    assert "2 images without a class or a split left out" in str(written)


@pytest.mark.skipif(os.name != "posix", reason="other systems do not have these names")
def test_hostile_names_stay_inside_and_apart(photos: Path, tmp_path: Path) -> None:
    hostile = ["../../evil", "/etc/passwd", ".", "..", "Dog", "a" * 400]
    index = relabel(build_index(photos), dict(enumerate(hostile)))
    images = tuple(replace(p, path=f"x/{name}") for p, name in zip(index.images, [*hostile[:4], "n", "n"], strict=True))
    written = write_class_folders(replace(index, images=images), tmp_path / "deep" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "deep"}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]
    assert {p.name for p in (tmp_path / "deep" / "out").iterdir()} == {
        "%2E.%2F..%2Fevil", "%2Fetc%2Fpasswd", "%2E", "%2E%2E", "Dog", "a" * 200,
    }  # fmt: skip
    assert written.renamed["/etc/passwd"] == "%2Fetc%2Fpasswd"
    assert "the class '..' is in %2E%2E" in str(written)
    assert sum(Dataset(tmp_path / "deep" / "out").counts.values()) == 6, "each is read as a class"


@pytest.mark.parametrize(
    "name", ["nul", "COM1.txt", "a:b", "a\x00b", "trailing.", "trailing ", "__MACOSX", "caf\udce9", "50%25", "<img>"]
)
def test_names_that_some_file_systems_refuse_are_encoded(name: str) -> None:
    escaped = escape_name(name)
    assert escaped != name
    assert escaped.isprintable()
    assert not set(escaped) & set('<>:"/\\|?*')
    assert escape_name("fine name-1.JPG") == "fine name-1.JPG"


def test_files_of_one_name_are_numbered_also_where_case_is_ignored(tmp_path: Path) -> None:
    for folder, name in (("a", "1.png"), ("b", "1.png"), ("c", "1.PNG"), ("d", "1-2.png")):
        (tmp_path / "x" / "cat" / folder).mkdir(parents=True)
        Image.fromarray(np.full((16, 16, 3), ord(folder), np.uint8)).save(tmp_path / "x" / "cat" / folder / name)
    index = relabel(build_index(tmp_path / "x"), dict.fromkeys(range(4), "cat"))
    write_class_folders(relabel(index, {3: "Cat"}), tmp_path / "out")
    assert list_files(tmp_path / "out") == ["Cat-2/1-2.png", "cat/1-2.png", "cat/1-3.PNG", "cat/1.png"]


def test_without_hard_links_there_are_symbolic_ones_and_without_these_copies(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    written = write_class_folders(build_index(photos), tmp_path / "linked")
    assert (written.hard_links, written.symbolic_links, written.copies) == (0, 6, 0)
    assert (tmp_path / "linked" / "cat" / "cat-000.png").readlink() == photos.resolve() / "cat" / "cat-000.png"
    assert Dataset(tmp_path / "linked").counts == {"cat": 3, "dog": 3}
    monkeypatch.setattr(os, "symlink", refuse)
    written = write_class_folders(build_index(photos), tmp_path / "copied")
    assert str(written) == "6 images: 6 copies, since links are not possible"
    assert (tmp_path / "copied" / "cat" / "cat-000.png").read_bytes() == (photos / "cat" / "cat-000.png").read_bytes()


def test_images_of_archives_and_arrays_are_written(photos: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in photos.rglob("*.png"):
            archive.write(file, file.relative_to(photos))
    assert write_class_folders(build_index(tmp_path / "photos.zip"), tmp_path / "from-zip").copies == 6
    assert Dataset(tmp_path / "from-zip").counts == {"cat": 3, "dog": 3}
    beans = Dataset.from_source("beans:12@32")
    assert write_class_folders(beans.index, tmp_path / "drawn").copies == 12
    pixels = np.asarray(Image.open(next((tmp_path / "drawn").rglob("*.png"))))
    assert any(np.array_equal(pixels, beans.index.read(i)) for i in range(12))


def test_a_folder_that_is_used_already_is_refused_and_nothing_is_left_behind(photos: Path, tmp_path: Path) -> None:
    index = build_index(photos)
    with pytest.raises(OutputError, match="exists: choose another folder"):
        write_class_folders(index, photos)
    with pytest.raises(UsageError, match="which would hold its images twice"):
        write_class_folders(index, photos / "cleaned", [photos])
    with pytest.raises(DataError, match="No image of photos has a class"):
        write_class_folders(relabel(index, dict.fromkeys(range(6), "")), tmp_path / "none")
    shutil.rmtree(photos / "dog")
    for gone in (index, replace(index, find_file=None)):
        with pytest.raises(DataError, match="changed while the images were being read"):
            write_class_folders(gone, tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
