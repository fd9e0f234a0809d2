"""Tables that give images several labels: in a cell, in columns, in lists and in rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sightline
from sightline.config import SplitConfig
from sightline.data.checks.audit import quick_audit
from sightline.data.dataset import build_dataset, check_classes
from sightline.data.indexing import build_index
from sightline.data.sources.manifest import read_manifest
from sightline.data.targets import LABEL_SETS
from sightline.errors import DataError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png, write_files


def write_table(folder: Path, text: str, name: str = "list.csv", count: int = 4) -> Path:
    write_files(folder, {f"{i}.png": encode_png(i) for i in range(1, count + 1)})
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read_labels(path: Path) -> dict[str, str]:
    return {item.path: item.label for item in read_manifest(path).items}


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\n1.png,tree;car\n2.png,tree\n3.png,\n",
        "path,label\n1.png,tree|car\n2.png,tree\n3.png,\n",
        'path,label\n1.png,"tree, car"\n2.png,tree\n3.png,\n4.png,"car, tree"\n',
        "path,tags\n1.png,car tree\n2.png,tree\n3.png,\n4.png,car\n",
        'path,label\n1.png,"[""tree"", ""car""]"\n2.png,"[""tree""]"\n3.png,[]\n',
        "path,car,tree\n1.png,1,1\n2.png,0,1\n3.png,0,0\n",
        "path,label\n1.png,tree\n1.png,car\n2.png,tree\n",
    ],
    ids=["semicolons", "bars", "commas", "spaces", "list", "columns", "rows"],
)
def test_an_image_has_all_of_its_labels(tmp_path: Path, text: str) -> None:
    labels = read_labels(write_table(tmp_path, text))
    assert (labels["1.png"], labels["2.png"]) == ("car;tree", "tree")
    assert labels.get("3.png", "") == "", "an image without labels is one"
    assert ("3.png" in labels) == ("3.png" in text)
    assert "1.png" in read_manifest(tmp_path / "list.csv").several_labels


@pytest.mark.parametrize("separator", ";|")
@pytest.mark.parametrize(
    ("column", "cells", "are_several"),
    [
        ("label", ("a;b", "c;d", "d"), True),
        ("label", ("a;b", "b;c", "a;c", "a;b;c"), True),
        ("labels", ("a;b", "c"), True),
        ("label", ("a;b", "c;d", "e"), False),
        ("label", ("a;b", "b;c", "a;c"), False),
    ],
    ids=["one is alone", "fewer names than cells", "named", "no name recurs", "as many names as cells"],
)
def test_a_cell_is_split_where_its_names_recur(
    tmp_path: Path, separator: str, column: str, cells: tuple[str, ...], are_several: bool
) -> None:
    rows = [cell.replace(";", separator) for cell in cells]
    text = "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows, 1))
    labels = read_labels(write_table(tmp_path, f"path,{column}\n{text}"))
    assert list(labels.values()) == list(cells if are_several else rows)
    assert bool(read_manifest(tmp_path / "list.csv").several_labels) == are_several


@pytest.mark.parametrize("separator", ";|")
@pytest.mark.parametrize("column", ["label", "labels"])
@pytest.mark.parametrize("again", [(), ("3.png,fox;owl",)], ids=["one row each", "two rows"])
def test_a_task_of_several_labels_splits_each_cell_with_a_separator(
    tmp_path: Path, separator: str, column: str, again: tuple[str, ...]
) -> None:
    rows = ["1.png,tree;car", "2.png,dog ; tree cat", "3.png,owl;emu", "4.png,", "5.png,owl;tree;", *again]
    text = "\n".join([f"path,{column}", *rows]).replace(";", separator)
    assert bool(read_manifest(write_table(tmp_path, text)).several_labels) == (column == "labels" or bool(again))
    index = build_index(tmp_path / "list.csv", targets=LABEL_SETS)
    assert index.several_labels
    assert {image.path: image.label for image in index.images} == {
        "1.png": "car;tree", "2.png": "dog;tree cat", "3.png": "emu;fox;owl" if again else "emu;owl", "4.png": "",
    }  # fmt: skip
    assert [(image.path, image.label) for image in index.unreadable] == [("5.png", "owl;tree")], "its file is missing"
    report = sightline.Dataset(tmp_path / "list.csv").check(set={"model.task": "multi_label"}, progress=False)
    assert set(report.audit.classes) == {"car", "dog", "emu", "owl", "tree", "tree cat", *(["fox"] if again else [])}
    kinds = {finding.kind: finding for finding in report.findings}
    assert kinds["several-labels"].count == 3


def test_a_row_of_open_images_with_a_confidence_of_0_names_what_is_absent(tmp_path: Path) -> None:
    rows = "1,human,tree,1\n1,human,car,1\n2,human,car,0\n2,human,tree,1\n3,human,car,0\n"
    table = write_table(tmp_path, f"ImageID,Source,LabelName,Confidence\n{rows}")
    assert read_labels(table) == {"1.png": "car;tree", "2.png": "tree", "3.png": ""}


def test_numbers_of_several_classes_stand_in_one_cell(tmp_path: Path) -> None:
    cells = ["1", "2", "1 2", "2 1", "1 2 0"]  # as in Kaggle's Human Protein Atlas
    table = write_table(tmp_path, "Id,Target\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells, 1)), count=5)
    assert read_labels(table) == {"1.png": "1", "2.png": "2", "3.png": "1;2", "4.png": "1;2", "5.png": "0;1;2"}


def test_a_name_in_a_list_or_a_column_has_any_character(tmp_path: Path) -> None:
    rows = [{"path": "1.png", "label": ["a|b"]}, {"path": "2.png", "label": ["c"]}]
    table = write_table(tmp_path, json.dumps(rows), "list.json")
    index = build_index(table, targets=LABEL_SETS)
    assert [image.label for image in index.images] == ["a|b", "c"]
    columns = write_table(tmp_path, "path,a|b,c\n1.png,1,0\n2.png,0,1\n", "columns.csv")
    assert [image.label for image in build_index(columns, targets=LABEL_SETS).images] == ["a|b", "c"]


def test_lists_in_json_and_coco(tmp_path: Path) -> None:
    rows = [{"path": "1.png", "label": ["tree", "car"]}, {"path": "2.png", "label": []}]
    assert read_labels(write_table(tmp_path, json.dumps(rows), "list.json")) == {"1.png": "car;tree", "2.png": ""}
    coco = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
        "annotations": [{"image_id": 1, "category_id": k} for k in (1, 2, 1)],
        "categories": [{"id": 1, "name": "tree"}, {"id": 2, "name": "car"}],
    }
    assert read_labels(write_table(tmp_path, json.dumps(coco), "coco.json")) == {"1.png": "car;tree", "2.png": ""}


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n1.png,red car\n2.png,blue car\n3.png,red tree\n4.png,blue tree\n",
        'path,label\n1.png,"Terrier, Irish"\n2.png,"Terrier, Scottish"\n',
        "path,label\n1.png,a;b\n2.png,c\n",
    ],
)
def test_a_name_of_several_words_is_one_label(tmp_path: Path, text: str) -> None:
    listing = read_manifest(write_table(tmp_path, text))
    assert listing.several_labels == ""
    assert all(item.label in text for item in listing.items)


def test_a_class_name_with_the_separator_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path, json.dumps([{"path": "1.png", "label": ["a;b", "c"]}]), "list.json")
    with pytest.raises(DataError, match=r"entry 1: the class name 'a;b' contains ';', which separates the labels"):
        read_manifest(path)


def test_a_classifier_of_one_label_refuses_several(tmp_path: Path) -> None:
    index = build_index(write_table(tmp_path, "path,labels\n1.png,tree;car\n2.png,tree\n3.png,car\n4.png,\n"))
    with pytest.raises(
        DataError, match=r"column 'labels' gives 1.png several labels \(tree;car\)\. Train a multi-label"
    ):
        check_classes(index)
    check_classes(index, LABEL_SETS)
    split = SplitConfig(validation=0.0, test=0.0)
    data = build_dataset(index, PreprocessingSpec(8, 8), split, 0, targets=LABEL_SETS, keep=False)
    assert data.classes == ("car", "tree")
    assert data.labels.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label,split\n1.png,tree,train\n2.png,car,train\n3.png,,test\n4.png,car,test\n"),
        ("list.csv", 'path,label,split\n1.png,"[""tree""]",train\n2.png,car,train\n3.png,[],test\n4.png,car,test\n'),
        ("list.csv", "path,car,tree,split\n1.png,0,1,train\n2.png,1,0,train\n3.png,0,0,test\n4.png,1,0,test\n"),
        (
            "list.jsonl",
            (
                '{"path": "1.png", "label": ["tree"], "split": "train"}\n{"path": "2.png", "label": ["car"], '
                '"split": "train"}\n{"path": "3.png", "label": [], "split": "test"}\n'
                '{"path": "4.png", "label": "car", "split": "test"}\n'
            ),
        ),
    ],
    ids=["cell", "list", "columns", "lines"],
)
def test_a_row_without_a_label_is_an_image_where_several_are_allowed(tmp_path: Path, name: str, text: str) -> None:
    path = write_table(tmp_path, text, name)
    single = build_index(path)
    assert ["3.png"] == [image.path for image in single.unreadable] == [note.path for note in single.notes]
    assert not single.several_labels
    several = build_index(path, targets=LABEL_SETS)
    assert {image.path: (image.label, image.split) for image in several.images} == {
        "1.png": ("tree", "train"), "2.png": ("car", "train"), "3.png": ("", "test"), "4.png": ("car", "test"),
    }  # fmt: skip
    assert (several.unreadable, several.notes, several.several_labels) == ((), (), "3.png has no label")
    data = build_dataset(
        several, PreprocessingSpec(8, 8), SplitConfig(validation=0.0), 0, targets=LABEL_SETS, keep=False
    )
    assert data.classes == ("car", "tree")
    assert data.labels[[image.path for image in several.images].index("3.png")].tolist() == [0, 0]
    report = sightline.Dataset(path).check(set={"model.task": "multi_label"}, progress=False)
    kinds = {finding.kind: finding.paths for finding in report.findings}
    assert kinds["no-labels"] == ("3.png",)
    assert "empty-labels" not in kinds
    assert "empty-labels" in {finding.kind for finding in sightline.Dataset(path).check(progress=False).findings}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", ""),
        ("3.png,\n", "3.png has no label"),
        ("2.png,car\n", "2.png has several labels"),
    ],
)
def test_a_row_without_a_label_takes_none_from_an_image_that_has_one(tmp_path: Path, rows: str, expected: str) -> None:
    others = "".join(f"{i}.png,tree\n" for i in range(4, 111))
    path = write_table(tmp_path, f"path,label\n1.png,car\n1.png,\n2.png,tree\n{others}{rows}", count=110)
    several = build_index(path, targets=LABEL_SETS)
    assert several.several_labels == expected
    labels = {image.path: image.label for image in several.images}
    assert labels["1.png"] == "car"
    assert labels["2.png"] == ("car;tree" if "2.png" in rows else "tree")
    assert labels.get("3.png") == ("" if "3.png" in rows else None)
    assert (several.unreadable, several.notes) == ((), ())


def test_a_few_images_with_several_rows_have_all_of_their_labels(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,{'car' if i % 2 else 'tree'}\n" for i in range(1, 101))
    path = write_table(tmp_path, f"path,label\n{rows}7.png,tree\n", count=100)
    single = build_index(path)
    assert not single.several_labels
    assert [image.path for image in single.unreadable] == ["7.png"], "one of a hundred: taken for a mistake"
    several = build_index(path, targets=LABEL_SETS)
    assert several.several_labels == "7.png has several labels"
    assert (several.unreadable, several.notes) == ((), ())
    assert {image.path: image.label for image in several.images} == {
        f"{i}.png": "car;tree" if i == 7 else "car" if i % 2 else "tree" for i in range(1, 101)
    }


def test_an_image_that_no_row_names_is_none_without_labels(tmp_path: Path) -> None:
    write_table(tmp_path, "path,label\n1.png,tree\n2.png,car\n3.png,\n1.png,\n5.png,\n")
    index = build_index(tmp_path, targets=LABEL_SETS)
    assert {image.path: image.label for image in index.images} == {"1.png": "tree", "2.png": "car", "3.png": ""}
    assert [image.path for image in index.unreadable] == ["5.png"], "its file is missing"


def test_the_real_labels_of_scenes_are_counted(shared: Path) -> None:
    audit = quick_audit(build_index(shared / "data" / "camvid" / "labels.csv"))
    assert audit.count == 468
    assert set(audit.classes) == {"bicyclist", "car", "fence", "pavement", "pedestrian", "pole", "sign", "tree"}
    findings = {finding.kind: finding for finding in audit.findings}
    assert findings["several-labels"].count == 466
    assert "pavement and tree" in findings["co-occurrence"].paths
    assert "fence" in findings["labels-never-alone"].paths
