"""Labels and splits from tables of many forms, and the errors for tables that cannot be used."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from listings import labels_and_splits, list_notes
from sightline.config import ColumnsConfig, DataConfig, LimitsConfig, resolve_config
from sightline.data.indexing import build_index, list_source
from sightline.data.sources.manifest import read_manifest
from sightline.data.types import Split
from sightline.errors import ConfigError, DataError, ImageError
from synthetic_images import encode_png, write_files, write_zip

BOTH = {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}


def write_table(
    folder: Path, text: str, encoding: str = "utf-8", name: str = "list.csv", files: Sequence[str] = ()
) -> Path:
    """Write a table, and an image for each name in `files`."""
    write_files(folder, {file: encode_png(i) for i, file in enumerate(files or ("1.jpg", "2.jpg"))})
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def write_json_table(folder: Path, value: Any, name: str = "list.json", files: Sequence[str] = ()) -> Path:
    return write_table(folder, json.dumps(value, ensure_ascii=False), name=name, files=files)


def write_jsonl_table(folder: Path, *rows: Any, end: str = "\n", files: Sequence[str] = ()) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)
    return write_table(folder, text, name="list.jsonl", files=files)


def get_error(path: Path, options: DataConfig = DataConfig()) -> str:  # noqa: B008  # frozen
    with pytest.raises(DataError) as caught:
        read_manifest(path, options)
    return str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "bom"])
def test_a_csv_with_further_columns(tmp_path: Path, bom: str, end: str) -> None:
    lines = ["camera,path,label,split", "A,1.jpg,cat,train", ",猫/2.jpg,dog,Val", '"B, C","a ""b"".jpg",dog,TEST', ""]
    files = ["1.jpg", "猫/2.jpg", 'a "b".jpg']
    first, second, third = read_manifest(write_table(tmp_path, bom + end.join(lines), files=files)).items
    assert (first.key, first.path, first.label, first.split) == ("1.jpg", "1.jpg", "cat", "train")
    assert (second.key, second.label, second.split) == ("猫/2.jpg", "dog", "validation")
    assert (third.key, third.split) == ('a "b".jpg', "test")
    assert [e.extra for e in (first, second, third)] == [{"camera": "A"}, {"camera": ""}, {"camera": "B, C"}]


def test_a_csv_without_splits_and_with_ragged_rows(tmp_path: Path) -> None:
    listing = read_manifest(write_table(tmp_path, "path,label,site\n1.jpg,cat\n\n2.jpg,dog,x,y,z\n"))
    assert labels_and_splits(listing) == BOTH
    assert [e.extra for e in listing.items] == [{"site": ""}, {"site": "x"}]


PATH_COLUMNS = [
    "filename",
    "file",
    "image",
    "image_id",
    "path",
    "Path",
    "name",
    "id",
    "File Name",
    " IMAGE-PATH ",
    "img",
    "文件名",
    "图片路径",
]
LABEL_COLUMNS = ["label", "class", "target", "category", "breed", "y", "Label", " Class Name ", "species", "类别"]
SPLIT_COLUMNS = ["split", "set", "subset", "partition", "Usage", "划分"]


@pytest.mark.parametrize("path_column", PATH_COLUMNS)
@pytest.mark.parametrize("label_column", LABEL_COLUMNS)
def test_columns_are_known_by_their_usual_names(tmp_path: Path, path_column: str, label_column: str) -> None:
    for split in SPLIT_COLUMNS:
        text = f"site,{path_column},{split},{label_column}\nx,1.jpg,Training,cat\ny,2.jpg,PublicTest,dog\n"
        listing = read_manifest(write_table(tmp_path, text))
        assert labels_and_splits(listing) == {"1.jpg": ("cat", "train"), "2.jpg": ("dog", "test")}
        assert [e.extra for e in listing.items] == [{"site": "x"}, {"site": "y"}]


def test_of_several_columns_the_one_that_names_files_is_taken(tmp_path: Path) -> None:
    text = "id,name,class\n17,1.jpg,cat\n18,2.jpg,dog\n"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == BOTH
    text = "image,image_id,label\nsunset over sea,1,cat\nrain,2,dog\n"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == BOTH


def test_a_column_that_holds_files_is_taken_whatever_its_name(tmp_path: Path) -> None:
    assert labels_and_splits(read_manifest(write_table(tmp_path, "Nr,Foto,label\n1,1.jpg,cat\n2,2.jpg,dog\n"))) == BOTH
    assert (
        labels_and_splits(read_manifest(write_table(tmp_path, "id,Foto,label\n17,1.jpg,cat\n18,2.jpg,dog\n"))) == BOTH
    )


@pytest.mark.parametrize("label", ["标签", "种类", "品种"])
def test_chinese_columns_of_labels(tmp_path: Path, label: str) -> None:
    text = f"图片,{label},编号\n1.jpg,cat,7\n2.jpg,dog,8\n"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == BOTH


def test_columns_can_be_named(tmp_path: Path) -> None:
    text = "Bild;Art;Teil;label\n1.jpg;cat;train;x\n2.jpg;dog;test;x\n"
    options = DataConfig(columns=ColumnsConfig(path="bild", label="Art", split="Teil"))
    assert labels_and_splits(read_manifest(write_table(tmp_path, text), options)) == {
        "1.jpg": ("cat", "train"),
        "2.jpg": ("dog", "test"),
    }
    message = get_error(write_table(tmp_path, text), DataConfig(columns=ColumnsConfig(label="species")))
    assert message.endswith(
        "list.csv has no column 'species' for data.columns.label: its columns are Bild, Art, Teil, label."
    )


@pytest.mark.parametrize("separator", [";", "\t", ",", "|", ", "])
@pytest.mark.parametrize("name", ["list.csv", "LIST.TSV"])
def test_any_separator_with_or_without_a_header(tmp_path: Path, name: str, separator: str) -> None:
    rows = [["1.jpg", "cat"], ["2.jpg", "dog"]]
    for lines in ([["path", "label"], *rows], rows, [list(reversed(row)) for row in rows]):
        text = "\n".join(separator.join(line) for line in lines)
        assert labels_and_splits(read_manifest(write_table(tmp_path, text, name=name))) == BOTH
    three = "\n".join(separator.join(row) for row in (["1.jpg", "train", "cat"], ["2.jpg", "test", "dog"]))
    assert labels_and_splits(read_manifest(write_table(tmp_path, three, name=name))) == {
        "1.jpg": ("cat", "train"),
        "2.jpg": ("dog", "test"),
    }


@pytest.mark.parametrize(
    ("columns", "rows", "is_named"),
    [
        ("种类,健康,锈病", ("苹果,1,0", "苹果,0,1", "番茄,1,0"), True),
        ("species,cat,dog", ("cat,1,0", "dog,0,1", "cat,1,0"), False),
        ("species,night,blurred", ("cat,1,1", "cat,0,0", "dog,1,0"), False),
        ("species,size,cat", ("cat,9,1", "cat,8,0", "dog,7,1"), False),
        ("label,day,night", ("cat,1,0", "cat,0,1", "dog,1,0"), False),
        ("类别,左眼,右眼", ("苹果,1,0", "苹果,0,1", "番茄,1,0"), False),
    ],
    ids=["species and disease", "the same", "attributes", "one column", "labels and flags", "labels in Chinese"],
)
def test_columns_that_may_be_the_classes_besides_the_labels_are_named(
    tmp_path: Path, columns: str, rows: tuple[str, ...], is_named: bool
) -> None:
    text = f"path,{columns}\n" + "".join(f"{i}.png,{row}\n" for i, row in enumerate(rows))
    table = write_table(tmp_path, text, files=("0.png", "1.png", "2.png"))
    column = columns.partition(",")[0]
    reason = f"each row has one of 健康, 锈病, but column {column} is read"
    assert [(n.kind, n.reason) for n in read_manifest(table).notes] == [("unread-columns", reason)] * is_named
    assert read_manifest(table, DataConfig(columns=ColumnsConfig(label=column))).notes == []


def test_columns_without_a_header_are_numbered(tmp_path: Path) -> None:
    text = "1.jpg,cat,north\n2.jpg,dog,south\n"
    message = get_error(write_table(tmp_path, text))
    assert "list.csv has no recognized column for the labels: it has no header, so its columns" in message
    assert "numbered 1, 2, 3 (the first row: 1.jpg, cat, north). Name it with --column label=NAME" in message
    listing = read_manifest(write_table(tmp_path, text), DataConfig(columns=ColumnsConfig(label="2")))
    assert labels_and_splits(listing) == BOTH
    assert listing.items[0].extra == {"3": "north"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gbk", "gb18030"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "文件,path,label\n甲,图片一.jpg,花猫\n乙,2.jpg,大黄狗\n"
    listing = read_manifest(write_table(tmp_path, text, encoding, files=["图片一.jpg", "2.jpg"]))
    assert labels_and_splits(listing) == {"图片一.jpg": ("花猫", None), "2.jpg": ("大黄狗", None)}


@pytest.mark.parametrize("text", ["path,label\né.jpg,cat", "path,label\n1.jpg,éclair\n2.jpg,pâté"])
def test_another_encoding_is_refused(tmp_path: Path, text: str) -> None:
    message = get_error(write_table(tmp_path, text, "latin-1"))
    assert "list.csv cannot be read as text: it is neither UTF-8, UTF-16 nor GBK" in message


def test_comments_and_spaces_are_forgiven(tmp_path: Path) -> None:
    text = "# made by hand\n path , label \n# the first\n 1.jpg , cat \n\n2.jpg,  dog  \n"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == BOTH
    assert labels_and_splits(read_manifest(write_table(tmp_path, "# path,label\n1.jpg,cat\n#\n2.jpg,dog"))) == BOTH
    out = "path,label\n#1.jpg,cat\n#2.jpg,dog\n"  # the first is a file, the second a row that was commented out
    assert labels_and_splits(read_manifest(write_table(tmp_path / "b", out, files=["#1.jpg", "2.jpg"]))) == {
        "#1.jpg": ("cat", None)
    }


def test_names_that_several_folders_have_are_not_said_to_be_missing(tmp_path: Path) -> None:
    path = write_table(
        tmp_path, "path,label\n1.png,cat\n2.png,dog\n", files=[f"{a}/{i}.png" for a in "ab" for i in (1, 2)]
    )
    message = get_error(path)
    assert f"several files in {tmp_path} match 1.png" in message
    assert len(read_manifest(path, DataConfig(root=str(tmp_path / "b"))).items) == 2
    path = write_table(
        tmp_path / "c", "path,label\n1,cat\n2,dog\n", files=[f"{i}.{e}" for e in ("png", "jpg") for i in (1, 2)]
    )
    assert f"several files in {tmp_path / 'c'} match 1." in get_error(path), "they are in one folder"


def test_backslashes_and_names_without_extension(tmp_path: Path) -> None:
    files = ["all images/a/0001.JPG", "all images/b/0002.png"]
    for first, second in (("all images\\a\\0001.JPG", "all images/b/0002.png"), ("0001", "0002.PNG"), ("a0", "a1")):
        rows = f"path,label\n{first},cat\n{second},dog\n"
        path = write_table(tmp_path, rows, files=files if first != "a0" else ["a0", "a1"])
        assert [e.label for e in read_manifest(path).items] == ["cat", "dog"]
    path = write_table(tmp_path / "lists", "id,breed\n0001,cat\n0002,dog\n", files=["notes.txt"])
    message = get_error(path)
    assert message.startswith(f"{path} lists 2 files in column 'id', none of which exists: looked for 0001 in")
    assert "--set data.root=FOLDER" in message
    listing = read_manifest(path, DataConfig(root=str(tmp_path)))
    assert labels_and_splits(listing) == {files[0]: ("cat", None), files[1]: ("dog", None)}
    assert "not a folder" in get_error(path, DataConfig(root=str(tmp_path / "gone")))


@pytest.mark.parametrize("root", ["/home/somebody/data/", "C:\\Users\\me\\data\\"])
def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path: Path, root: str) -> None:
    path = write_table(
        tmp_path, f"path,label\n{root}a/1.jpg,cat\n{root}2.jpg,dog\n{root}3.jpg,dog\n", files=["a/1.jpg", "2.jpg"]
    )
    listing = read_manifest(path)
    assert labels_and_splits(listing) == {"a/1.jpg": ("cat", None), "2.jpg": ("dog", None)}
    assert [kind for kind, *_ in list_notes(listing)] == ["missing-files"]


@pytest.mark.parametrize(
    ("file", "cell"),
    [
        (unicodedata.normalize("NFD", "café/é.jpg"), unicodedata.normalize("NFC", "Café/é.jpg")),
        (unicodedata.normalize("NFC", "café/é.jpg"), unicodedata.normalize("NFD", "café\\é")),
        ("images/my cat.jpg", "/data/upload/1/my%20cat.jpg"),
        ("images/my cat.jpg", "file:///home/me/images/my%20cat.jpg"),
        ("images/100%25.jpg", "images/100%25.jpg"),
        ("images/my cat.jpg", "https://host/v0/my%20cat.jpg?alt=media&token=1"),
        ("images/1.jpg", "../input/set/images/1.jpg"),
        ("images/1.jpg", "..\\images\\1.jpg"),
        ("images/1.jpg", "FOLDER/images/1.jpg"),
    ],
)
def test_names_are_found_in_another_spelling(tmp_path: Path, file: str, cell: str) -> None:
    cell = cell.replace("FOLDER", f"{tmp_path.parent.name}/{tmp_path.name}")
    path = write_table(tmp_path, f"path,label\n{cell},cat\n2.jpg,dog\n", files=[file, "2.jpg"])
    assert {item.key: item.label for item in read_manifest(path).items} == {file: "cat", "2.jpg": "dog"}


def test_a_name_that_two_files_bear_is_missing_rather_than_guessed(tmp_path: Path) -> None:
    path = write_table(tmp_path, "id,label\n1,cat\n2,dog\n", files=["a/1.jpg", "b/1.jpg", "b/2.jpg"])
    listing = read_manifest(path)
    assert labels_and_splits(listing) == {"b/2.jpg": ("dog", None)}
    assert list_notes(listing) == [("missing-files", "1", "line 2")]


def test_a_file_missing_from_a_folder_is_not_one_of_its_name_in_another(tmp_path: Path) -> None:
    files = ["cat/1.jpg", "dog/2.jpg", "all/new/3.jpg"]
    rows = "/home/me/dog/1.jpg,dog\n/home/me/cat/1.jpg,cat\n/home/me/all/3.jpg,emu\n/upload/4/2.jpg,dog\n"
    listing = read_manifest(write_table(tmp_path, f"path,label\n{rows}", files=files))
    assert {item.path: item.label for item in listing.items} == dict(zip(files, ("cat", "dog", "emu"), strict=True))
    assert list_notes(listing) == [("missing-files", "/home/me/dog/1.jpg", "line 2")]


def test_the_end_of_a_path_is_enough_if_no_other_file_has_it(tmp_path: Path) -> None:
    files = ["images/cat/1.jpg", "images/dog/1.jpg", "images/dog/2.jpg", "old/dog/2.jpg", "2.jpg"]
    rows = "cat/1.jpg,cat\nDog\\1,dog\ndog/2.jpg,dog\n2,root\n/home/me/images/dog/1.jpg,dog\n/mnt/dog/2.jpg,x\n"
    listing = read_manifest(write_table(tmp_path, f"path,label\n{rows}", files=files))
    assert labels_and_splits(listing) == {
        "images/cat/1.jpg": ("cat", None), "images/dog/1.jpg": ("dog", None), "2.jpg": ("root", None),
    }  # fmt: skip
    assert [note[:2] for note in list_notes(listing)] == [
        ("missing-files", "dog/2.jpg"), ("missing-files", "/mnt/dog/2.jpg"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["train2017/1.jpg", "images/1.jpg", "images/train2017/1.jpg"])
def test_a_coco_file_in_its_folder_of_annotations_names_images_beside_it(tmp_path: Path, name: str) -> None:
    value = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 7}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    files = ["annotations/notes.txt", name, "val2017/1.jpg"]
    table = write_json_table(tmp_path, value, "annotations/instances_train2017.json", files)
    if "train2017" not in name:
        (tmp_path / "val2017" / "1.jpg").unlink()
    assert [(p.path, p.label) for p in build_index(table).images] == [(name, "cat")]


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"meow")
    for name in ("../1.jpg", str(tmp_path / "1.jpg")):
        (item,) = read_manifest(write_table(tmp_path / "lists", f"path,label\n{name},cat\n", files=["x.jpg"])).items
        assert item.store.read(item.key) == b"meow"


def test_one_hot_columns(tmp_path: Path) -> None:
    text = "image,cat,dog,emu,age\n1,1.0,0.0,0.0,7\n2,0,1,0,8\n3,0,0,0,9\n"
    listing = read_manifest(write_table(tmp_path, text, files=["1.jpg", "2.jpg", "3.jpg"]))
    assert labels_and_splits(listing) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}
    assert [e.extra for e in listing.items] == [{"age": "7"}, {"age": "8"}]
    assert list_notes(listing) == [("empty-labels", "3.jpg", "line 4")]
    several = read_manifest(write_table(tmp_path, text.replace("2,0,1,0", "2,1,1,0"))).several_labels
    assert several.endswith("line 3: the one-hot columns give 2 several labels (cat, dog)")
    text = "path,helmet,mask\n1.jpg,1,0\n2.jpg,0,1\n"  # a class, not a column of masks
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == {
        "1.jpg": ("helmet", None), "2.jpg": ("mask", None)
    }  # fmt: skip
    reasons = {note.kind: note.reason for note in build_index(tmp_path).notes}
    assert reasons["labels-from-table"] == "columns helmet, mask"


@pytest.mark.parametrize("columns", ["X,y", "x,y", "file,y"])
def test_y_may_be_a_number_beside_files(tmp_path: Path, columns: str) -> None:
    rows = f"{columns}\n1.jpg,0\n2.jpg,1\n"
    assert [item.label for item in read_manifest(write_table(tmp_path, rows)).items] == ["0", "1"]


@pytest.mark.parametrize("columns", ["file,y,tags", "file,y,classes", "file,x,y"])
def test_y_is_the_label_beside_other_columns(tmp_path: Path, columns: str) -> None:
    rows = "1.jpg,cat,1\n2.jpg,dog,2\n" if columns[-1] != "y" else "1.jpg,1,cat\n2.jpg,2,dog\n"
    assert [i.label for i in read_manifest(write_table(tmp_path, f"{columns}\n{rows}")).items] == ["cat", "dog"]


def test_archives_of_classes_beside_tables_keep_their_images(tmp_path: Path) -> None:
    """Those that no table labels, if their folder is named as a class; and each has the table of its own name."""
    for folder in ("own", "one"):
        (tmp_path / folder).mkdir()
    for i, label in enumerate(("cat", "dog")):
        write_zip(tmp_path / "own" / f"{label}.zip", {"1.png": encode_png(i)})
        write_files(tmp_path / "own", {f"{label}.csv": f"file,label\n1.png,{label}\n".encode()})
        write_zip(tmp_path / "one" / f"{label}.zip", {f"{label}/1.png": encode_png(i)})
    write_files(tmp_path / "one", {"labels.csv": b"file,label\ncat/1.png,cat\n"})
    for folder in ("own", "one"):
        assert [image.label for image in build_index(tmp_path / folder).images] == ["cat", "dog"]


def test_coordinates_are_not_taken_for_labels(tmp_path: Path) -> None:
    rows = (
        "Image Index,Finding Labels,OriginalImagePixelSpacing[x,y],\n1.jpg,Hernia,0.143,0.143,\n2.jpg,Mass,0.2,0.168,\n"
    )
    listing = read_manifest(write_table(tmp_path, rows))  # the header of NIH ChestX-ray
    assert labels_and_splits(listing) == {"1.jpg": ("Hernia", None), "2.jpg": ("Mass", None)}
    message = get_error(write_table(tmp_path, "filename,x,y\n1.jpg,10,20\n2.jpg,,40.5\n"))
    assert "has no recognized column for the labels: its columns are filename, x, y." in message
    assert labels_and_splits(read_manifest(write_table(tmp_path, "x,y\n1.jpg,cat\n2.jpg,dog\n"))) == BOTH


@pytest.mark.parametrize("text", ["emotion,pixels,Usage\n0,70 80 82,Training\n", "label,pixel0,pixel1\n1,0,255\n"])
def test_pixels_in_cells_are_not_read(tmp_path: Path, text: str) -> None:
    assert "list.csv has the pixels of images in its cells, which are not read: save each" in get_error(
        write_table(tmp_path, text)
    )


def test_a_table_of_vgg_image_annotator_is_refused(tmp_path: Path) -> None:
    header = "filename,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    cells = '{},"{{}}",1,0,"{{""x"":1}}","{{""animal"":""cat""}}"\n'
    path = write_table(tmp_path, header + cells.format("1.jpg") + cells.format("2.jpg"))
    for options in (DataConfig(), DataConfig(columns=ColumnsConfig(label="region_attributes"))):
        assert "whose labels are attributes in JSON, which are not read: write a table" in get_error(path, options)


def test_columns_of_celeba_say_no_by_minus_one(tmp_path: Path) -> None:
    rows = "image_id,Male,Young,Bald\n1.jpg,-1,1,-1\n2.jpg,1,1,-1\n"
    assert [e.label for e in read_manifest(write_table(tmp_path, rows)).items] == ["Young", "Male;Young"]
    for rows in ("Edema,Mass\n1.jpg,-1,1\n2.jpg,0,-1\n", "Edema,Mass,Hernia\n1.jpg,1.0,-1.0,\n2.jpg,0.0,0.0,1.0\n"):
        message = get_error(write_table(tmp_path, f"path,{rows}"))  # as in CheXpert
        assert (
            "has -1, which means that it is uncertain whether an image has the class: write 1, 0 or nothing" in message
        )
    rows = "path,a,b,score\n1.jpg,1,0,-1\n2.jpg,0,1,2\n"
    assert [e.label for e in read_manifest(write_table(tmp_path, rows)).items] == ["a", "b"]


def test_rows_without_label_or_file_are_left_out_and_listed(tmp_path: Path) -> None:
    text = "path,label\n1.jpg,cat\n3.jpg,cat\n2.jpg,\n2.jpg,dog\n,dog\n4.jpg,emu\n"
    listing = read_manifest(write_table(tmp_path, text))
    assert labels_and_splits(listing) == BOTH
    assert list_notes(listing) == [
        ("missing-files", "3.jpg", "line 3"), ("empty-labels", "2.jpg", "line 4"), ("empty-labels", "line 6", "line 6"),
        ("missing-files", "4.jpg", "line 7"),
    ]  # fmt: skip
    assert [r.path for r in listing.unusable] == ["3.jpg", "2.jpg", "line 6", "4.jpg"]
    assert "has 1 row but no label in column 'label'" in get_error(write_table(tmp_path, "path,label\n1.jpg,\n"))


def test_labels_are_composed_and_stripped_and_whole_numbers_are_one_class(tmp_path: Path) -> None:
    files = ["1.jpg", "2.jpg", "3.jpg"]
    decomposed = write_table(tmp_path, "path,label\n1.jpg,e\u0301te\u0301\n2.jpg, été \n3.jpg,dog\n", files=files)
    assert [e.label for e in read_manifest(decomposed).items] == ["été", "été", "dog"]
    rows = [{"path": file, "label": label} for file, label in zip(files, (1, 1.0, "1"), strict=True)]
    assert [e.label for e in read_manifest(write_json_table(tmp_path, rows, files=files)).items] == ["1", "1", "1"]
    assert [e.label for e in read_manifest(write_jsonl_table(tmp_path, *rows, files=files)).items] == ["1", "1", "1"]
    numbers = write_table(tmp_path, "path,label\n1.jpg,1.0\n2.jpg,2.0\n3.jpg,1.0\n", files=files)
    assert [e.label for e in read_manifest(numbers).items] == ["1", "2", "1"]
    numbers = write_table(tmp_path, "path,label\n1.jpg,1.0\n2.jpg,nan\n3.jpg,2.0\n", files=files)
    assert [e.label for e in read_manifest(numbers).items] == ["1", "2"]
    for labels in (["01", "1", "2"], ["1.5", "1.0", "2.0"]):
        text = "path,label\n" + "".join(f"{f},{label}\n" for f, label in zip(files, labels, strict=True))
        assert [e.label for e in read_manifest(write_table(tmp_path, text, files=files)).items] == labels


# JSON.


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"path": "1.jpg", "label": "cat", "split": "train"},
        {"path": "a\u2028b.jpg", "label": 3, "split": None, "site": {"x": 1}},
    ]
    files = ["1.jpg", "a\u2028b.jpg"]
    for end in ("\n", "\r\n", "\n\n"):
        first, second = read_manifest(write_jsonl_table(tmp_path, *rows, end=end, files=files)).items
        assert (first.key, first.label, first.split, first.extra) == ("1.jpg", "cat", "train", {})
        assert (second.key, second.label, second.split) == ("a\u2028b.jpg", "3", None)
        assert second.extra == {"site.x": "1"}


def test_json_of_annotation_tools(tmp_path: Path) -> None:
    ground_truth = [
        {"source-ref": f"s3://bucket/{i}.jpg", "animal": i, "animal-metadata": {"class-name": name, "human": "yes"}}
        for i, name in ((1, "cat"), (2, "dog"))
    ]
    assert labels_and_splits(read_manifest(write_jsonl_table(tmp_path, *ground_truth))) == BOTH
    several = [
        {"source-ref": f"s3://bucket/{i}.jpg", "a": [0, i], "a-metadata": {"class-map": {"0": "cat", "1": "dog"}}}
        for i in (1, 2)
    ]
    path = write_table(tmp_path, "\n".join(map(json.dumps, several)), name="output.manifest")
    assert [item.label for item in read_manifest(path).items] == ["cat;dog", "2;cat"]
    jobs = [row | {"b": 0, "b-metadata": {"class-name": "old"}} for row in ground_truth]
    path = write_jsonl_table(tmp_path, *jobs)
    assert "no recognized column for the labels: its columns are source-ref, animal, animal-metadata" in get_error(path)
    columns = ColumnsConfig(label="animal-metadata.class-name")
    assert labels_and_splits(read_manifest(path, DataConfig(columns=columns))) == BOTH
    studio = [{"data": {"image": f"/data/upload/1/{i}.jpg"}, "annotations": [{"id": i}]} for i in (1, 2)]
    assert "is in Label Studio's JSON format, which is not read: export" in get_error(
        write_json_table(tmp_path, studio)
    )
    choices = [{"image": f"/data/upload/1/{i}.jpg", "choice": {"choices": ["cat", "dog"]}} for i in (1, 2)]
    assert labels_and_splits(read_manifest(write_json_table(tmp_path, choices)))["1.jpg"] == ("cat;dog", None)


def test_files_of_vertex_ai(tmp_path: Path) -> None:
    addresses = [f"gs://bucket/{i}.jpg" for i in (1, 2)]
    use = "aiplatform.googleapis.com/ml_use"
    rows: list[Any] = [
        {"imageGcsUri": a, "classificationAnnotation": {"displayName": n}, "dataItemResourceLabels": {use: s}}
        for a, n, s in zip(addresses, ("cat", "dog"), ("training", "test"), strict=True)
    ]
    splits = {"1.jpg": ("cat", "train"), "2.jpg": ("dog", "test")}
    assert labels_and_splits(read_manifest(write_jsonl_table(tmp_path, *rows))) == splits
    names = [{"displayName": "cat"}, {"displayName": "dog"}]
    rows = [{"imageGcsUri": a, "classificationAnnotations": names[i:]} for i, a in enumerate(addresses)]
    assert [item.label for item in read_manifest(write_jsonl_table(tmp_path, *rows)).items] == ["cat;dog", "dog"]
    text = f"UNASSIGNED,{addresses[0]},cat\nUNASSIGNED,{addresses[1]},dog\n"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == BOTH
    text = f"TRAINING,{addresses[0]},cat,dog\nTEST,{addresses[1]},dog\n"
    listing = read_manifest(write_table(tmp_path, text))
    assert labels_and_splits(listing) == {"1.jpg": ("cat;dog", "train"), "2.jpg": ("dog", "test")}
    assert "line 1: columns 3, 4 give gs://bucket/1.jpg several labels (cat, dog)" in listing.several_labels
    text = f"TRAINING,{addresses[0]},cat,0.1,,0.3,\nTEST,{addresses[1]},dog\n"  # boxes
    assert "no recognized column for the labels: it has no header" in get_error(write_table(tmp_path, text))


def test_objects_in_a_row_are_columns(tmp_path: Path) -> None:
    deep: Any = {"path": "1.jpg", "label": "cat", "boxes": [{"x": 1}], "meta": {"site": "A", "sizes": [1, 2]}}
    deep["meta"]["a"] = {"b": {"c": 1, "d": {"e": 2}}}
    (item,) = read_manifest(write_jsonl_table(tmp_path, deep)).items
    assert item.extra == {"meta.site": "A", "meta.sizes": "1;2", "meta.a.b.c": "1"}


@pytest.mark.parametrize(
    "value",
    [
        [{"file_name": "1.jpg", "class": "cat"}, {"file_name": "2.jpg", "class": ["dog"]}],
        {"1.jpg": "cat", "2.jpg": "dog"},
        {
            "info": {},
            "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "2.jpg"}],
            "annotations": [
                {"image_id": 8, "category_id": 2},
                {"image_id": 7, "category_id": 1},
                {"image_id": 7, "category_id": 1},
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        },
    ],
    ids=["list", "mapping", "coco"],
)
def test_json(tmp_path: Path, value: Any) -> None:
    assert labels_and_splits(read_manifest(write_json_table(tmp_path, value))) == BOTH
    pretty = write_table(tmp_path, json.dumps(value, indent=2), name="list.json")
    assert labels_and_splits(read_manifest(pretty)) == BOTH


def test_lines_of_json_in_a_file_called_json(tmp_path: Path) -> None:
    lines = '{"path": "1.jpg", "label": "cat"}\n{"path": "2.jpg", "label": "dog"}\n'
    assert labels_and_splits(read_manifest(write_table(tmp_path, lines, name="list.json"))) == BOTH
    rows = json.dumps([{"path": "1.jpg", "label": "cat"}, {"path": "2.jpg", "label": "dog"}])
    assert labels_and_splits(read_manifest(write_table(tmp_path, rows, name="list.jsonl"))) == BOTH


def test_coco_without_annotation_or_with_several_categories(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    one = [{"image_id": 1, "category_id": 1}]
    coco = {"images": images, "annotations": one, "categories": categories}
    listing = read_manifest(write_json_table(tmp_path, coco))
    assert labels_and_splits(listing) == {"1.jpg": ("cat", None)}
    assert list_notes(listing) == [("empty-labels", "2.jpg", "image 2")]
    two = coco | {"annotations": [*one, {"image_id": 1, "category_id": 2}]}
    assert "1.jpg several labels (cat, dog)" in read_manifest(write_json_table(tmp_path, two)).several_labels
    assert "looks like a COCO file, but 'category_id' is missing" in get_error(
        write_json_table(tmp_path, coco | {"annotations": [{"image_id": 1}]})
    )


# What is refused.


def test_a_header_alone_is_called_so(tmp_path: Path) -> None:
    assert get_error(write_table(tmp_path, "path,label\n")).endswith(
        "list.csv has no rows below its header (path, label): add a row for each image."
    )


def test_rows_that_differ_on_a_file(tmp_path: Path) -> None:
    files = [f"{i}.jpg" for i in range(120)]
    rows = [f"{file},{'cat' if i % 2 else 'dog'}" for i, file in enumerate(files)]
    listing = read_manifest(write_table(tmp_path, "\n".join(["path,label", *rows, rows[3], "5.jpg,dog"]), files=files))
    assert len(listing.items) == 120
    assert list_notes(listing) == [("conflicting-rows", "5.jpg", "line 123")]
    assert listing.unusable[0].reason == f"line 123 of {tmp_path / 'list.csv'} has a different label than line 7"
    listing = read_manifest(write_table(tmp_path, "\n".join(["path,label", *rows, "5.jpg,dog", "7.jpg,dog"])))
    assert listing.several_labels.endswith("line 122: an earlier row gives 5.jpg another label")


def test_a_quotation_mark_within_a_cell_is_part_of_it(tmp_path: Path) -> None:
    path = write_table(tmp_path, 'path,label,size\n1.jpg,"12" nails",1\n2.jpg,6" nails,2\n')
    assert [item.extra["size"] for item in read_manifest(path).items] == ["1", "2"]


@pytest.mark.parametrize(
    "text", ['path,label\n1.jpg,"Retriever, Golden"\n2.jpg,"Retriever, Labrador"\n', "path,label\n1.jpg,a;b\n2.jpg,c\n"]
)
def test_a_label_may_hold_a_separator(tmp_path: Path, text: str) -> None:
    assert len({e.label for e in read_manifest(write_table(tmp_path, text)).items}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv has no rows; its first line should be path,label[,split]."),
        (
            "path,split\n1.jpg,train",
            "list.csv has no recognized column for the labels: its columns are path, split",
        ),
        ("path,label,label\n1.jpg,cat,dog", "list.csv has 2 columns named 'label': rename or remove one."),
        ("Bild,label\nx,cat", "has no recognized column for the image files: its columns are Bild, label. Name"),
        ("path,label,split\n1.jpg,cat,extra", "line 2: split is 'extra'; expected train, validation or test."),
        ('path,label\n1.jpg,cat\n2.jpg,"dog\n3.jpg,cat\n', "list.csv, line 3: not CSV (unexpected end of data)"),
        ('path,label,note\n1.jpg,cat,"\n2.jpg,dog,\n', "line 2: not CSV (unexpected end of data). Is a quotation mark"),
        ('path,label\n1.jpg,"cat\n' + "x" * 140_000, "list.csv, line 2: not CSV (field larger than field limit"),
    ],
    ids=["empty", "label", "repeated", "path", "split", "unclosed", "unclosed in a note", "quote"],
)
def test_a_fault_in_a_csv_is_reported(tmp_path: Path, text: str, message: str) -> None:
    assert message in get_error(write_table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "1.jpg", "label": "cat"}\n{"path": ', "list.jsonl, line 2: not JSON (Expecting value)."),
        ('["1.jpg", "cat"]', 'entry 1: expected an object such as {"path": "1.jpg", "label": "cat"}.'),
        ('\n{"path": "1.jpg"}', "has no recognized column for the labels: its columns are path."),
        (
            '{"path": "1.jpg", "label": "cat", "split": "extra"}',
            "line 1: split is 'extra'; expected train, validation or",
        ),
    ],
)
def test_a_fault_in_json_lines_is_reported(tmp_path: Path, text: str, message: str) -> None:
    assert message in get_error(write_table(tmp_path, text, name="list.jsonl"))


def test_a_column_called_set_that_states_no_splits_is_another_one(tmp_path: Path) -> None:
    listing = read_manifest(write_table(tmp_path, "path,label,set\n1.jpg,cat,A\n2.jpg,dog,B\n"))
    assert labels_and_splits(listing) == BOTH
    assert listing.items[0].extra == {"set": "A"}


@pytest.mark.parametrize(
    ("column", "cells", "splits"),
    [
        ("is_train", "1 0 1", ["train", "test", "train"]),
        ("is_training_img", "True False False", ["train", "test", "test"]),
        ("is_valid", "False True False", ["train", "validation", "train"]),
        ("is_valid", "True True False", [None, None, None]),  # the row is
        ("is_test", "0 1 0", ["train", "test", "train"]),
        ("split", "0 1 2 0 0", ["train", "validation", "test", "train", "train"]),
        ("partition", "2 1 0 0 0", ["test", "validation", "train", "train", "train"]),
        ("partition", "0 1 2", [None, None, None]),  # folds
        ("is_train", "0 0 0", [None, None, None]),
        ("is_train", "1 1 1", [None, None, None]),
        ("partition", "0 1 0", [None, None, None]),
        ("fold", "0 1 2", [None, None, None]),
        ("data set", "train valid test", ["train", "validation", "test"]),
        ("train", "1 0 0", [None, None, None]),
    ],
)
def test_splits_in_a_column_of_numbers(tmp_path: Path, column: str, cells: str, splits: list[str | None]) -> None:
    files = [f"{i}.jpg" for i, _ in enumerate(cells.split())]
    rows = "".join(f"{file},cat,{cell}\n" for file, cell in zip(files, cells.split(), strict=True))
    path = write_table(tmp_path, f"image,label,{column}\n{rows}", files=files)
    assert [item.split for item in read_manifest(path).items] == splits


def test_a_flag_of_the_split_is_not_a_class(tmp_path: Path) -> None:
    listing = read_manifest(write_table(tmp_path, "image,cat,dog,is_train\n1.jpg,1,0,1\n2.jpg,0,1,0\n"))
    assert labels_and_splits(listing) == {"1.jpg": ("cat", "train"), "2.jpg": ("dog", "test")}


@pytest.mark.parametrize(
    ("rows", "splits"),
    [("1.jpg,cat,1,0\n2.jpg,dog,0,1\n", ("train", "test")), ("1.jpg,cat,1,1\n2.jpg,dog,0,0\n", (None, None))],
    ids=["one for each row", "unclear"],
)
def test_several_flags_of_splits_are_read_together(
    tmp_path: Path, rows: str, splits: tuple[str | None, str | None]
) -> None:
    expected = dict(zip(("1.jpg", "2.jpg"), zip(("cat", "dog"), splits, strict=True), strict=True))
    text = f"image,label,is_train,is_test\n{rows}"
    assert labels_and_splits(read_manifest(write_table(tmp_path, text))) == expected
    write_files(tmp_path / "set", {"cat/1.jpg": b"1", "dog/2.jpg": b"2", "meta.csv": text.encode()})
    listing = list_source(tmp_path / "set")
    assert [item.split for item in listing.items] == list(splits)


@pytest.mark.parametrize(
    ("columns", "cells", "splits"),
    [
        ("is_train,is_test", ("1,0", "1,0"), [None, None]),
        ("is_test,is_valid", ("0,1", "1,0"), [None, None]),  # is_valid may say that a row is in order
        ("is_train,is_test,Split", ("1,0,test", "0,1,train"), ["test", "train"]),
    ],
    ids=["all of training", "none of training", "beside a column of splits"],
)
def test_flags_that_do_not_divide_the_images_are_not_splits(
    tmp_path: Path, columns: str, cells: tuple[str, str], splits: list[str | None]
) -> None:
    text = f"image,label,{columns}\n1.jpg,cat,{cells[0]}\n2.jpg,dog,{cells[1]}\n"
    listing = read_manifest(write_table(tmp_path, text))
    assert [item.split for item in listing.items] == splits
    assert all("split" not in item.extra for item in listing.items)


@pytest.mark.parametrize(
    "place", ["gs://bucket/images/cat/{}", "https://host/{}", "/data/upload/1/{}", "D:\\photos\\{}"]
)
def test_files_are_found_by_the_names_in_addresses_and_paths_of_other_machines(tmp_path: Path, place: str) -> None:
    names = ("images/1.jpg", "images/2.jpg")
    rows = "".join(
        f"{place.format(name.removeprefix('images/'))},{label}\n"
        for name, label in zip(names, ("cat", "dog"), strict=True)
    )
    listing = read_manifest(write_table(tmp_path, f"image,choice\n{rows}", files=names))
    assert {e.path: e.label for e in listing.items} == dict(zip(names, ("cat", "dog"), strict=True))


def test_columns_of_zeros_alone_do_not_name_classes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no recognized column for the labels: its columns are filename, count, region"
    ):
        read_manifest(write_table(tmp_path, "filename,count,region\n1.jpg,0,0\n2.jpg,0,0\n"))


# A table for a folder of images.


def write_label_table(folder: Path, name: str = "labels.csv") -> Path:
    return write_table(folder, "id,breed\na,cat\nb,dog\nc,cat\n", name=name, files=["notes.txt"])


@pytest.mark.parametrize("where", ["inside", "beside", "named", "given"])
def test_labels_of_a_flat_folder_come_from_a_table(tmp_path: Path, where: str) -> None:
    folder = write_files(tmp_path / "photos", {f"{name}.png": encode_png(i) for i, name in enumerate("abcd")})
    places = {"inside": folder, "beside": tmp_path, "named": tmp_path, "given": tmp_path / "lists"}
    path = write_label_table(places[where], "photos.csv" if where == "named" else "labels.csv")
    options = DataConfig(labels=str(path)) if where == "given" else DataConfig()
    image_index = build_index(folder, options=options)
    assert {p.path: p.label for p in image_index.images} == {"a.png": "cat", "b.png": "dog", "c.png": "cat"}
    kinds = {r.kind: (r.path, r.reason) for r in image_index.notes}
    assert kinds["unlabeled-folders"] == (".", "1 image")
    assert kinds["labels-from-table"][1] == "column breed"


def test_images_that_a_table_names_by_absolute_paths_are_not_unlabeled(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{name}.png": encode_png(i) for i, name in enumerate("abc")})
    (tmp_path / "labels.csv").write_text(f"path,label\n{tmp_path}/a.png,cat\n{tmp_path}/b.png,dog\n")
    index = build_index(tmp_path)
    assert sorted(image.label for image in index.images) == ["cat", "dog"]
    assert [(n.path, n.reason) for n in index.notes if n.kind == "unlabeled-folders"] == [(".", "1 image")]


def test_labels_of_an_archive_with_flat_splits_come_from_its_table(tmp_path: Path) -> None:
    images = {f"train/{name}.png": encode_png(i) for i, name in enumerate("abc")} | {"test/x.png": encode_png(9)}
    sample = "id,cat,dog\nx,0.5,0.5\n"  # a sample submission, as competitions provide
    rows = "id,breed\na,cat\nb,dog\nc,cat\n"
    path = write_zip(
        tmp_path / "dogs.zip", images | {"labels.csv": rows.encode(), "sample_submission.csv": sample.encode()}
    )
    image_index = build_index(path)
    assert {(p.path, p.label, p.split) for p in image_index.images} == {
        ("train/a.png", "cat", "train"), ("train/b.png", "dog", "train"), ("train/c.png", "cat", "train"),
    }  # fmt: skip
    assert [(r.path, r.reason) for r in image_index.notes if r.kind == "unlabeled-folders"] == [("test", "1 image")]


@pytest.mark.parametrize(
    ("table", "archive", "folder"),
    [("train.csv", "train.zip", "train/"), ("train.csv", "images.zip", ""), ("labels.csv", "train.zip", "")],
)
def test_an_archive_that_is_not_unpacked_is_labeled_by_the_table_beside_it(
    tmp_path: Path, table: str, archive: str, folder: str
) -> None:
    rows = "id,label\n1,cat\n2,dog\n"
    write_files(
        tmp_path, {table: rows.encode(), "sample_submission.csv": b"id,label\n1,x\n2,x\n", "test.csv": b"id\n1\n"}
    )
    write_zip(tmp_path / archive, {f"{folder}{i}.png": encode_png(i) for i in (1, 2)})
    write_zip(tmp_path / "test.zip", {f"test/{i}.png": encode_png(i + 2) for i in (1, 2)})
    alone, index = build_index(tmp_path / archive), build_index(tmp_path)
    for each, prefix in ((alone, folder), (index, f"{archive}/{folder}")):
        assert {image.path: image.label for image in each.images} == {f"{prefix}1.png": "cat", f"{prefix}2.png": "dog"}
    assert ("unlabeled-folders", "test.zip", "2 images") in [(n.kind, n.path, n.reason) for n in index.notes]
    message = get_error(tmp_path / table)
    assert f"If they are in {archive}, name it instead of the table, as in `sightline train" in message
    assert {image.label for image in build_index(tmp_path / "test.zip").images} == {"test"}, "not those of train.csv"


@pytest.mark.parametrize("folders", ["set/", "input/set-v2/"])
def test_tables_are_read_below_the_folders_that_wrap_a_set(tmp_path: Path, folders: str) -> None:
    images = {f"{split}/{i}.png": encode_png(i) for i, split in enumerate(("train", "train", "valid", "valid"))}
    tables = {f"{split}/_classes.csv": f"filename,cat,dog\n{i}.png,1,0\n{i + 1}.png,0,1\n".encode()
              for i, split in ((0, "train"), (2, "valid"))}  # fmt: skip
    files = {folders + key: content for key, content in (images | tables).items()}
    for source in (write_files(tmp_path / "a", files), write_zip(tmp_path / "a.zip", files)):
        labels = {image.path: (image.label, image.split) for image in build_index(source).images}
        assert labels == {
            f"{folders}{key}": ("dog" if i % 2 else "cat", "validation" if i > 1 else "train")
            for i, key in enumerate(images)
        }


@pytest.mark.parametrize("folder", ["", "set/"])
def test_the_outermost_of_several_tables_labels_a_set(tmp_path: Path, folder: str) -> None:
    files = {f"images/{i}.png": encode_png(i) for i in range(3)} | {
        "train.csv": b"filename,label\n0.png,cat\n1.png,dog\n2.png,cat\n",
        "results/labels.csv": b"filename,label\n0.png,dog\n1.png,dog\n2.png,bird\n",
    }
    write_files(tmp_path, {folder + key: content for key, content in files.items()})
    assert [image.label for image in build_index(tmp_path).images] == ["cat", "dog", "cat"]


def test_a_table_of_more_images_further_down_is_not_of_the_set(tmp_path: Path) -> None:
    files = {f"set/images/{i}.png": encode_png(i) for i in range(3)} | {
        "set/train.csv": b"filename,label\n0.png,cat\n1.png,dog\n",
        "set/boxes/boxes.csv": b"filename,label\n0.png,ear\n1.png,eye\n2.png,eye\n",
    }
    assert [image.label for image in build_index(write_files(tmp_path, files)).images] == ["cat", "dog"]


def test_the_table_of_an_archive_can_be_named(tmp_path: Path) -> None:
    files = {f"bilder/{i}.png": encode_png(i) for i in range(2)} | {"art.csv": b"Datei;Art\n0.png;cat\n1.png;dog\n"}
    options = DataConfig(labels="art.csv", columns=ColumnsConfig(label="Art"))
    for source in (write_zip(tmp_path / "a.zip", files), write_files(tmp_path / "a", files)):
        index = build_index(source, options=options)
        assert [image.label for image in index.images] == ["cat", "dog"]
        assert index.other_files == ()


def test_archives_of_splits_whose_files_are_named_by_class(tmp_path: Path) -> None:
    """As Dogs vs. Cats: train.zip holds ``train/cat.0.jpg``; its test images may have labels, or only numbers."""
    train = [f"train/{label}.{i}.png" for label in ("cat", "dog") for i in range(3)]
    write_zip(tmp_path / "train.zip", {name: encode_png(i) for i, name in enumerate(train)})
    for name, stems in (("test.zip", ("cat.6", "cat.7", "dog.8", "dog.9")), ("test1.zip", ("1", "2"))):
        content = {f"{Path(name).stem}/{stem}.png": encode_png(i + 10) for i, stem in enumerate(stems)}
        held_out = write_zip(tmp_path / name, content)
        index = build_index(tmp_path)
        splits = {image.path.partition("/")[0]: image.split for image in index.images}
        assert splits == {"train.zip": "train"} | ({"test.zip": "test"} if name == "test.zip" else {})
        assert {image.label for image in index.images} == {"cat", "dog"}
        unlabeled = [(note.path, note.reason) for note in index.notes if note.kind == "unlabeled-folders"]
        assert unlabeled == ([] if name == "test.zip" else [("test1.zip", "2 images")])
        held_out.unlink()


def test_an_archive_for_each_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    for i, name in enumerate(("bus", "photos", "train")):
        write_zip(tmp_path / f"{name}.zip", {f"{name}/1.png": encode_png(i)})
    assert [image.label for image in build_index(tmp_path).images] == ["bus", "photos", "train"]


def test_an_archive_for_each_class_of_each_split_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    places = [(split, label) for split in ("test", "train") for label in ("bus", "car", "train")]
    for i, (split, label) in enumerate(places):
        (tmp_path / split).mkdir(exist_ok=True)
        write_zip(tmp_path / split / f"{label}.zip", {f"{label}/1.png": encode_png(i)})
    assert [(image.split, image.label) for image in build_index(tmp_path).images] == places


@pytest.mark.parametrize(
    ("classes", "split"), [(("cat", "dog"), None), (("n01440764", "n01443537"), None), (("cat", "dog"), "train")]
)
def test_archives_without_folders_are_classes(tmp_path: Path, classes: tuple[str, str], split: Split | None) -> None:
    folder = tmp_path / (split or "")
    folder.mkdir(exist_ok=True)
    archives = [folder / f"{label}.zip" for label in classes]
    for i, path in enumerate(archives):
        write_zip(path, {f"{k}.png": encode_png(i + 2 * k) for k in range(2)})
    for index in (build_index(tmp_path), *([] if split else [build_index(archives)])):
        assert [(p.label, p.split) for p in index.images] == [(label, split) for label in classes for _ in range(2)]
        assert [(note.kind, note.path) for note in index.notes] == [("labels-from-names", label) for label in classes]


@pytest.mark.parametrize(
    "names", [("part1", "part2"), ("cc3m-01", "cc3m-02"), ("images_a", "images_b"), ("cat", "test")]
)
def test_archives_that_are_parts_of_a_set_are_not_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    for i, name in enumerate(names):
        write_zip(tmp_path / f"{name}.zip", {f"{i}.png": encode_png(i)})
    with pytest.raises(DataError, match="is not in a class folder"):
        build_index(tmp_path)


@pytest.mark.parametrize("name", ["sample_submission.csv", "sampleSubmission.csv", "submission_format.csv"])
def test_an_example_of_a_submission_gives_no_labels(tmp_path: Path, name: str) -> None:
    names = [f"train/{label}.{i}.png" for label in ("cat", "dog") for i in range(2)]
    files = [*names, *(f"test/{i}.png" for i in range(9))]
    write_table(tmp_path, "id,label\n" + "".join(f"{i},0\n" for i in range(9)), name=name, files=files)
    assert {p.path: p.label for p in build_index(tmp_path).images} == {key: key[6:9] for key in names}


def test_a_table_beside_class_folders_changes_nothing(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/a.png": encode_png(1), "dog/b.png": encode_png(2)})
    write_label_table(tmp_path)
    assert {p.label for p in build_index(tmp_path).images} == {"cat", "dog"}
    assert build_index(tmp_path).notes == ()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
@pytest.mark.parametrize("inside", [True, False])
def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path, inside: bool) -> None:
    write_files(tmp_path / "set", {"1.jpg": encode_png(1), "2.jpg": encode_png(2)})
    os.mkfifo(tmp_path / ("set/labels.csv" if inside else "labels.csv"))
    reason = r"set/labels\.csv cannot be read: .*not a regular file" if inside else "None of the 2 images"
    with pytest.raises(DataError, match=reason):
        build_index(tmp_path / "set")


@pytest.mark.parametrize(
    ("encoding", "names"), [("big5", ("蘋果樹葉", "香蕉樹葉")), ("shift_jis", ("りんごの葉", "ばななの葉"))]
)
def test_an_encoding_is_a_setting(tmp_path: Path, encoding: str, names: tuple[str, str]) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    path = tmp_path / "labels.csv"
    path.write_bytes("".join(f"{i}.png,{name}\n" for i, name in enumerate(names)).encode(encoding))
    named = read_manifest(path, DataConfig(encoding=encoding))
    assert [e.label for e in named.items] == list(names)
    assert named.notes == []
    assert [r.kind for r in read_manifest(path, DataConfig(encoding="latin-1")).notes] == []


def test_a_guessed_encoding_is_reported(tmp_path: Path) -> None:
    names = ("苹果树叶", "香蕉树叶")
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"")
    path = tmp_path / "labels.csv"
    path.write_text("".join(f"{i}.png,{name}\n" for i, name in enumerate(names)), encoding="gb18030")
    guessed = read_manifest(path)
    assert [e.label for e in guessed.items] == list(names)
    assert [r.kind for r in guessed.notes] == ["guessed-encoding"]
    assert read_manifest(path, DataConfig(encoding="gbk")).notes == []


def test_an_unknown_encoding_is_refused() -> None:
    for name in ("klingon", "base64", "undefined"):
        with pytest.raises(ConfigError, match=r"data\.encoding cannot be .* such as big5"):
            resolve_config(assignments=[f"data.encoding={name}"])


@pytest.mark.parametrize(
    ("name", "make_text"),
    [
        ("list.csv", lambda: "," * 5_000_000),
        ("list.csv", lambda: "1.jpg,cat\n" + "," * 20_000 + "2.jpg\n"),
        ("list.csv", lambda: "path,label," + ",".join(map(str, range(9_000))) + "\n" + "1.jpg,cat\n" * 100_000),
        ("list.json", lambda: json.dumps([{"path": "1.jpg", "label": "cat", str(i): 1} for i in range(20_000)])),
    ],
    ids=["commas", "one wide row", "a wide header over short rows", "a key for each entry"],
)
def test_a_small_table_cannot_take_all_memory(tmp_path: Path, name: str, make_text: Callable[[], str]) -> None:
    """Filling 100,000 short rows to 9,000 columns would take 30 GB."""
    path = write_table(tmp_path, make_text(), name=name)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"has [\d,]+ columns"):
            read_manifest(path)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "make_text", "limit"),
    [
        ("list.csv", lambda limit: "path,label\n" + "a,b\n" * (limit + 1), LimitsConfig().table_rows),
        ("list.csv", lambda limit: "a,b\r" * (limit + 1), 100_000),
        ("list.jsonl", lambda limit: "{}\n" * (limit + 1), 100_000),
        ("list.json", lambda limit: "[" + "{}," * 4 * (limit + 1) + "{}]", 100_000),
        ("list.json", lambda limit: json.dumps({str(i): 1 for i in range(limit + 1)}), 100_000),
    ],
    ids=["short rows, the default", "line ends of old Macs", "JSON lines", "JSON", "a JSON object"],
)
def test_rows_in_bulk_are_refused_before_they_are_looked_up(
    tmp_path: Path, name: str, make_text: Callable[[int], str], limit: int
) -> None:
    path = write_table(tmp_path, make_text(limit), name=name)
    config = DataConfig(limits=LimitsConfig(table_rows=limit))
    with pytest.raises(DataError, match=rf"has more than {limit:,} rows\. .*data\.limits\.table_rows"):
        read_manifest(path, config)


def test_the_limit_of_rows_is_a_setting(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(b"x")
    path = write_table(tmp_path, "path,label\n" + "".join(f"{i}.jpg,cat\n" for i in range(3)))
    with pytest.raises(DataError, match="has more than 2 rows"):
        read_manifest(path, DataConfig(limits=LimitsConfig(table_rows=2)))
    assert len(read_manifest(path, DataConfig(limits=LimitsConfig(table_rows=4))).items) == 3


def test_the_size_limit_holds_for_images_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "small.jpg").write_bytes(b"x" * 1000)
    (tmp_path / "large.jpg").write_bytes(b"x" * 3000)
    path = write_table(tmp_path, "path,label\nsmall.jpg,cat\nlarge.jpg,cat\n")
    items = read_manifest(path, DataConfig(limits=LimitsConfig(file_mb=0.002))).items
    assert items[0].store.read(items[0].key) == b"x" * 1000
    with pytest.raises(ImageError, match=r"limit 0\.002 \(data\.limits\.file_mb\)"):
        items[1].store.read(items[1].key)


def write_tables(folder: Path, tables: dict[str, str], images: Sequence[str]) -> None:
    write_files(folder, {name: encode_png(i) for i, name in enumerate(images)})
    write_files(folder, {name: text.encode() for name, text in tables.items()})


@pytest.mark.parametrize(
    ("tables", "folders"),
    [
        (("train.csv", "val.csv", "test.csv"), ("images/", "images/", "images/")),
        (("train/_classes.csv", "valid/_classes.csv", "test/_classes.csv"), ("train/", "valid/", "test/")),
    ],
    ids=["beside one folder", "in the folder of each split"],
)
def test_a_table_for_each_split_states_the_splits(
    tmp_path: Path, tables: Sequence[str], folders: Sequence[str]
) -> None:
    names = [f"{folder}{split}{i}.png" for split, folder in enumerate(folders) for i in range(2)]
    texts = {t: f"file,label\n{split}0.png,cat\n{split}1.png,dog\n" for split, t in enumerate(tables)}
    write_tables(tmp_path, texts, names)
    index = build_index(tmp_path)
    labels = {image.path: (image.label, image.split) for image in index.images}
    splits = ("train", "validation", "test")
    assert labels == {name: ("cat" if name[-5] == "0" else "dog", splits[i // 2]) for i, name in enumerate(names)}
    assert sorted(n.kind for n in index.notes) == ["labels-from-table"] * 3
    assert index.other_files == ()  # the tables are used


@pytest.mark.parametrize(
    ("text", "held_out"),
    [
        ("8.png,71\n9.png,72\n", {}),
        ("8.png,dog\n9.png,owl\n", {"8.png": "dog", "9.png": "owl"}),
        ("8.png,Cat\n9.png,Dog\n", {"8.png": "Cat", "9.png": "Dog"}),
    ],
    ids=["ids", "labels", "labels that the training split lacks, which is an error in training"],
)
def test_a_table_of_the_test_split_without_a_header_may_hold_ids(
    tmp_path: Path, text: str, held_out: dict[str, str]
) -> None:
    tables = {"train.csv": "file,label\n1.png,cat\n2.png,dog\n3.png,dog\n", "test.csv": text}
    write_tables(tmp_path, tables, [f"{i}.png" for i in (1, 2, 3, 8, 9)])
    labels = {image.path: image.label for image in build_index(tmp_path).images}
    assert labels == {"1.png": "cat", "2.png": "dog", "3.png": "dog"} | held_out


@pytest.mark.parametrize("test_header", ["id,label", "id"], ids=["labeled", "unlabeled"])
def test_a_table_named_as_a_split_means_the_images_in_the_folder_of_that_split(
    tmp_path: Path, test_header: str
) -> None:
    write_tables(
        tmp_path,
        {
            "train.csv": "id,label\n1,cat\n2,dog\n3,dog\n",
            "test.csv": f"{test_header}\n" + ("1,dog\n2,cat\n" if "label" in test_header else "1\n2\n"),
        },
        ["train/1.png", "train/2.png", "train/3.png", "test/1.png", "test/2.png"],
    )
    labels = {image.path: (image.label, image.split) for image in build_index(tmp_path).images}
    train = {"train/1.png": ("cat", "train"), "train/2.png": ("dog", "train"), "train/3.png": ("dog", "train")}
    test = {"test/1.png": ("dog", "test"), "test/2.png": ("cat", "test")}
    assert labels == (train | test if "label" in test_header else train)
    named = {image.path: image.label for image in build_index(tmp_path / "train.csv").images}
    assert list(named.values()) == ["cat", "dog", "dog"]


def test_a_table_of_the_training_split_does_not_label_images_of_its_names_in_another(tmp_path: Path) -> None:
    texts = {"labels.csv": "id,label\n1,cat\n2,dog\n", "val.csv": "id,label\n1,dog\n2,cat\n"}
    write_tables(tmp_path, texts, [f"{split}/{i}.png" for split in ("train", "test", "val") for i in (1, 2)])
    assert [image.label for image in build_index(tmp_path / "train").images] == ["cat", "dog"]
    assert [image.label for image in build_index(tmp_path / "val").images] == ["dog", "cat"]
    with pytest.raises(DataError, match=r"None of the 2 images .*or in a table with --set data\.labels=FILE"):
        build_index(tmp_path / "test")
    write_tables(
        tmp_path / "one", {"labels.csv": "id,label\n3,cat\n4,dog\n"}, ["train/1.png", "test/3.png", "test/4.png"]
    )
    assert [image.label for image in build_index(tmp_path / "one" / "test").images] == ["cat", "dog"]


def test_tables_of_splits_that_share_images_are_not_joined(tmp_path: Path) -> None:
    texts = {"train.csv": "file,label\n1.png,cat\n2.png,dog\n3.png,dog\n", "val.csv": "file,label\n1.png,cat\n"}
    write_tables(tmp_path, texts, ["1.png", "2.png", "3.png"])
    index = build_index(tmp_path)
    assert [(image.path, image.split) for image in index.images] == [("1.png", None), ("2.png", None), ("3.png", None)]


def test_a_table_that_gives_the_labels_is_not_counted_as_ignored(tmp_path: Path) -> None:
    write_tables(tmp_path, {"labels.csv": "id,label\n1,cat\n2,dog\n"}, ["1.png", "2.png"])
    assert build_index(tmp_path).other_files == ()
    assert build_index(tmp_path, options=DataConfig(labels=str(tmp_path / "labels.csv"))).other_files == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.parquet", "is a Parquet or Arrow file, from which images are read, but not labels: write it as CSV"),
        ("labels.bin", "cannot be read as text: it has control characters, as a binary file does"),
    ],
)
def test_a_table_that_is_not_text_is_refused(tmp_path: Path, name: str, message: str) -> None:
    write_files(tmp_path, {"1.png": encode_png(1), name: b"PAR1\x15\x04\x15\x00\x15\x1c,L\x00\x15\x00\x12\x00"})
    with pytest.raises(DataError, match=message):
        build_index(tmp_path, options=DataConfig(labels=str(tmp_path / name)))


def test_a_table_without_a_usual_separator_is_split_at_spaces(tmp_path: Path) -> None:
    attributes = "2\nSmiling Young \n000001.jpg -1  1\n000002.jpg  1 -1\n"  # as in list_attr_celeba.txt
    write_files(tmp_path, {f"faces/{i:06}.jpg": encode_png(i) for i in (1, 2)} | {"list.txt": attributes.encode()})
    options = DataConfig(labels=str(tmp_path / "list.txt"))
    assert [image.label for image in build_index(tmp_path / "faces", options=options).images] == ["Young", "Smiling"]
    for text, labels in {
        "000001.jpg 7\n000002 12\n": ["7", "12"],
        "000001.jpg Boeing 737\n000002.jpg A380\n": ["Boeing 737", "A380"],  # as in FGVC-Aircraft
        "Image class\n000001 7\n000002 12": ["7", "12"],
    }.items():
        (tmp_path / "list.txt").write_text(text)
        assert [image.label for image in build_index(tmp_path / "faces", options=options).images] == labels
    pets = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n000001 1 1 1\n000002 13 2 1\n"
    (tmp_path / "list.txt").write_text(pets)  # its header has more words than the lines have cells
    with pytest.raises(
        DataError, match=r"has no header, so its columns are numbered 1, 2, 3, 4 \(the first row: 000001"
    ):
        build_index(tmp_path / "faces", options=options)


@pytest.mark.parametrize("how", ["source", "labels"])
def test_a_spreadsheet_is_refused_with_what_to_do(tmp_path: Path, how: str) -> None:
    write_files(tmp_path, {"1.png": encode_png(1), "labels.xlsx": b"PK\3\4"})
    path = tmp_path / "labels.xlsx"
    with pytest.raises(DataError, match=r"labels\.xlsx is a spreadsheet, which cannot be read: save it as CSV"):
        build_index(path) if how == "source" else build_index(tmp_path, options=DataConfig(labels=str(path)))


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "\nSEP=;", "sep=\t"])
def test_the_line_that_tells_excel_the_separator_is_passed_over(tmp_path: Path, first: str) -> None:
    path = write_table(tmp_path, f"{first}\nfile;label\n1.jpg;cat\n2.jpg;dog\n")
    assert labels_and_splits(read_manifest(path)) == BOTH
