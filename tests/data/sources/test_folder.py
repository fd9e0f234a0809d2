"""Classes and splits from folders, and the findings where they are ambiguous."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from listings import labels_and_splits, list_notes
from sightline.config import DataConfig
from sightline.data.checks.audit import quick_audit
from sightline.data.indexing import build_index
from sightline.data.sources import folder_layout
from sightline.data.sources.filenames import is_hidden
from sightline.data.sources.folder import read_class_folders
from sightline.data.storage import CheckHeader, accept_any
from sightline.errors import ConfigError, DataError
from sightline.runs.preflight import raise_for_errors
from synthetic_images import encode_png, write_files, write_zip


class NameStore:
    """A store of names without contents."""

    name = "archive.zip"

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = sorted(keys)

    def keys(self) -> Sequence[str]:
        return self._keys

    def contains(self, key: str) -> bool:
        return key in self._keys

    def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
        raise AssertionError(f"{key} was opened only to list it")


def get_error(*keys: str) -> str:
    with pytest.raises(DataError) as caught:
        read_class_folders(NameStore(keys))
    return str(caught.value)


@pytest.mark.parametrize(
    "wrapper", ["", "dataset/", "archive/My Data/", "archive/v1.0/data/"], ids=["bare", "one", "two", "three"]
)
def test_classes_are_the_folders_whatever_wraps_them(wrapper: str) -> None:
    listing = read_class_folders(NameStore([f"{wrapper}{p}" for p in ("cat/1.jpg", "dog/2.jpg", "dog/pups/3.jpg")]))
    assert labels_and_splits(listing) == {
        f"{wrapper}cat/1.jpg": ("cat", None),
        f"{wrapper}dog/2.jpg": ("dog", None),
        f"{wrapper}dog/pups/3.jpg": ("dog", None),
    }
    assert (listing.unusable, listing.skipped_files) == ([], [])


def test_a_class_is_named_as_in_a_table_whatever_spaces_surround_the_name_of_its_folder() -> None:
    listing = read_class_folders(NameStore(["big cat /1.jpg", "big cat/2.jpg", " /3.jpg"]))
    assert [item.label for item in listing.items] == [" ", "big cat", "big cat"]


@pytest.mark.parametrize("wrapper", ["", "dataset/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("validation", "validation"),
        ("VALID", "validation"),
        ("Val", "validation"),
        ("test", "test"),
        ("TEST", "test"),
        ("testing", "test"),
    ],
)
def test_splits_are_recognized_in_every_spelling(folder: str, split: str, wrapper: str) -> None:
    names = NameStore([f"{wrapper}{folder}/cat/1.jpg", f"{wrapper}{folder}/dog/in here/2.jpg"])
    assert labels_and_splits(read_class_folders(names)) == {
        f"{wrapper}{folder}/cat/1.jpg": ("cat", split),
        f"{wrapper}{folder}/dog/in here/2.jpg": ("dog", split),
    }


def test_two_spellings_of_one_split_are_merged() -> None:
    listing = read_class_folders(NameStore(["train/cat/1.jpg", "val/cat/2.jpg", "validation/cat/3.jpg"]))
    assert [e.split for e in listing.items] == ["train", "validation", "validation"]


@pytest.mark.parametrize("name", ["train", "test", "Validation"])
def test_a_class_may_have_the_name_of_a_split(name: str) -> None:
    assert labels_and_splits(read_class_folders(NameStore([f"{name}/1.jpg", "bus/2.jpg"]))) == {
        f"{name}/1.jpg": (name, None),
        "bus/2.jpg": ("bus", None),
    }


def test_a_class_below_a_split_may_have_the_name_of_a_split() -> None:
    assert labels_and_splits(
        read_class_folders(NameStore(["train/test/1.jpg", "train/bus/2.jpg", "test/train/3.jpg"]))
    ) == {
        "train/test/1.jpg": ("test", "train"),
        "train/bus/2.jpg": ("bus", "train"),
        "test/train/3.jpg": ("train", "test"),
    }


def test_a_single_class_is_not_a_wrapper() -> None:
    assert labels_and_splits(read_class_folders(NameStore(["cat/1.jpg", "cat/indoors/2.jpg"]))) == {
        "cat/1.jpg": ("cat", None),
        "cat/indoors/2.jpg": ("cat", None),
    }
    assert labels_and_splits(read_class_folders(NameStore(["data/cat/1.jpg"]))) == {"data/cat/1.jpg": ("cat", None)}


@pytest.mark.parametrize("wrapper", ["", "flower_photos/"], ids=["bare", "wrapped"])
@pytest.mark.parametrize("split", ["", "train/"], ids=["whole", "split"])
def test_papers_beside_the_classes_change_nothing(wrapper: str, split: str) -> None:
    papers = [f"{wrapper}LICENSE.txt", f"{wrapper}docs/en/README.md", f"{wrapper}docs/labels.csv", ".git/HEAD"]
    names = [f"{wrapper}{split}daisy/1.jpg", f"{wrapper}{split}rose/2.jpg"]
    listing = read_class_folders(NameStore([*papers, *names]))
    images = {path: label for path, (label, _) in labels_and_splits(listing).items() if path.endswith(".jpg")}
    assert images == {names[0]: "daisy", names[1]: "rose"}
    assert listing.unusable == []
    assert all(e.split == (split.strip("/") or None) for e in listing.items)
    assert {e.path for e in listing.items} - set(names) <= set(papers)  # opened later, then passed over
    assert len(listing.items) + len(listing.skipped_files) == 6


def test_images_beside_the_class_folders_are_stray() -> None:
    listing = read_class_folders(
        NameStore(["cover.jpg", "cat/1.jpg", "dog/2.jpg", "notes.txt", "Thumbs.db"]), prefix="a/"
    )
    assert [(r.path, r.reason, r.label) for r in listing.unusable] == [("a/cover.jpg", "is not in a class folder", "")]
    assert len(listing.skipped_files) == 2
    inside = read_class_folders(NameStore(["train/cover.jpg", "train/cat/1.jpg", "train/dog/2.jpg"]))
    assert [r.path for r in inside.unusable] == ["train/cover.jpg"]


def test_images_need_no_extension() -> None:
    assert labels_and_splits(read_class_folders(NameStore(["data/cat/0001", "data/dog/0002"]))) == {
        "data/cat/0001": ("cat", None),
        "data/dog/0002": ("dog", None),
    }


def test_the_prefix_stands_before_paths_only() -> None:
    (item,) = read_class_folders(NameStore(["data/cat/1.jpg"]), prefix="a.zip/").items
    assert (item.key, item.path, item.label) == ("data/cat/1.jpg", "a.zip/data/cat/1.jpg", "cat")


def test_splits_beside_other_folders_are_rejected() -> None:
    keys = ("train/cat/1.jpg", "test/cat/2.jpg", "extra/cat/3.jpg")
    message = get_error(*keys)
    assert message.startswith("archive.zip has extra next to test, train: ")
    assert "Rename or move 'extra'" in message
    assert "--allow unexpected-folder" in message
    assert "'vaild' (did you mean 'valid'?)" in get_error(*keys, "vaild/cat/4.jpg")
    listing = read_class_folders(NameStore(keys), options=DataConfig(allow_findings=("unexpected-folder",)))
    assert labels_and_splits(listing) == {"train/cat/1.jpg": ("cat", "train"), "test/cat/2.jpg": ("cat", "test")}
    assert list_notes(listing) == [("unexpected-folder", "extra", "is next to the splits")]
    listing = read_class_folders(NameStore(keys), options=DataConfig(allow_findings=("split-folders",)))
    assert {label for label, _ in labels_and_splits(listing).values()} == {"train", "test", "extra"}


PAIRS = [
    ("training_set", "test_set"), ("training_set", "validation_set"), ("seg_train", "seg_test"),
    ("Train", "Validation"), ("TRAIN", "VAL"), ("train-images", "test-images"), ("train images", "dev images"),
    ("trainset", "testset"), ("segtrain", "segtest"), ("imagesTrain", "imagesTest"), ("train1", "test1"),
    ("Training Data", "Testing Data"), ("train", "eval"), ("01_train", "02_valid"),
    ("训练集", "验证集"), ("训练", "测试"), ("花卉训练集", "花卉测试集"), ("訓練集", "測試集"),
]  # fmt: skip


def expected_split(folder: str) -> str:
    return "validation" if re.search("val(id|$)|VAL|dev|Valid|验证", folder) and "eval" not in folder else "test"


@pytest.mark.parametrize("inside", ["{}/", "{}/{}/", "{}/images/"], ids=["plain", "nested", "images"])
@pytest.mark.parametrize(("train", "other"), PAIRS)
def test_splits_are_known_by_their_usual_names(train: str, other: str, inside: str) -> None:
    first, second = (inside.format(folder, folder) for folder in (train, other))
    names = [f"{first}cat/1.jpg", f"{first}dog/2.jpg", f"{second}cat/3.jpg", f"{second}dog/4.jpg"]
    listing = read_class_folders(NameStore(names))
    splits = dict.fromkeys(names[:2], "train") | dict.fromkeys(names[2:], expected_split(other))
    assert labels_and_splits(listing) == {name: (name.split("/")[-2], splits[name]) for name in names}
    assert listing.notes == []


def test_eval_validates_beside_a_test() -> None:
    listing = read_class_folders(
        NameStore([f"{split}/{label}/1.jpg" for split in ("train", "eval", "test") for label in "ab"])
    )
    assert [e.split for e in listing.items] == ["validation"] * 2 + ["test"] * 2 + ["train"] * 2


@pytest.mark.parametrize(
    "folders", [("strain", "contest"), ("trainer", "tester 2"), ("test", "control"), ("train_station", "airport")]
)
@pytest.mark.parametrize("deeper", ["", "a/"], ids=["flat", "deeper"])
def test_classes_that_sound_like_splits_stay_classes(folders: tuple[str, str], deeper: str) -> None:
    names = [f"{folder}/{deeper}{i}.jpg" for folder in folders for i in range(3)]
    listing = read_class_folders(NameStore(names))
    assert {(e.label, e.split) for e in listing.items} == {(folder, None) for folder in folders}
    warned = [("split-named-class", "test", "read as a class, named like the test split")] if "test" in folders else []
    assert list_notes(listing) == warned


def test_doubtful_folders_are_named_by_their_whole_path() -> None:
    keys = ["data/train/1.png", "data/test/2.png"]
    assert [r.path for r in read_class_folders(NameStore(keys), prefix="a.zip/").notes] == [
        "a.zip/data/test",
        "a.zip/data/train",
    ]


@pytest.mark.parametrize(("train", "other"), PAIRS)
def test_splits_without_labels_are_not_taken_for_two_classes_unasked(train: str, other: str) -> None:
    keys = [f"{train}/1.png", f"{train}/2.png", f"{other}/3.png"]
    listing = read_class_folders(NameStore(keys))
    assert [r[:2] for r in list_notes(listing)] == [("split-folders", top) for top in sorted((train, other))]
    allowed = read_class_folders(NameStore(keys), options=DataConfig(allow_findings=("split-folders",)))
    assert {e.label for e in allowed.items} == {train, other}
    assert allowed.notes == []


def test_folders_that_hold_the_same_folders_look_like_splits() -> None:
    keys = [f"{top}/{label}/{i}.jpg" for top in ("part one", "part two") for label in ("cat", "dog") for i in (1, 2)]
    assert list_notes(read_class_folders(NameStore(keys))) == [
        ("split-folders", top, "has the same folders as the others: cat, dog") for top in ("part one", "part two")
    ]
    for level, labels in ((1, {"part one", "part two"}), (2, {"cat", "dog"}), ("leaf", {"cat", "dog"})):
        listing = read_class_folders(NameStore(keys), options=DataConfig(class_level=level))  # type: ignore[arg-type]
        assert ({e.label for e in listing.items}, listing.notes) == (labels, [])


def test_images_without_labels_beside_a_labeled_train_are_left_out_and_counted() -> None:
    keys = ["seg_train/seg_train/sea/1.jpg", "seg_train/seg_train/street/2.jpg", "seg_test/seg_test/sea/3.jpg"]
    left_out = ["seg_pred/seg_pred/4.jpg", "seg_pred/seg_pred/5.jpg"]
    listing = read_class_folders(NameStore([*keys, *left_out, "seg_pred/notes.txt"]))
    assert labels_and_splits(listing) == dict(
        zip(keys, [("sea", "train"), ("street", "train"), ("sea", "test")], strict=True)
    )
    assert (listing.unlabeled, listing.skipped_files, listing.unusable) == (left_out, ["seg_pred/notes.txt"], [])
    assert list_notes(listing) == [("unlabeled-folders", "seg_pred", "2 images")]
    listing = read_class_folders(NameStore(["train/cat/1.jpg", "train/dog/2.jpg", "test/3.jpg"]), prefix="a.zip/")
    assert listing.unlabeled == ["a.zip/test/3.jpg"]
    assert list_notes(listing) == [("unlabeled-folders", "a.zip/test", "1 image")]


def test_each_folder_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each image: of a hundred thousand unlabeled ones, that took minutes."""
    looked_at: list[str] = []
    find_inner_wrapper = folder_layout._find_inner_wrapper

    def look_at(top: str, rest: Sequence[folder_layout.PathParts]) -> folder_layout.PathParts:
        looked_at.append(top)
        return find_inner_wrapper(top, rest)

    monkeypatch.setattr(folder_layout, "_find_inner_wrapper", look_at)
    keys = [f"train/{label}/{i}.jpg" for label in ("cat", "dog") for i in range(3)]
    listing = read_class_folders(NameStore([*keys, *(f"unlabeled/{i}.jpg" for i in range(5))]))
    assert len(listing.unlabeled) == 5
    assert sorted(looked_at) == ["train", "unlabeled"]


