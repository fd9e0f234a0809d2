"""Filtering and sorting of images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread

import numpy as np
import pytest

from sightline import UsageError
from sightline.data.checks.finding import Finding
from sightline.data.types import ImageRecord, Index
from sightline.studio.corrections import Corrections, Entries
from sightline.studio.library import MAX_SELECTIONS, ImagePrediction, Library
from sightline.studio.query import SORTS, Query

LABELS = ("cat", "dog", "cat", "dog", "Ärger")
PREDICTED = {0: ("cat", 0.9, 0.9, -3.0), 1: ("cat", 0.6, 0.4, -1.5), 3: ("dog", 0.55, 0.55, -9.0)}
SLICES = {"camera ü": (1, 3, 4), "size up to 10": (0, 3)}


def read(_: int) -> bytes:
    raise AssertionError("a list decodes nothing")


@pytest.fixture
def index() -> Index:
    splits = ("train", "test", "train", "test", "train")
    images = tuple(
        ImageRecord(f"{label}/{i} %_.png", f"{i}", label, split, 10 + (7 * i) % 5, 10)  # type: ignore[arg-type]
        for i, (label, split) in enumerate(zip(LABELS, splits, strict=True))
    )
    return Index("drawn", images, (), read)


@pytest.fixture
def corrections(index: Index, tmp_path: Path) -> Corrections:
    return Corrections(tmp_path / "fixes.jsonl", index)


@pytest.fixture
def library(index: Index, corrections: Corrections) -> Iterator[Library]:
    predictions = {i: ImagePrediction(*p) for i, p in PREDICTED.items()}
    opened = Library(index, corrections, None, predictions, slices=SLICES)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"label": "cat"}, [0, 2]),
        ({"split": "test"}, [1, 3]),
        ({"predicted": "cat"}, [0, 1]),
        ({"state": "wrong"}, [1]),
        ({"state": "right"}, [0, 3]),
        ({"below": "0.6"}, [1, 3]),
        ({"below": "1", "label": "cat"}, [0]),
        ({"text": "DOG/"}, [1, 3]),
        ({"text": "ärger"}, [4]),
        ({"text": "% _"}, []),
        ({"text": " %_."}, [0, 1, 2, 3, 4]),
        ({"text": "' OR 1=1 --"}, []),
        ({"sort": "confidence"}, [3, 1, 0, 2, 4]),
        ({"sort": "disagreement"}, [1, 3, 0, 2, 4]),
        ({"sort": "size"}, [0, 3, 1, 4, 2]),
        ({"sort": "ood"}, [1, 0, 3, 2, 4]),
        ({"slice": "camera ü"}, [1, 3, 4]),
        ({"slice": "size up to 10", "label": "dog"}, [3]),
        ({"slice": "size up to"}, []),
        ({"slice": "camera ü", "sort": "ood"}, [1, 3, 4]),
        ({"finding": "blurred", "sort": "group"}, [2, 3, 0]),
        ({"finding": "blank"}, []),
    ],
)
def test_a_query_lists_what_it_asks_for(library: Library, query: dict[str, str], expected: list[int]) -> None:
    groups = (("cat/2 %_.png", "dog/3 %_.png"), ("cat/0 %_.png",))
    library.set_findings([Finding("blurred", "warning", 2, "groups", "", groups=groups)])
    assert library.list_ids(Query.from_params(query)) == expected


def test_groups_of_all_findings_follow_each_other(library: Library) -> None:
    assert library.list_ids(Query(sort="group")) == [0, 1, 2, 3, 4], "no group is known yet"
    copies = (("cat/2 %_.png", "Ärger/4 %_.png"),)
    near = (("dog/3 %_.png", "Ärger/4 %_.png", "cat/2 %_.png"), ("cat/0 %_.png", "dog/1 %_.png"))
    library.set_findings([
        Finding("duplicates", "warning", 1, "groups", "", groups=copies),
        Finding("blank", "note", 1, "image", "", ("dog/1 %_.png",), ("all white",)),
        Finding("near-duplicates", "warning", 2, "groups", "", groups=near),
    ])  # fmt: skip
    assert library.list_ids(Query(sort="group")) == [0, 1, 2, 3, 4]
    library.set_findings([Finding("near-duplicates", "warning", 2, "groups", "", groups=(near[0],))])
    assert library.list_ids(Query(sort="group")) == [2, 3, 4, 0, 1], "images of no group come last"
    library.set_findings([Finding("duplicates", "warning", 2, "groups", "", groups=(
        ("cat/0 %_.png", "Ärger/4 %_.png"), ("dog/1 %_.png", "dog/3 %_.png")
    ))])  # fmt: skip
    assert library.list_ids(Query(sort="group")) == [0, 4, 1, 3, 2]
    assert library.list_ids(Query(sort="group", state="wrong")) == [1]


def test_slices_are_counted_in_their_order(library: Library, corrections: Corrections) -> None:
    corrections.apply([4], "drop")
    library.update([4])
    assert list(library.count_values()["slice"].items()) == [("camera ü", 3), ("size up to 10", 2)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"color": "red"}, "no filter 'color'"),
        ({"state": "new"}, "expected one of wrong"),
        ({"sort": "id; DROP TABLE images"}, "expected one of path"),
        ({"split": "holdout"}, "expected one of train"),
        ({"below": "half"}, "a number from 0 to 1"),
        ({"below": "nan"}, "a number from 0 to 1"),
        ({"below": "1e400"}, "a number from 0 to 1"),
    ],
)
def test_an_unknown_query_is_refused(query: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Query.from_params(query)


def test_corrections_change_what_is_listed_and_counted(library: Library, corrections: Corrections) -> None:
    corrections.apply([0], "relabel", "dog")
    corrections.apply([1], "move", "train")
    corrections.apply([4], "drop")
    library.update(corrections.read_changes()[1])
    assert library.list_ids(Query(label="dog")) == [0, 1, 3]
    assert library.list_ids(Query(split="train")) == [0, 1, 2, 4]
    assert library.list_ids(Query(state="corrected")) == [0, 1, 4]
    assert library.list_ids(Query(state="wrong")) == [0, 1], "an image of another class is predicted wrongly"
    counts = library.count_values()
    assert counts["label"] == {"cat": 1, "dog": 3}
    assert counts["split"] == {"test": 1, "train": 3}
    assert counts["state"] == {
        "wrong": 2,
        "right": 1,
        "corrected": 3,
        "to-review": 3,
        "kept": 0,
        "dropped": 1,
        "unlabeled": 0,
    }
    corrections.apply([0, 1, 4], "restore")
    library.update([0, 1, 4])
    assert library.list_ids(Query(state="corrected")) == []


def test_a_file_name_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    image = ImageRecord("cat/caf\udce9.png", "0", "cat", None, 1, 1)
    one = Index("one", (image,), (), read)
    library = Library(one, Corrections(tmp_path / "x.jsonl", one))
    library.set_findings([Finding("blank", "note", 1, "image", "", (image.path,), (image.path,))])
    (row,) = library.describe([0])
    assert row["path"] == "cat/caf\\udce9.png"
    assert row["findings"][0]["reason"] == row["path"]
    library.close()


def test_a_corrected_label_is_not_doubtful(library: Library, corrections: Corrections) -> None:
    assert library.list_ids(Query(sort="disagreement"))[0] == 1
    corrections.apply([1], "relabel", "cat")
    library.update([1])
    assert library.list_ids(Query(sort="disagreement"))[0] == 3


def test_rows_come_in_the_order_asked_for(library: Library) -> None:
    rows = library.describe([3, 0, 99])
    assert [row["id"] for row in rows] == [3, 0]
    assert (rows[0]["predicted"], rows[0]["confidence"], rows[0]["path"]) == ("dog", 0.55, "dog/3 %_.png")


def test_a_finding_on_images_of_one_path_marks_each_of_them(index: Index, tmp_path: Path) -> None:
    twice = Index("twice", (index.images[0], index.images[0]), (), read)
    library = Library(twice, Corrections(tmp_path / "x.jsonl", index))
    library.set_findings([Finding("blank", "note", 1, "image", "", ("cat/0 %_.png",), ("all white",))])
    assert [row["findings"] for row in library.describe([0, 1])] == [[{"kind": "blank", "reason": "all white"}]] * 2
    library.set_findings([])
    assert library.describe([0])[0]["findings"] == []
    library.close()


@pytest.mark.parametrize("sort", sorted(SORTS))
def test_every_order_holds_every_image_once(index: Index, tmp_path: Path, sort: str) -> None:
    """Of many images, of which some have no prediction."""
    count = 3000
    images = tuple(ImageRecord(f"{i}", f"{i}", "a", None, i % 7 + 1, 1) for i in range(count))
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, count) / 5
    predictions = {i: ImagePrediction("a", float(v), float(v)) for i, v in enumerate(values) if i % 3}
    many = Index("many", images, (), read)
    library = Library(many, Corrections(tmp_path / "x.jsonl", many), None, predictions)
    library.set_findings([Finding("all", "note", 1, "", "", tuple(image.path for image in images))])
    assert sorted(library.list_ids(Query(sort=sort, finding="all"))) == list(range(count))
    library.close()


def test_the_last_selections_are_kept(library: Library) -> None:
    keys = [library.add_selection([i % 5, (i // 5) % 5, 4]) for i in range(25)]
    assert library.add_selection([4, 4, 3]) == keys[-2], "it is the same set"
    assert library.list_ids(Query(selection=keys[-2], sort="path")) == [3, 4]
    assert library.list_ids(Query(selection=keys[-2], label="dog")) == [3]
    for i in range(MAX_SELECTIONS):
        library.add_selection(range(100 + i))
    with pytest.raises(UsageError, match="select them again"):
        library.list_ids(Query(selection=keys[-2]))


def test_counts_after_any_corrections_are_those_of_a_new_table(
    index: Index, library: Library, corrections: Corrections
) -> None:
    generator = np.random.default_rng(0)
    edits = [("relabel", "a"), ("relabel", "new"), ("move", "test"), ("drop", None), ("restore", None)]
    for _ in range(40):
        ids = generator.choice(len(index.images), int(generator.integers(1, 4)), replace=False).tolist()
        edit, to = edits[int(generator.integers(len(edits)))]
        with contextlib.suppress(UsageError):  # such as to drop every image
            library.update(corrections.apply(ids, edit, to).after)
        library.update(ids)
        predictions = {i: ImagePrediction(*p) for i, p in PREDICTED.items()}
        fresh = Library(index, corrections, None, predictions, slices=SLICES)
        assert library.count_values() == fresh.count_values()
        fresh.close()


def test_the_table_has_the_last_of_two_corrections_at_once(
    library: Library, corrections: Corrections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the first has read the corrections and is slow to write them to the table."""
    read = corrections.get
    has_read, may_write = Event(), Event()

    def read_slowly(position: int) -> Entries:
        entries = read(position)
        if current_thread() is not main_thread() and not has_read.is_set():
            has_read.set()
            may_write.wait(0.5)
        return entries

    monkeypatch.setattr(corrections, "get", read_slowly)
    corrections.apply([0], "relabel", "first")
    slow = Thread(target=library.update, args=([0],))
    slow.start()
    has_read.wait()
    corrections.apply([0], "relabel", "second")
    library.update([0])
    may_write.set()
    slow.join()
    assert library.describe([0])[0]["label"] == "second"
    first, second = (row["revision"] for row in library.describe([1, 0]))
    assert second > first, "so that a page knows which of two rows is newer"
