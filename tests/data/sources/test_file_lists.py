"""Lists beside class folders, as data sets are published with them: of splits, and of the labels of a split."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import Mock

import pytest

from sightline.config import ColumnsConfig, DataConfig
from sightline.data.checks.audit import quick_audit
from sightline.data.indexing import build_index
from sightline.data.sources import image_lists
from sightline.data.sources.table import read_table
from sightline.errors import DataError
from sightline.runs.preflight import raise_for_errors
from synthetic_images import encode_png, write_files, write_zip

FOLDERS = ("images/cat/a 1.jpg", "images/cat/2.jpg", "images/dog/a 1.jpg", "images/dog/3.jpg")
SPLITS = {FOLDERS[0]: "train", FOLDERS[1]: "test", FOLDERS[2]: "train", FOLDERS[3]: "test"}
COCO = '{"images": [%s], "annotations": [], "categories": []}'

LISTS: Mapping[str, Mapping[str, str]] = {
    "Food-101": {
        "meta/train.txt": "cat/a 1\ndog/a 1\n", "meta/test.txt": "cat/2\ndog/3\n",
        "meta/train.json": '{"cat": ["cat/a 1"]}', "meta/classes.txt": "cat\ndog\n",
    },
    "CUB-200": {
        "images.txt": "".join(f"{i} {key.removeprefix('images/')}\n" for i, key in enumerate(FOLDERS, 1)),
        "train_test_split.txt": "1 1\n2 0\n3 1\n4 0\n", "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    },
    "paths and classes": {"train_list.txt": "cat/a 1.jpg 0\ndog/a 1.jpg 1", "test_list.txt": "cat/2.jpg 0\n3.jpg 1"},
    "EuroSAT": {
        "train.csv": ",Filename,Label\n0,cat/a 1.jpg,0\n1,dog/a 1.jpg,1\n",
        "test.csv": ",Filename,Label\n0,cat/2.jpg,0\n1,dog/3.jpg,1\n",
    },
    "trainval": {"meta/trainval.txt": "cat/a 1 1\ndog/a 1 2\n", "meta/test.txt": "cat/2 1\ndog/3 2\n"},
    "DTD": {
        "labels/train1.txt": "cat/a 1.jpg\ndog/a 1.jpg\n", "labels/test1.txt": "cat/2.jpg\ndog/3.jpg\n",
        "labels/train2.txt": "cat/2.jpg\ndog/a 1.jpg\n", "labels/test2.txt": "cat/a 1.jpg\ndog/3.jpg\n",
    },
    "a flag": {"meta.csv": "path,is_train\n" + "".join(f"{k},{int(s == 'train')}\n" for k, s in SPLITS.items())},
    "AutoML": {"import.csv": "".join(f"{split.upper()},gs://bucket/{key},x\n" for key, split in SPLITS.items())},
    "iNaturalist": {
        f"{split}2017.json": COCO % ", ".join(
            f'{{"id": {i}, "file_name": "{key}"}}' for i, key in enumerate(FOLDERS) if SPLITS[key] == split
        )
        for split in ("train", "test")
    },
}  # fmt: skip


def write_source(folder: Path, images: tuple[str, ...], lists: Mapping[str, str]) -> dict[str, bytes]:
    files = {name: encode_png(i) for i, name in enumerate(images)} | {key: t.encode() for key, t in lists.items()}
    write_files(folder, files)
    return files


@pytest.mark.parametrize("name", LISTS)
def test_lists_give_the_splits_of_class_folders(tmp_path: Path, name: str) -> None:
    files = write_source(tmp_path / "set", FOLDERS, LISTS[name])
    archive = write_zip(tmp_path / "set.zip", {f"set-1.0/{key}": content for key, content in files.items()})
    for source, prefix in ((tmp_path / "set", ""), (archive, "set-1.0/")):
        index = build_index(source)
        assert {p.path.removeprefix(prefix): p.split for p in index.images} == SPLITS
        assert {p.label for p in index.images} == {"cat", "dog"}
        assert {n.kind for n in index.notes} == {"splits-from-lists"}
        assert index.empty_classes == ()


@pytest.mark.parametrize(
    ("lists", "reason"),
    [
        ({"train.txt": "cat/a 1\ndog/a 1\n", "test.txt": "cat/2\n"}, "3 of 4 images are in one split"),
        ({"train.txt": "cat/a 1\ndog/a 1\ncat/2\n", "test.txt": "cat/2\ndog/3"}, "3 of 4 images are in one split"),
    ],
    ids=["an image in none", "an image in two"],
)
def test_lists_that_do_not_name_each_image_once_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: Mapping[str, str], reason: str
) -> None:
    write_source(tmp_path, FOLDERS, lists)
    read = Mock(wraps=read_table)
    monkeypatch.setattr(image_lists, "read_table", read)
    index = build_index(tmp_path)
    assert sorted(call.args[1] for call in read.call_args_list) == sorted(lists)  # once each
    assert {p.split for p in index.images} == {None}
    assert [(n.kind, n.path, n.reason) for n in index.notes] == [
        ("unread-splits", name, reason) for name in sorted(lists)
    ]


@pytest.mark.parametrize(
    "lists",
    [
        {"train.txt": "cat/a 1\ncat/2\ndog/a 1\ndog/3\n", "notes.txt": "train"},
        {"train.csv": "id,label\n1,cat\n", "test.csv": "id\n9\n"},
        {"images/cat/train.txt": "cat/a 1\ndog/a 1\n", "images/cat/test.txt": "cat/2\ndog/3\n"},
        {"train.txt": "\0\xff", "train_test_split.txt": "", "images.txt": "[", "test.json": "{", "a.csv": '"'},
    ],
    ids=["one split", "other images", "text in a class folder", "damaged"],
)
def test_other_files_beside_class_folders_change_nothing(tmp_path: Path, lists: Mapping[str, str]) -> None:
    write_source(tmp_path, FOLDERS, lists)
    index = build_index(tmp_path)
    assert {p.split for p in index.images} == {None}
    assert index.notes == ()


@pytest.mark.parametrize(
    "lists",
    [
        {"train_val_list.txt": "f/1.png\nf/2.png\n4.png\n5.png\n", "test_list.txt": "3.png\n"},
        {"list_eval_partition.txt": "1.png 0\n2.png 1\n3.png 2\n4.png 0\n5.png 0\n"},
        {"list_eval_partition.csv": "image_id,partition\n1.png,0\n2.png,1\n3.png,2\n4.png,0\n5.png,0\n"},
    ],
    ids=["NIH ChestX-ray", "CelebA", "CelebA of Kaggle"],
)
def test_lists_give_the_splits_of_images_that_a_table_labels(tmp_path: Path, lists: Mapping[str, str]) -> None:
    write_source(
        tmp_path,
        tuple(f"f/{i}.png" for i in range(1, 6)),
        {**lists, "labels.csv": "id,label\n1,a\n2,a\n3,b\n4,b\n5,b\n"},
    )
    expected = ["train", "train" if len(lists) > 1 else "validation", "test", "train", "train"]
    for options in (DataConfig(), DataConfig(labels="labels.csv")):
        index = build_index(tmp_path, options=options)
        assert [(p.label, p.split) for p in index.images] == list(zip("aabbb", expected, strict=True))
        assert [n.path for n in index.notes if n.kind == "splits-from-lists"] == sorted(lists)


TRAINING = tuple(f"train/{label}/images/{label}_{i}.png" for label in ("n01", "n02") for i in range(2))
ALONE = tuple(f"val/images/val_{i}.png" for i in range(2))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("val/val_annotations.txt", "val_0.png\tn02\t0\t32\t44\t62\nval_1.png\tn01\t52\t55\t57\t59\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nval_0,n02 1 2 3 4 n02 1 2 3 4\nval_1,n01 1 2 3 4\n"),
        ("Val.csv", "Width,ClassId,Path\n9,n02,Val/val_0.png\n9,n01,Val/val_1.png\n"),
        ("val.txt", "val/images/val_0.png n02\nval/images/val_1.png n01\n"),
    ],
    ids=["Tiny ImageNet", "ImageNet", "GTSRB", "paths and classes"],
)
def test_a_list_labels_a_split_without_class_folders(tmp_path: Path, key: str, text: str) -> None:
    images = tuple(name.replace("val/images", "Val") if key == "Val.csv" else name for name in ALONE)
    numbers = {"lists/val.txt": "val_0 1\nval_1 2\n"}  # as in ImageNet
    write_source(tmp_path, (*TRAINING, *images), {key: text} | numbers)
    index = build_index(tmp_path)
    held_out = {p.path: p.label for p in index.images if p.split == "validation"}
    assert held_out == dict(zip(images, ("n02", "n01"), strict=True))
    assert [(n.kind, n.path, n.reason) for n in index.notes] == [("labels-from-table", key, "of the validation split")]


@pytest.mark.parametrize(("column", "is_labeled"), [("ClassId", True), ("Roi.X1", False)])
def test_zeros_before_the_number_of_a_class_do_not_matter_in_a_column_of_labels(
    tmp_path: Path, column: str, is_labeled: bool
) -> None:
    images = (*(name.replace("n0", "0000") for name in TRAINING), *ALONE)
    write_source(tmp_path, images, {"GT-final_val.csv": f"Filename;{column}\nval_0.png;2\nval_1.png;1\n"})
    index = build_index(tmp_path)
    held_out = {p.path: p.label for p in index.images if p.split == "validation"}
    assert held_out == (dict(zip(ALONE, ("00002", "00001"), strict=True)) if is_labeled else {})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("val_submission.csv", "id,label\nval_0,n01\nval_1,n02\n"),
        ("val.csv", "id,label\nval_0,n01\nval_1,n01\n"),
        ("val.csv", "id,label\nval_0,n01\n"),
        ("test.csv", "id,label\nval_0,n01\nval_1,n02\n"),
        ("val.csv", "id,v,w\nval_0,n01,n02\nval_1,n02,n01\n"),
    ],
    ids=["a submission", "one class", "not all", "of another split", "two columns"],
)
def test_a_list_that_may_mean_something_else_labels_nothing(tmp_path: Path, key: str, text: str) -> None:
    write_source(tmp_path, (*TRAINING, *ALONE), {key: text})
    index = build_index(tmp_path)
    assert {p.split for p in index.images} == {"train"}
    assert [(n.kind, n.path, n.reason) for n in index.notes] == [("unlabeled-folders", "val", "2 images")]


def test_identifiers_of_wordnet_do_not_number_the_parts_of_a_table(tmp_path: Path) -> None:
    images = [f"train/{name}/{name}_{i}.jpg" for name in ("n01440764", "n02102040") for i in range(2)]
    write_source(tmp_path, tuple(images), {"noisy.csv": "path,noisy\n" + "".join(f"{key},x\n" for key in images)})
    assert build_index(tmp_path).notes == ()


def test_a_list_of_images_and_masks_has_no_classes(tmp_path: Path) -> None:
    """As CamVid comes with SegNet."""
    pairs = {f"{split}/{i}.png": f"{split}annot/{i}.png" for split in ("train", "val") for i in range(2)}
    lists = {
        f"{split}.txt": "".join(f"/SegNet/{i} /SegNet/{m}\n" for i, m in pairs.items() if i.startswith(split))
        for split in ("train", "val")
    }
    write_source(tmp_path, (*pairs, *pairs.values()), lists)
    with pytest.raises(DataError, match=r"/train\.txt has masks, but .* has no classes\.csv"):
        build_index(tmp_path)


PARTS = tuple(f"images_part_{1 + i // 2 % 2}/x{i}.png" for i in range(8))


@pytest.mark.parametrize(
    ("images", "table", "reason"),
    [
        (("images/x1.png", "images/x2.png"), "id,color\nx1,red\nx2,blue\n", "columns are id, color"),
        (FOLDERS, "path,y\nimages/cat/a 1.jpg,m\n2,f\nimages/dog/a 1.jpg,m\n3,f\n", "other labels, such as f, m"),
    ],
    ids=["one folder", "other labels"],
)
def test_a_table_that_may_be_meant_in_place_of_the_folders_is_named(
    tmp_path: Path, images: tuple[str, ...], table: str, reason: str
) -> None:
    write_source(tmp_path, images, {"data.csv": table})
    notes = [(n.kind, n.path, n.reason) for n in build_index(tmp_path).notes]
    words = "a table whose" if reason.startswith("columns") else "a table of"
    assert notes == [("unread-labels", "data.csv", f"{words} {reason}")]
    column = table.partition("\n")[0].rpartition(",")[2]
    labeled = build_index(tmp_path, options=DataConfig(labels="data.csv", columns=ColumnsConfig(label=column)))
    assert len({image.label for image in labeled.images}) == 2


SITES = tuple(f"site{s}/{i}.png" for s in "AB" for i in (1, 2))
SITE_ROWS = "site,file,label\nsiteA,1.png,x\nsiteA,2.png,y\nsiteB,1.png,y\nsiteB,2.png,x\n"


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (SITE_ROWS, "site"),
        (SITE_ROWS.replace("site,", "folder,", 1), "folder"),
        ("Patient_ID,age\nsiteA,34\nsiteB,51\n", "Patient_ID"),
        ("name,category\nsiteA,place\nsiteB,place\n", ""),
        ("site,age\nsiteA,34\nsiteC,51\n", ""),
    ],
    ids=["site", "folder", "patient", "parent classes", "other folders"],
)
def test_a_table_that_names_the_folders_as_no_classes_is_named(tmp_path: Path, table: str, column: str) -> None:
    write_source(tmp_path, SITES, {"data.csv": table})
    notes = [(n.kind, n.path, n.reason) for n in build_index(tmp_path).notes]
    reason = f"a table with the class folders in its column {column!r}"
    assert notes == ([("unread-labels", "data.csv", reason)] if column else [])


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("val.txt", "1.png 0\n2.png 1\n", "0"),
        ("val.csv", "1.png,tabby\n2.png,pug\n", "tabby"),
        ("val.csv", "image,class,size\n1.png,0,9\n2.png,1,9\n", "0"),
        ("val.csv", "image,class\n1.png,n02123045\n2.png,n02112018\n", "n02112018"),
        ("val.txt", "1.png\n2.png\n", ""),
        ("val.csv", "image,size\n1.png,9\n2.png,9\n", ""),
    ],
    ids=["ImageNet", "names", "column", "another class", "no labels", "no column"],
)
def test_a_list_of_a_split_whose_labels_are_unknown_is_named(tmp_path: Path, name: str, text: str, label: str) -> None:
    write_source(tmp_path, ("train/n02123045/a.png", "train/n02110958/b.png", "val/1.png", "val/2.png"), {name: text})
    notes = [(n.path, n.reason) for n in build_index(tmp_path).notes if n.kind == "unread-labels"]
    reason = f"a list of validation images whose labels, such as {label!r}, are not the names of class folders"
    assert notes == ([(name, reason)] if label else [])


def test_lists_of_folders_that_look_like_splits_give_no_splits(tmp_path: Path) -> None:
    lists = {f"label_{s}.csv": f"file,race\n{s}/1.png,a\n{s}/2.png,b\n" for s in ("train", "val")}  # as in FairFace
    write_source(tmp_path, tuple(f"{s}/{i}.png" for s in ("train", "val") for i in (1, 2)), lists)
    index = build_index(tmp_path)
    with pytest.raises(DataError, match=r"^split-folders: .* or from a table \(--set data\.labels\)"):
        raise_for_errors(quick_audit(index).findings, ())
    assert {image.split for image in index.images} == {None}


def test_a_table_of_labels_that_names_no_image_is_named(tmp_path: Path) -> None:
    write_source(tmp_path, ("images/01.png", "images/02.png"), {"data.csv": "id,label\n1,red\n2,blue\n"})
    notes = [(n.kind, n.path, n.reason) for n in build_index(tmp_path).notes]
    expected = ("unread-labels", "data.csv", "a table whose column 'id' names no image, such as '1'")
    assert notes == [expected]
    write_source(tmp_path / "split", ("train/01.png", "test/02.png"), {"data.csv": "id,label\n1,red\n2,blue\n"})
    notes = [(n.kind, n.path, n.reason) for n in build_index(tmp_path / "split").notes]
    assert expected in notes, "folders that look like splits"
    rows = "raw/images/1.png,red\nraw/images/2.png,blue\n"  # paths relative to a folder that is not here
    write_source(tmp_path / "one", ("images/1.png", "images/2.png"), {"data.csv": f"path,label\n{rows}"})
    notes = [(n.kind, n.path, n.reason) for n in build_index(tmp_path / "one").notes]
    assert notes == [("unread-labels", "data.csv", "a table of other labels, such as blue, red")]


@pytest.mark.parametrize(("text", "is_named"), [("x1.png 1\nx2.png 2\n", True), ("x1.png\nx2.png\n", False)])
def test_lists_that_say_different_things_of_the_images_of_one_folder_are_named(
    tmp_path: Path, text: str, is_named: bool
) -> None:
    lists = {"data.txt": text, "number.txt": text.replace(" ", " 7"), "README.txt": "label, path\nof it"}
    write_source(tmp_path, ("images/x1.png", "images/x2.png"), lists)
    notes = [(n.path, n.reason) for n in build_index(tmp_path).notes]
    assert notes == [(name, "a table whose cells are separated by spaces") for name in list(lists)[:2]] * is_named
    if is_named:
        options = DataConfig(labels="data.txt")
        assert [image.label for image in build_index(tmp_path, options=options).images] == ["1", "2"]


@pytest.mark.parametrize("suffix", ["txt", "lst", "csv"])
@pytest.mark.parametrize("folders", [("images", "images"), ("train", "val")], ids=["one folder", "a folder for each"])
def test_lists_of_paths_and_labels_are_read(tmp_path: Path, suffix: str, folders: tuple[str, str]) -> None:
    images = (f"{folders[0]}/a1.png", f"{folders[0]}/a2.png", f"{folders[1]}/b1.png", f"{folders[1]}/b2.png")
    files = {"labels/1.txt": "0 0.5 0.5 1 1\n", "README.txt": "two words"}
    lists = {f"train.{suffix}": "a1.png red deer\na2.png dog\n", f"val.{suffix}": "b1.png dog\nb2.png red deer\n"}
    write_source(tmp_path, images, files | lists)
    labels = {image.path: (image.label, image.split) for image in build_index(tmp_path).images}
    expected = (("red deer", "train"), ("dog", "train"), ("dog", "validation"), ("red deer", "validation"))
    assert labels == dict(zip(images, expected, strict=True))
    named = build_index([tmp_path / name for name in lists])
    assert [image.split for image in named.images] == ["train", "train", "validation", "validation"]


def test_lists_name_images_in_another_unicode_form(tmp_path: Path) -> None:
    images = tuple(unicodedata.normalize("NFC", f"café/é{i}.jpg") for i in range(4))
    text = unicodedata.normalize("NFD", "\n".join(images))
    write_source(tmp_path, images, {"train.txt": text[: len(text) // 2], "test.txt": text[len(text) // 2 :]})
    assert [image.split for image in build_index(tmp_path).images] == ["train", "train", "test", "test"]


@pytest.mark.parametrize("header", ["image_id,dx", "image,label"])
def test_a_table_labels_the_images_of_folders_that_number_parts(tmp_path: Path, header: str) -> None:
    write_source(tmp_path, PARTS, {"data.csv": f"{header}\n" + "".join(f"x{i},{'ab'[i % 2]}\n" for i in range(8))})
    index = build_index(tmp_path)
    assert {image.path: image.label for image in index.images} == {key: "ab"[i % 2] for i, key in enumerate(PARTS)}
    assert [note.kind for note in index.notes] == ["labels-from-table"]
    for options in (DataConfig(class_level=1), DataConfig(allow_findings=("numbered-folders",))):
        assert {image.label for image in build_index(tmp_path, options=options).images} == {
            "images_part_1", "images_part_2",
        }  # fmt: skip


def test_folders_that_number_parts_are_an_error_where_the_column_of_labels_is_not_known(tmp_path: Path) -> None:
    rows = "".join(f"x{i},{i % 2}\n" for i in range(8))
    write_source(tmp_path, PARTS, {"data.csv": f"image_id,result\n{rows}"})
    findings = quick_audit(build_index(tmp_path)).findings
    with pytest.raises(
        DataError,
        match=r"numbered-folders: 2 folders are read as classes, but their names only number parts of the images "
        r"\(images_part_1: data\.csv, whose columns are image_id, result, names its images; images_part_2\)\. "
        r".*--set data\.labels=FILE --column label=NAME\. If these "
        r"folders are the classes, use --set data\.class_level=1\.",
    ):
        raise_for_errors(findings, ())
    raise_for_errors(findings, ("numbered-folders",))
    assert "unread-labels" not in {finding.kind for finding in findings}, "the error names the table"
    named = build_index(tmp_path, options=DataConfig(labels="data.csv", columns=ColumnsConfig(label="result")))
    assert {image.label for image in named.images} == {"0", "1"}
    by_level = build_index(tmp_path, options=DataConfig(class_level=1))
    assert "numbered-folders" not in {note.kind for note in by_level.notes}


PATIENTS = tuple(f"train/patient0{i}/study1/view1.png" for i in range(4))


def test_a_table_labels_the_images_of_patients_whose_files_have_equal_names(tmp_path: Path) -> None:
    header, rows = (
        "Path,Sex,No Finding,Edema\n",
        [f"set-1.0/{key},F,{i % 2},{1 - i % 2}" for i, key in enumerate(PATIENTS)],
    )
    write_source(tmp_path / "set-1.0", PATIENTS, {"train.csv": header + "\n".join(rows)})
    expected = [("No Finding", "Edema")[i % 2 == 0] for i in range(4)]
    assert [image.label for image in build_index(tmp_path / "set-1.0").images] == expected
    uncertain = {"train.csv": header + "\n".join([rows[0].replace(",1", ",-1"), *rows[1:]])}  # as CheXpert is published
    write_source(tmp_path / "set-1.0", PATIENTS, uncertain)
    with pytest.raises(DataError, match=r"numbered-folders: 4 folders .*train\.csv, whose columns are .*, names"):
        raise_for_errors(quick_audit(build_index(tmp_path / "set-1.0")).findings, ())
    with pytest.raises(DataError, match="column 'Edema' has -1, which means that it is uncertain"):
        build_index(tmp_path / "set-1.0", options=DataConfig(labels="train.csv"))


@pytest.mark.parametrize(
    "table",
    [
        "id,label\na 1,cat\n2,cat\n3,dog\n",
        "path,label\ncat/a 1.jpg,tabby\ncat/2.jpg,manx\ndog/a 1.jpg,pug\ndog/3.jpg,pug\n",
        "path,width\ncat/a 1.jpg,4\ncat/2.jpg,4\ndog/a 1.jpg,5\ndog/3.jpg,5\n",
    ],
    ids=["the same labels", "finer labels", "no labels"],
)
def test_a_table_that_agrees_with_the_folders_is_not_named(tmp_path: Path, table: str) -> None:
    write_source(tmp_path, FOLDERS, {"data.csv": table})
    assert build_index(tmp_path).notes == ()


def test_a_flat_folder_names_the_table_whose_labels_are_not_recognized(tmp_path: Path) -> None:
    write_source(tmp_path, ("a.png", "b.png"), {"metadata.csv": "file_name,text\na.png,red\nb.png,blue\n"})
    with pytest.raises(
        DataError, match=r"metadata\.csv may hold labels \(a table whose columns are file_name, text\)\. Use"
    ):
        build_index(tmp_path)
    index = build_index(tmp_path, options=DataConfig(columns=ColumnsConfig(label="text")))
    assert {image.label for image in index.images} == {"red", "blue"}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("cifar-10-batches-py/data_batch_1", "a pickle can run code: use the name cifar10"),
        ("cat/.1.jpg.icloud", "stands for a file that is only in iCloud: download the folder first"),
    ],
)
def test_folders_without_images_that_are_well_known_are_named(tmp_path: Path, path: str, message: str) -> None:
    write_files(tmp_path, {path: b"\x80\x02."})
    with pytest.raises(DataError, match=message):
        build_index(tmp_path)
