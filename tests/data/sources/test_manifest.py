"""Labels and splits from tables, and what is said of tables that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.data.sources.listing import Listing
from sightline.data.sources.manifest import manifest
from sightline.errors import DataError


def told(listing: Listing) -> dict[str, tuple[str, str | None]]:
    return {e.path: (e.label, e.part) for e in listing.entries}


def csv_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def jsonl_file(folder: Path, *rows: Any, end: str = "\n") -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + end for row in rows), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["plain", "bom"])
def test_a_csv_with_further_columns(tmp_path: Path, bom: str, end: str) -> None:
    lines = ["camera,path,label,split", "A,1.jpg,cat,train", ",猫/2.jpg,dog,Val", '"B, C","a ""b"".jpg",dog,TEST', ""]
    first, second, third = manifest(csv_file(tmp_path, bom + end.join(lines))).entries
    assert (first.key, first.path, first.label, first.part) == ("1.jpg", "1.jpg", "cat", "train")
    assert (second.key, second.label, second.part) == ("猫/2.jpg", "dog", "validation")
    assert (third.key, third.part) == ('a "b".jpg', "test")
    assert [e.extra for e in (first, second, third)] == [{"camera": "A"}, {"camera": ""}, {"camera": "B, C"}]


def test_a_csv_without_splits_and_with_ragged_rows(tmp_path: Path) -> None:
    listing = manifest(csv_file(tmp_path, "path,label,site\n1.jpg,cat\n\n2.jpg,dog,x,y,z\n"))
    assert told(listing) == {"1.jpg": ("cat", None), "2.jpg": ("dog", None)}
    assert [e.extra for e in listing.entries] == [{"site": ""}, {"site": "x"}]


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"path": "1.jpg", "label": "cat", "split": "train"},
        {"path": "a\u2028b.jpg", "label": 3, "split": None, "site": {"x": 1}},
    ]
    for end in ("\n", "\r\n", "\n\n"):
        first, second = manifest(jsonl_file(tmp_path, *rows, end=end)).entries
        assert (first.key, first.label, first.part, first.extra) == ("1.jpg", "cat", "train", {})
        assert (second.key, second.label, second.part) == ("a\u2028b.jpg", "3", None)
        assert second.extra == {"site": "{'x': 1}"}


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"meow")
    (tmp_path / "lists").mkdir()
    for name in ("../1.jpg", str(tmp_path / "1.jpg")):
        (entry,) = manifest(csv_file(tmp_path / "lists", f"path,label\n{name},cat\n")).entries
        assert entry.store.read(entry.key) == b"meow"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv has no column 'label'; its first line should be path,label[,split]."),
        ("path,split\n1.jpg,train", "has no column 'label'"),
        ("file,label\n1.jpg,cat", "has no column 'path'"),
        ("path;label\n1.jpg;cat", "has no column 'label'"),
        ("path,label\n1.jpg,cat\n2.jpg,", "list.csv, line 3: expected the columns path and label, both filled in."),
        ("path,label\n,cat", "line 2: expected the columns path and label"),
        ("path,label,split\n1.jpg,cat,dev", "line 2: split is 'dev'; expected train, validation or test."),
        ('path,label\n1.jpg,"cat\n' + "x" * 140_000, "list.csv, line 2: not CSV (field larger than field limit"),
    ],
)
def test_what_is_wrong_in_a_csv_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        manifest(csv_file(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "1.jpg", "label": "cat"}\n{"path": ', "list.jsonl, line 2: not JSON (Expecting value)."),
        ('["1.jpg", "cat"]', 'line 1: expected an object such as {"path": "1.jpg", "label": "cat"}.'),
        ('\n{"path": "1.jpg"}', "line 2: expected the columns path and label, both filled in."),
        ('{"path": "1.jpg", "label": "cat", "split": "dev"}', "line 1: split is 'dev'; expected train, validation or"),
    ],
)
def test_what_is_wrong_in_json_lines_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        manifest(path)
    assert message in str(caught.value)


def test_a_manifest_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list.csv cannot be read as UTF-8 text: "):
        manifest(csv_file(tmp_path, "path,label\né.jpg,cat", encoding="latin-1"))