def test_splits_inside_each_class() -> None:
    keys = [f"{label}/{split}/1.jpg" for label in ("cat", "dog") for split in ("Train", "test")]
    listing = read_class_folders(NameStore(keys))
    assert labels_and_splits(listing) == {k: (k.split("/")[0], k.split("/")[1].lower()) for k in keys}
    assert listing.notes == []


@pytest.mark.parametrize("split", ["", "train/"])
def test_images_and_their_masks_are_not_two_classes(split: str) -> None:
    keys = [f"{split}{folder}/{i}.png" for folder in ("Images", "masks") for i in range(2)]
    assert [r[:2] for r in list_notes(read_class_folders(NameStore(keys)))] == [
        ("mask-folders", f"{split}Images"), ("mask-folders", f"{split}masks"),
    ]  # fmt: skip
    assert read_class_folders(NameStore(keys), options=DataConfig(allow_findings=("mask-folders",))).notes == []
    assert read_class_folders(NameStore(["masks/1.jpg", "hats/2.jpg"])).notes == []
    assert len(read_class_folders(NameStore([f"{split}images/1", f"{split}masks/1"])).notes) == 2
    boxes = list_notes(read_class_folders(NameStore([f"{split}Annotations/1.xml", f"{split}JPEGImages/1.jpg"])))
    assert "mask-folders" not in {kind for kind, *_ in boxes}, "nothing there is a mask"


