"""The group of each image: by column, by pattern, by folder, and the errors if the rule does not fit."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pictures import png, write
from sightline.config import SplitConfig
from sightline.config.groups import group_rule
from sightline.data.dataset import assemble
from sightline.data.grouping import folder_below_class, groups
from sightline.data.index import index
from sightline.errors import ConfigError
from sightline.preprocess import Preprocess
from sightline.records import Picture


def image(path: str, label: str = "cat", **extra: str) -> Picture:
    return Picture(path, path, label, None, 8, 8, extra=extra)


def by(rule: str, *images: Picture) -> list[str] | None:
    return groups(images, group_rule(rule))


def test_no_rule_is_no_groups() -> None:
    assert by("none", image("cat/1.png")) is None


@pytest.mark.parametrize("name", ["patient", "Patient", " PATIENT "])
def test_a_column_whatever_its_case(name: str) -> None:
    rows = [image("1.png", Patient="p1", site="a"), image("2.png", Patient=" p1 "), image("3.png")]
    assert by(f"column:{name}", *rows) == ["p1", "p1", ""]


def test_an_unknown_column_names_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        by("column:pateint", image("1.png", patient="p1", site="a"))
    assert str(caught.value) == (
        "split.group names the column 'pateint', which this source does not have: its extra columns are patient, site."
    )
    with pytest.raises(ConfigError, match="only extra columns of a manifest can be used"):
        by("column:patient", image("cat/1.png"))


def test_a_pattern_on_the_path() -> None:
    images = [image("cat/patient12_003.png"), image("cat/patient12_004.png"), image("dog/patient7_001.png")]
    assert by(r"pattern:(patient\d+)_", *images) == ["patient12", "patient12", "patient7"]
    assert by(r"pattern:(c|d)\w+/(?P<group>\w+)_", *images) == ["patient12", "patient12", "patient7"]


@pytest.mark.parametrize("pattern", [r"(patient\d+)_", r"(patient\d+)?"])
def test_a_pattern_that_does_not_fit_names_an_image(pattern: str) -> None:
    images = [image("cat/patient1_1.png"), image("cat/other.png")]
    with pytest.raises(ConfigError) as caught:
        by(f"pattern:{pattern}", *images)
    sentence = str(caught.value)
    assert sentence.startswith(f"split.group has the pattern {pattern!r}, which finds no group in ")
    assert sentence.endswith(
        "of 2 paths, such as cat/other.png: change the pattern so that it matches every image."
    ) or (pattern.endswith("?") and "such as cat/patient1_1.png" in sentence)


@pytest.mark.parametrize(
    ("path", "label", "folder"),
    [
        ("cat/1.png", "cat", ""),
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
    assert folder_below_class(image(path, label)) == folder


def test_folders_where_there_are_none() -> None:
    assert by("folder", image("cat/1.png"), image("cat/a/1.png")) == ["", "a"]
    with pytest.raises(ConfigError, match=r"no image is in a subfolder of its class folder, such as cat/1.png"):
        by("folder", image("cat/1.png"))


def test_patients_of_a_manifest_stay_on_one_side(tmp_path: Path) -> None:
    rows = [(f"{i}.png", "sick" if i // 4 % 2 else "well", f"p{i // 4}") for i in range(80)]
    write(tmp_path, {path: png(i, i // 4 % 2) for i, (path, _, _) in enumerate(rows)})
    with (tmp_path / "all.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "patient"), *rows])
    listed = index(tmp_path / "all.csv")

    def sides(rule: str) -> int:
        data = assemble(listed, Preprocess(8, 8), SplitConfig(group=rule), 0, keep=False)
        found = {(p.extra["patient"], part) for p, part in zip(data.pictures, data.parts, strict=True)}
        if rule != "none":
            assert data.groups == tuple(p.extra["patient"] for p in data.pictures)
        return len(found) - 20

    assert sides("none") > 0
    assert sides("column:patient") == 0
    with pytest.raises(ConfigError, match="names the column 'person'"):
        sides("column:person")
