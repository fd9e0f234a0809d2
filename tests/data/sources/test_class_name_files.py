"""Names of classes that are numbers, from files as data sets are published with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.config import DataConfig
from sightline.data.checks.audit import quick_audit
from sightline.data.indexing import build_index
from sightline.data.targets import LABEL_SETS
from sightline.tasks.protocol import find_task
from synthetic_images import encode_png, write_files, write_zip

FILES = [
    ("classes.txt", "cat\nred dog\n"),
    ("labels.txt", "1 cat\n2: red dog\n"),
    ("synset_words.txt", "n02123045 cat\nn02099712 red dog\n"),
    ("classes.csv", 'id,name\n2,"red dog"\n1,cat\n'),
    ("cat_to_name.json", json.dumps({"1": "cat", "2": "red dog"})),
    ("data.yaml", "train: ../train\nnc: 3\nnames: ['none', \"cat\", red dog]\n"),
    ("data.yaml", "names: # of all\n  # animals\n  1: cat # tabby\n# more\n  2: 'red dog'\n\nnc: 2\n"),
    ("data.yaml", "names: [none, cat, red dog] # animals\n"),
    ("data.yaml", "names:\n- none\n- cat\n- red dog\nroboflow:\n  names: no\n"),
    ("data.yaml", "names: {1: cat,\n  2: red dog}\n"),
    ("label_map.json", json.dumps({"cat": 1, "red dog": 2})),
]


def write_source(folder: Path, numbers: str = "12", **files: str) -> Path:
    images = {f"{split}/{n}/{i}.png": encode_png(i) for split in ("train", "test") for i, n in enumerate(numbers)}
    return write_files(folder, images | {key: text.encode() for key, text in files.items()})


@pytest.mark.parametrize(
    "text",
    [
        "nc: 2\n",
        "names: &x [none, cat, dog]\n",
        "names:\n- none\n- cat, dog\n- emu\n",
        "names:\n- - none\n- cat\n- dog\n",
    ],
    ids=["no names", "an anchor", "commas", "nested"],
)
def test_yaml_that_is_not_plain_names_nothing(tmp_path: Path, text: str) -> None:
    assert get_labels(write_source(tmp_path, **{"data.yaml": text})) == {"1", "2"}


def get_labels(*sources: Path, **options: object) -> set[str]:
    return {image.label for image in build_index(list(sources), options=DataConfig(**options)).images}  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "text"), FILES)
def test_a_file_names_the_classes_of_numbered_folders(tmp_path: Path, name: str, text: str) -> None:
    folder = write_source(tmp_path / "set", **{name: text})
    archive = write_zip(
        tmp_path / "set.zip", {f"set-1/{k.relative_to(folder)}": k.read_bytes() for k in folder.rglob("*.*")}
    )
    for source in (folder, folder / "test", archive):
        index = build_index(source)
        assert {image.label for image in index.images} == {"cat", "red dog"}
        assert [note.kind for note in index.notes] == ["class-names"]
        assert index.empty_classes == ()


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ("12", "cat\ndog\nemu\n"),  # from 0 or from 1
        ("02", "cat\ndog\n"),
        ("12", "cat\ncat\n"),
        ("12", "1\n10\n"),
        ("12", "cat;dog\nemu\n"),
        ("ab", "cat\ndog\n"),
        ("12", "2 cat\n3 dog\n"),
        ("12", "1/a.png 1\n2/a.png 2\n"),
        ("12", "1 cat\n2 dog\n3 cat\n4 dog\n5 cat\n6 dog\n"),
        ("12", "train\ntest\n"),
        ("12", "0.25\n0.75\n"),
        ("12", "# see\nthe site\n"),
    ],
    ids=[
        "more names",
        "fewer names",
        "equal names",
        "numbers",
        "separators",
        "classes with names",
        "other numbers",
        "images",
        "numbered images",
        "splits",
        "fractions",
        "a comment",
    ],
)
def test_names_that_are_not_clear_are_passed_over(tmp_path: Path, numbers: str, text: str) -> None:
    folder = write_source(tmp_path, numbers, **{"classes.txt": text})
    assert get_labels(folder) == set(numbers)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("id,count,name\n1,30,cat\n2,40,red dog\n", {"cat", "red dog"}),
        ("1,cat\n2,red dog\n", {"cat", "red dog"}),
        ("编号,名称\n1,猫\n2,狗\n", {"猫", "狗"}),
        ("id,disease\n1,rust\n2,scab\n", {"rust", "scab"}),
        ("id,patient\n1,Ann\n2,Bob\n", {"1", "2"}),
        ("id,count\n1,30\n2,40\n", {"1", "2"}),
        ("name\ncat\nred dog\n", {"1", "2"}),
    ],
    ids=["the third column", "no header", "Chinese columns", "diseases", "patients", "counts", "one column"],
)
def test_a_table_names_classes_in_its_column_of_names(tmp_path: Path, text: str, labels: set[str]) -> None:
    assert get_labels(write_source(tmp_path, **{"classes.csv": text})) == labels


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("code,title\n1,cat\n2,red dog\n", "its columns are code, title"),
        ("id,cn,en\n2,狗,dog\n1,猫,cat\n0,无,none\n", "its columns are id, cn, en"),
        ("id,count\n1,30\n2,40\n", None),
        ("id,color\n1,#ff0000\n2,#00ff00\n", None),
        ("id,parent\n1,animal\n2,animal\n", None),
        ("id,title\n1,cat\n3,red dog\n", None),
        ("id,name\n1,cat\n2,red dog\n", None),
    ],
    ids=["one column", "two columns", "counts", "colors", "parents", "other numbers", "names"],
)
def test_a_table_of_classes_without_a_column_of_names_is_a_warning(
    tmp_path: Path, text: str, reason: str | None
) -> None:
    index = build_index(write_source(tmp_path, **{"classes.csv": text}))
    finding = {each.kind: each for each in quick_audit(index).findings}.get("unread-class-names")
    assert (finding and finding.reasons) == (reason and (reason,))
    if finding:
        assert (finding.severity, finding.paths) == ("warning", ("classes.csv",))
        assert {image.label for image in index.images} == {"1", "2"}


def test_a_source_whose_names_are_not_read_keeps_the_numbers_of_another(tmp_path: Path) -> None:
    first = write_source(tmp_path / "a", **{"classes.csv": "id,name\n1,cat\n2,dog\n"})
    second = write_source(tmp_path / "b", **{"classes.csv": "id,title\n1,cat\n2,dog\n"})
    assert get_labels(first, second) == {"1", "2"}


def test_the_outermost_file_names_the_classes(tmp_path: Path) -> None:
    files = {"classes.txt": "cat\ndog\n", "boxes/classes.txt": "ear\neye\n"}
    assert get_labels(write_source(tmp_path / "set", **files).parent) == {"cat", "dog"}


def test_a_file_beside_a_whole_set_names_no_classes(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "digits")
    write_files(tmp_path, {"labels.txt": b"airplane\nautomobile\n"})
    assert get_labels(folder) == {"1", "2"}


def test_a_file_names_the_classes_of_a_list(tmp_path: Path) -> None:
    files = {"list.txt": "a.png 0\nb.png 1\n", "classes.txt": "cat\ndog\n", "several.csv": "id,labels\na,0\nb,0;1\n"}
    write_files(tmp_path, {"a.png": encode_png(1), "b.png": encode_png(2)} | {k: t.encode() for k, t in files.items()})
    assert get_labels(tmp_path / "list.txt") == {"cat", "dog"}
    several = build_index(tmp_path / "several.csv", targets=LABEL_SETS)
    assert [image.label for image in several.images] == ["cat", "cat;dog"]


def test_grades_and_sources_that_no_file_names_keep_their_numbers(tmp_path: Path) -> None:
    folder = write_source(tmp_path / "a" / "set", **{"classes.txt": "low\nhigh\n"})
    assert get_labels(folder, class_order=("2", "1")) == {"1", "2"}
    assert get_labels(folder, class_order=("low", "high")) == {"low", "high"}
    graded = build_index(folder, targets=find_task("ordinal").targets)
    assert {image.label for image in graded.images} == {"1", "2"}
    assert get_labels(folder, write_source(tmp_path / "b" / "set")) == {"1", "2"}


def test_a_file_beside_archives_names_their_classes(tmp_path: Path) -> None:
    names = json.dumps({"0": "Blight (CBB)", "1": "Healthy"})
    write_files(tmp_path, {"label_num_to_disease_map.json": names.encode(), "train.csv": b"id,label\n1,0\n2,1\n"})
    write_zip(tmp_path / "images.zip", {f"{i}.png": encode_png(i) for i in (1, 2)})
    for source in (tmp_path, tmp_path / "images.zip"):
        assert get_labels(source) == {"Blight (CBB)", "Healthy"}