@pytest.mark.parametrize(
    "folders",
    [("JPEGImages", "SegmentationClass", "SegmentationObject"), ("gtFine/train/aachen", "leftImg8bit/train/aachen")],
    ids=["Pascal VOC", "Cityscapes"],
)
def test_masks_of_well_known_sets_are_not_classes(folders: tuple[str, ...]) -> None:
    listing = read_class_folders(NameStore([*(f"{folder}/1.png" for folder in folders), "ImageSets/train.txt"]))
    notes = [path for kind, path, _ in list_notes(listing) if kind == "mask-folders"]
    assert [path.split("/")[0] for path in notes] == [folder.split("/")[0] for folder in folders]


def test_folders_that_number_parts_are_not_classes_even_without_a_table() -> None:
    keys = [f"HAM10000_images_part_{i % 2 + 1}/{i}.jpg" for i in range(4)]
    notes = list_notes(read_class_folders(NameStore(keys)))
    assert [kind for kind, *_ in notes] == ["numbered-folders"] * 2
    assert read_class_folders(NameStore(keys), options=DataConfig(class_level=1)).notes == []


def test_a_labeled_training_split_beside_a_flat_validation() -> None:
    listing = read_class_folders(
        NameStore(["Train/cat/1.jpg", "Train/dog/2.jpg", "Validation/3.jpg", "Validation/4.jpg"])
    )
    assert {(e.label, e.split) for e in listing.items} == {("cat", "train"), ("dog", "train")}
    assert list_notes(listing) == [("unlabeled-folders", "Validation", "2 images")]


