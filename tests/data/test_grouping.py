"""The group of each image: by column, by pattern, by folder, and the errors if the rule does not fit."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sightline.config import SplitConfig
from sightline.config.split_groups import parse_group_rule
from sightline.data.dataset import build_dataset
from sightline.data.grouping import assign_groups, folder_below_class
from sightline.data.indexing import build_index
from sightline.data.types import ImageRecord
from sightline.errors import ConfigError
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png, write_files


def make_image(path: str, label: str = "cat", **extra: str) -> ImageRecord:
    return ImageRecord(path, path, label, None, 8, 8, extra=extra)


def group_by(rule: str, *images: ImageRecord) -> list[str] | None:
    return assign_groups(images, parse_group_rule(rule))


def test_without_a_rule_there_are_no_groups() -> None:
    assert group_by("none", make_image("cat/1.png")) is None


@pytest.mark.parametrize("name", ["patient", "Patient", " PATIENT "])
def test_a_column_whatever_its_case(name: str) -> None:
    rows = [make_image("1.png", Patient="p1", site="a"), make_image("2.png", Patient=" p1 "), make_image("3.png")]
    assert group_by(f"column:{name}", *rows) == ["p1", "p1", ""]


def test_an_unknown_column_names_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        group_by("column:pateint", make_image("1.png", patient="p1", site="a"))
    assert str(caught.value) == (
        "split.group names the column 'pateint', which this source does not have: its extra columns are patient, site."
    )
    with pytest.raises(ConfigError, match="only extra columns of a manifest can be used"):
        group_by("column:patient", make_image("cat/1.png"))


def test_a_pattern_on_the_path() -> None:
    images = [
        make_image("cat/patient12_003.png"),
        make_image("cat/patient12_004.png"),
        make_image("dog/patient7_001.png"),
    ]
    assert group_by(r"pattern:(patient\d+)_", *images) == ["patient12", "patient12", "patient7"]
    assert group_by(r"pattern:(c|d)\w+/(?P<group>\w+)_", *images) == ["patient12", "patient12", "patient7"]


@pytest.mark.parametrize("pattern", [r"(patient\d+)_", r"(patient\d+)?"])
def test_a_pattern_that_does_not_fit_names_an_image(pattern: str) -> None:
    images = [make_image("cat/patient1_1.png"), make_image("cat/other.png")]
    with pytest.raises(ConfigError) as caught:
        group_by(f"pattern:{pattern}", *images)
    sentence = str(caught.value)
    assert sentence.startswith(f"split.group has the pattern {pattern!r}, which finds no group in ")
    assert sentence.endswith(
        "of 2 paths, such as cat/other.png: change the pattern so that it matches every image."
    ) or (pattern.endswith("?") and "such as cat/patient1_1.png" in sentence)


@pytest.mark.parametrize(
    ("path", "label", "folder"),
    [
        ("cat/1.png", "cat", ""),
        ("big cat /a/1.png", "big cat", "a"),
        ("cat/scene 1/1.png", "cat", "scene 1"),
        ("train/cat/a/b/1.png", "cat", "a/b"),
        ("wrapper/train/cat/a/1.png", "cat", "a"),
        ("animal/cat/a/1.png", "animal/cat", "a"),
        ("images/p1/1.png", "pneumonia", "images/p1"),
        ("1.png", "pneumonia", ""),
        ("e\u0301lan/a/1.png", "\u00e9lan", "a"),
    ],
)
def test_the_folder_below_the_class(path: str, label: str, folder: str) -> None:
    assert folder_below_class(make_image(path, label)) == folder


def test_folders_where_there_are_none() -> None:
    assert group_by("folder", make_image("cat/1.png"), make_image("cat/a/1.png")) == ["", "a"]
    with pytest.raises(ConfigError, match=r"no image is in a subfolder of its class folder, such as cat/1.png"):
        group_by("folder", make_image("cat/1.png"))


def test_patients_of_a_manifest_stay_on_one_side(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "sick" if i // 4 % 2 else "well", f"p{i // 4}") for i in range(80)]
    write_files(tmp_path, {path: encode_png(i, i // 4 % 2) for i, (path, _, _) in enumerate(rows)})
    with (tmp_path / "all.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    source_index = build_index(tmp_path / "all.csv")

    def count_split_patients(rule: str) -> int:
        data = build_dataset(source_index, PreprocessingSpec(8, 8), SplitConfig(group=rule), 0, keep=False)
        patient_splits = {(p.extra["patient"], split) for p, split in zip(data.images, data.splits, strict=True)}
        if rule != "none":
            assert data.groups == tuple(p.extra["patient"] for p in data.images)
        return len(patient_splits) - 20

    assert count_split_patients("none") > 0
    assert count_split_patients("column:patient") == 0
    with pytest.raises(ConfigError, match="names the column 'person'"):
        count_split_patients("column:person")