# Levels of classes.

NESTED = ["animal/cat/1.jpg", "animal/dog/2.jpg", "plant/tree/oak/3.jpg", "plant/moss/4.jpg", "plant/moss/5.jpg"]


@pytest.mark.parametrize("split", ["", "train/"])
def test_the_level_of_the_classes_can_be_said(split: str) -> None:
    keys = [split + key for key in NESTED]
    listing = read_class_folders(NameStore(keys))
    assert [e.label for e in listing.items] == ["animal", "animal", "plant", "plant", "plant"]
    assert list_notes(listing) == [
        ("nested-classes", f"{split}animal", "one class with the subfolders cat, dog"),
        ("nested-classes", f"{split}plant", "one class with the subfolders moss, tree"),
    ]
    leaf = read_class_folders(NameStore(keys), options=DataConfig(class_level="leaf"))
    assert [e.label for e in leaf.items] == ["cat", "dog", "moss", "moss", "oak"]
    second = read_class_folders(NameStore(keys), options=DataConfig(class_level=2))
    assert [e.label for e in second.items] == ["cat", "dog", "moss", "moss", "tree"]
    third = read_class_folders(NameStore(keys), options=DataConfig(class_level=3))
    assert [e.label for e in third.items] == ["oak"]
    assert {r.reason for r in third.unusable} == {"is above the level of the class folders"}
    assert [listing.notes for listing in (leaf, second, third)] == [[], [], []]


# Labels in file names.


@pytest.mark.parametrize("folder", ["", "pets/", "pets/all/"])
@pytest.mark.parametrize("name", ["{}.{}.jpg", "{}_{:03}.jpg", "{}-{}.JPG", "{} ({}).jpg", "{} {}.png"])
def test_names_that_say_classes_unmistakably_are_taken(name: str, folder: str) -> None:
    labels = ("cat", "great_pyrenees", "猫")
    keys = [folder + name.format(label, i) for label in labels for i in range(3)]
    listing = read_class_folders(NameStore([*keys, "README.md"]))
    assert {e.label for e in listing.items} == set(labels)
    assert [(r.kind, r.path) for r in listing.notes] == [("labels-from-names", label) for label in labels]
    assert (listing.unusable, listing.skipped_files) == ([], ["README.md"])


def test_kaggle_gives_flat_splits_with_labels_in_names_of_the_first() -> None:
    train = [f"train/{label}.{i}.png" for label in ("cat", "dog") for i in range(3)]
    listing = read_class_folders(NameStore([*train, "test/0.png", "test/1.png"]))
    assert labels_and_splits(listing) == {key: (key[6:9], "train") for key in train}
    assert list_notes(listing)[0] == ("unlabeled-folders", "test", "2 images")
    assert listing.unlabeled == ["test/0.png", "test/1.png"]
    both = read_class_folders(NameStore([*train, "val/cat.9.png", "val/dog.9.png"]))
    assert {e.split for e in both.items} == {"train", "validation"}


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_0001.jpg", "IMG_0002.jpg", "DSC_0001.jpg", "DSC_0002.jpg"],
        ["微信图片_0001.jpg", "微信图片_0002.jpg", "照片 (1).jpg", "照片 (2).jpg"],
        ["patient1_1.jpg", "patient1_2.jpg", "patient2_1.jpg", "patient2_2.jpg"],
        ["train_1.jpg", "train_2.jpg", "test_1.jpg", "test_2.jpg"],
        ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg"],
        ["cat.1.jpg", "cat.2.jpg", "dog.1.jpg", "dog.2.jpg", "cover.jpg"],
        ["cat.1.jpg", "cat.2.jpg"],
        ["1.jpg", "2.jpg"],
    ],
    ids=["cameras", "phones", "patients", "splits", "single", "other", "one class", "numbers"],
)
def test_names_that_may_say_something_else_are_not_taken(names: list[str]) -> None:
    listing = read_class_folders(NameStore(names))
    assert listing.items == []
    assert [r.reason for r in listing.unusable] == ["is not in a class folder"] * len(names)


@pytest.mark.parametrize(
    ("pattern", "labels"),
    [
        (r"^(?P<label>[a-z]+)", ["cat", "dog", "dog"]),
        (r"(?P<label>[a-z]+)_\d+\.jpg$", ["cat", "dog", "dog"]),
        (r"/(?P<label>[^/]+)/[^/]+$", ["a", "a", "b"]),
    ],
    ids=["begins", "ends", "path"],
)
def test_a_pattern_finds_the_label(pattern: str, labels: list[str]) -> None:
    keys = ["x/a/cat_1.jpg", "x/a/dog_2.jpg", "x/b/dog_3.jpg"]
    listing = read_class_folders(NameStore(keys), options=DataConfig(label_pattern=pattern))
    assert [e.label for e in listing.items] == labels
    assert {r.kind for r in listing.notes} == {"labels-from-names"}


def test_a_pattern_says_what_it_does_not_find() -> None:
    options = DataConfig(label_pattern=r"(?P<label>[a-z]+)_")
    listing = read_class_folders(NameStore(["cat_1.jpg", "2.jpg", "train.txt"]), options=options)
    assert [e.path for e in listing.items] == ["cat_1.jpg"]
    assert [(r.path, r.reason) for r in listing.unusable] == [("2.jpg", "has no label in its name")]
    with pytest.raises(DataError, match=r"matches none of the 2 images in archive.zip, the first of which is a/1.jpg"):
        read_class_folders(NameStore(["a/1.jpg", "b/2.jpg"]), options=options)
    for wrong, message in (("(", "is not a regular expression"), ("[a-z]+", "has no group named label")):
        with pytest.raises(ConfigError, match=message):
            read_class_folders(NameStore(["cat_1.jpg"]), options=DataConfig(label_pattern=wrong))


SEGMENTS = st.sampled_from(
    ["train", "Test", "val", "seg_test", "images", "cat", "dog", "猫", ".git", "__MACOSX", "a b"]
)
FILE_NAMES = st.sampled_from(["1.jpg", "2.PNG", "README.md", "Thumbs.db", "3"])
PATHS = st.tuples(st.lists(SEGMENTS, max_size=4), FILE_NAMES).map(lambda t: "/".join([*t[0], t[1]]))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(PATHS, unique=True, max_size=8))
@example(["train/1.jpg", "images/train/1.jpg"])
def test_every_file_is_accounted_for(keys: list[str]) -> None:
    class EqualFiles(NameStore):  # as are those of a folder and of its copy
        def read(self, key: str, check: CheckHeader = accept_any) -> bytes:
            return b""

    try:
        listing = read_class_folders(EqualFiles(keys))
    except DataError:
        return
    assert len(listing.items) + len(listing.unusable) + len(listing.unlabeled) + len(listing.skipped_files) == len(keys)
    assert all(e.label in e.path.split("/")[:-1] for e in listing.items)
    assert not any(is_hidden(e.path) for e in listing.items)


@pytest.mark.parametrize(
    ("names", "unread"),
    [
        (["images/1.jpg", "images/2.jpg", "labels.xlsx"], {"labels.xlsx": "spreadsheet"}),
        (["JPEGImages/1.jpg", "Annotations/1.xml"], {"Annotations/1.xml": "Pascal VOC"}),
        (
            ["images/train/1.jpg", "images/val/2.jpg", "labels/train/1.txt", "labels/val/2.txt", "readme.txt"],
            {"labels/train/1.txt": "YOLO", "labels/val/2.txt": "YOLO"},
        ),
        (["images/1.jpg", "images/1.json"], {"images/1.json": "LabelMe"}),
        (["images/1.jpg", "annotations.xml"], {"annotations.xml": "CVAT"}),
        (["jpg/1.jpg", "imagelabels.mat", "project.json"], {"imagelabels.mat": "MATLAB", "project.json": "JSON"}),
        (["train/1.jpg", "val/2.jpg", "train/metadata.parquet"], {"train/metadata.parquet": "Parquet or Arrow"}),
        (["cat/1.jpg", "dog/2.jpg", "cat/1.txt", "notes.xlsx"], {}),
    ],
    ids=["spreadsheet", "voc", "yolo", "labelme", "cvat", "matlab and json", "parquet", "class folders"],
)
def test_labels_in_a_form_that_is_not_read_are_named(names: list[str], unread: dict[str, str]) -> None:
    listing = read_class_folders(NameStore(names))
    assert {n.path: n.reason for n in listing.notes if n.kind == "unread-labels"} == unread


def test_images_beside_unread_labels_say_what_to_do_with_them(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": encode_png(1), "1.xml": b"<annotation/>"})
    with pytest.raises(DataError, match=r"1\.xml may hold labels \(Pascal VOC\)\. The boxes of YOLO and"):
        build_index(tmp_path)


def test_a_table_in_another_encoding_beside_images_is_not_taken_for_boxes(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": encode_png(1), "labels.csv": "path,label\n1.png,café\n".encode("latin-1")})
    with pytest.raises(DataError, match=r"or set its encoding, such as --set data\.encoding=cp1252\)\.$"):
        build_index(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("benign/1.png", "benign/2.png", "normal/1.png"), ("benign/1_mask_1.png", "normal/1_MASK.bmp")),
        (("set/COVID/images/1.png", "set/Normal/images/1.png"), ("set/COVID/masks/1.png", "set/Normal/masks/1.png")),
        (("with/1.jpg", "with/1_mask.jpg", "without/2_mask.png", "without/3.png"), ()),
        (("with_mask/1.png", "with_mask/1_mask.png", "without_mask/1.png"), ()),
        (("ford/1.png", "ford/2.png", "ford/3.png", "ford/3_gt.png", "vw/1.png"), ()),
    ],
    ids=["BUSI", "COVID-19 Radiography", "faces with masks", "a face before and after", "a car"],
)  # fmt: skip
def test_masks_in_class_folders_are_left_out(tmp_path: Path, images: tuple[str, ...], masks: tuple[str, ...]) -> None:
    index = build_index(write_files(tmp_path, {key: encode_png(i) for i, key in enumerate((*images, *masks))}))
    assert sorted(image.path for image in index.images) == sorted(images)
    assert [(note.kind, note.path) for note in index.notes] == [("class-masks", key) for key in sorted(masks)]
    assert index.other_files == ()


@pytest.mark.parametrize(
    ("copy", "first", "wrapper"),
    [("cells", "cat/1.png", "cells/"), ("data", "set/cat/1.png", "")],
    ids=["malaria cells", "natural images"],
)
def test_a_copy_of_the_folders_beside_it_is_not_a_class(tmp_path: Path, copy: str, first: str, wrapper: str) -> None:
    images = [first, first.replace("cat/1", "dog/2"), first.replace("cat/1", "dog/3")]
    files = {f"{wrapper}{above}{key}": encode_png(i) for above in ("", f"{copy}/") for i, key in enumerate(images)}
    index = build_index(write_files(tmp_path, files))
    notes = [(note.kind, note.reason) for note in index.notes if note.path == f"{wrapper}{copy}"]
    assert notes == [("copied-folders", f"has {wrapper}{first} too")]
    findings = quick_audit(index).findings
    with pytest.raises(
        DataError, match=r"copied-folders: 1 folder is read as a class but has copies of .*Remove the copy"
    ):
        raise_for_errors(findings, ())
    raise_for_errors(findings, ("copied-folders", "conflicting-duplicates"))


def test_subfolders_of_a_class_that_are_called_as_other_classes_are_not_copies(tmp_path: Path) -> None:
    files = ("cat/1.png", "cat/2.png", "dog/1.png", "both/cat/1.png", "both/dog/3.png", "both/cat/4.png")
    toys = ("cat/1.png", "dog/1.png", "toys/cat/1.png", "toys/dog/1.png")  # of equal names, but not equal
    for name, keys in (("both", files), ("toys", toys)):
        index = build_index(write_files(tmp_path / name, {key: encode_png(i) for i, key in enumerate(keys)}))
        assert "copied-folders" not in {note.kind for note in index.notes}


@pytest.mark.parametrize("text", ["{name} {i}\n", "{i}{i}{i}{i}  {name}\n"], ids=["sizes", "checksums"])
def test_names_that_state_classes_give_them_beside_a_text_file(tmp_path: Path, text: str) -> None:
    names = [f"{label}.{i}.png" for label in ("cat", "dog") for i in (1, 2)]
    files = {f"set/{name}": encode_png(i) for i, name in enumerate(names)}
    lines = "".join(text.format(name=name, i=i % 2) for i, name in enumerate(names)).encode()
    write_files(tmp_path, {**files, "set/files.txt": lines, "labels.txt": lines})
    rows = "".join(f"{name},{i % 2}\n" for i, name in enumerate(names))
    write_files(tmp_path / "zip", {"places.csv": f"file,category\n{rows}".encode()})
    write_zip(tmp_path / "zip" / "a.zip", {key.removeprefix("set/"): content for key, content in files.items()})
    for source in (tmp_path / "set", tmp_path / "zip" / "a.zip"):
        assert {image.label for image in build_index(source).images} == {"cat", "dog"}


def test_splits_below_one_of_several_folders_are_not_a_class(tmp_path: Path) -> None:
    names = (
        "casting/casting/train/ok",
        "casting/casting/test/ok",
        "casting_512/casting_512/ok",
        "casting_512/casting_512/def",
    )
    index = build_index(write_files(tmp_path, {f"{name}/{i}.png": encode_png(i) for i, name in enumerate(names)}))
    assert [(note.kind, note.path, note.reason) for note in index.notes] == [
        (
            "split-folders",
            "casting",
            "one class with the subfolders test, train, which are splits if you name this folder instead",
        ),
        ("nested-classes", "casting_512", "one class with the subfolders def, ok"),
    ]
