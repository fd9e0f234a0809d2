"""Images with several labels in a studio without a browser: labels are added and removed as lines of the patch."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command import draw_classes
from sightline import DataError, Dataset, UsageError
from sightline.data.dataset import check_classes
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.studio.contents import Studio, open_studio
from sightline.studio.query import Query

LABELS = ("car;tree", "car", "", "tree", "car;person;tree", "person")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of six images with the labels above."""
    root = draw_classes(tmp_path_factory.mktemp("several") / "images", {"x": (90, 90, 90)}, len(LABELS), 16)
    lines = [f"x/x-{i:03}.png,{label}" for i, label in enumerate(LABELS)]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n", encoding="utf-8")
    return root / "labels.csv"


@pytest.fixture
def several(table: Path, patch: Path) -> Iterator[Studio]:
    with open_studio(Dataset(table), patch) as opened:
        yield opened


def read_changes(patch: Path) -> dict[str, str | None]:
    rows = [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]
    assert {row["action"] for row in rows} <= {"relabel"}
    return {row["path"][-7:-4]: row["to"] for row in rows}


def test_labels_are_added_and_removed_as_lines_that_train_reads(several: Studio, patch: Path, table: Path) -> None:
    several.corrections.apply([1, 2, 3], "add", "tree")
    several.corrections.apply([0], "remove", "car")
    several.corrections.apply([5], "remove", "person")
    several.corrections.apply([5], "add", "zebra crossing")
    several.corrections.apply([3], "remove", "tree")
    assert read_changes(patch) == {"000": "tree", "001": "car;tree", "002": "tree", "003": "", "005": "zebra crossing"}
    corrected = load_and_apply_patch(build_index(table), patch)
    assert [image.label for image in corrected.images] == [
        "tree", "car;tree", "tree", "", "car;person;tree", "zebra crossing",
    ]  # fmt: skip
    assert len(corrected.images) == 6, "an image without labels is an example of none"
    several.corrections.apply([0], "add", "car")
    assert "000" not in read_changes(patch), "a label that is put back leaves no line"


def test_a_set_of_labels_is_undone_as_a_whole_click(several: Studio, patch: Path) -> None:
    first = several.corrections.apply([0, 1, 2], "add", "person")
    second = several.corrections.apply([1], "remove", "car")
    several.corrections.undo(second.number)
    assert read_changes(patch) == {"000": "car;person;tree", "001": "car;person", "002": "person"}
    several.corrections.undo(first.number)
    assert read_changes(patch) == {}


def test_two_people_who_add_labels_to_one_image_lose_none(several: Studio, patch: Path) -> None:
    names = [f"new {i}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: several.corrections.apply([2], "add", name), names))
    assert read_changes(patch) == {"002": ";".join(sorted(names))}


@pytest.mark.parametrize(
    ("edit", "to", "words"),
    [("add", "a;b", "no semicolon"), ("add", "", "A class name"), ("relabel", "car", "add one, or remove one")],
)
def test_labels_that_cannot_be_are_refused(several: Studio, patch: Path, edit: str, to: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        several.corrections.apply([0], edit, to)
    assert not patch.exists()


def test_single_classes_are_relabeled_not_added(studio: Studio) -> None:
    with pytest.raises(UsageError, match="one class each"):
        studio.corrections.apply([0], "add", "red")


def test_images_are_filtered_by_any_of_their_labels_and_counted_in_each(several: Studio) -> None:
    library = several.library
    assert library.list_ids(Query(label="car")) == [0, 1, 4]
    assert library.list_ids(Query(label="ca")) == [], "a part of a name is no label"
    assert library.list_ids(Query(state="unlabeled")) == [2]
    assert library.count_values()["label"] == {"car": 3, "person": 2, "tree": 3}
    library.update(several.corrections.apply([2, 1], "add", "tree").after)
    library.update(several.corrections.apply([0], "drop").after)
    assert library.list_ids(Query(label="tree")) == [0, 1, 2, 3, 4]
    assert library.count_values()["label"] == {"car": 2, "person": 2, "tree": 4}
    assert [row["labels"] for row in library.describe([1, 2])] == [["car", "tree"], ["tree"]]


def test_a_line_that_gives_several_labels_needs_a_task_that_takes_them(tmp_path: Path, patch: Path) -> None:
    folder = draw_classes(tmp_path / "single", {"cat": (9, 9, 9), "dog": (200, 9, 9)}, 3, 16)
    image = build_index(folder).images[0]
    line = {"action": "relabel", "path": image.path, "sha256": image.sha256, "label": "cat", "reason": "both"}
    for to, label in (("dog;cat", "cat;dog"), ("", "")):
        patch.write_text(json.dumps(line | {"to": to}) + "\n", encoding="utf-8")
        corrected = load_and_apply_patch(build_index(folder), patch)
        assert corrected.images[0].label == label
        with pytest.raises(DataError, match=r"line 1 gives cat/cat-000.png the labels .*model.task=multi_label"):
            check_classes(corrected)


@pytest.fixture
def client(several: Studio) -> Iterator[Any]:
    testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")
    from sightline.studio.app import create_app

    with testclient.TestClient(create_app(several), "http://127.0.0.1:8000") as opened:
        token = re.search(r'name="csrf-token" content="([^"]+)"', opened.get("/").text)
        assert token
        opened.headers["X-CSRF-Token"] = token[1]
        yield opened


def test_the_list_of_sets_is_a_table_that_train_reads(client: Any, table: Path) -> None:
    client.post("/corrections", json={"ids": [1], "edit": "add", "to": "tree"})
    content = client.get("/images.csv").content
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [row["label"] for row in rows] == ["car;tree", "car;tree", "", "tree", "car;person;tree", "person"]
    copy = table.with_name("copy.csv")
    copy.write_bytes(content)
    assert [image.label for image in Dataset.from_csv(copy).index.images] == [row["label"] for row in rows]
    copy.unlink()
    state = client.get("/label/state").json()
    assert [image["path"] for image in state["queue"]] == ["x/x-002.png"], "the row without a label"


def test_predictions_of_several_labels_are_sets(run_several: Any, patch: Path) -> None:
    with open_studio(run_several, patch) as studio:
        rows = studio.library.describe(studio.library.list_ids(Query(sort="disagreement")))
        assert studio.library.has_predictions
        predicted = [row for row in rows if row["predicted"] is not None]
        assert {row["split"] for row in predicted} <= {"validation", "test"}
        assert all(set(row["predicted"].split(";")) <= {"blue", "red", ""} for row in predicted)
        doubts = [row["label_probability"] for row in predicted]
        assert doubts == sorted(doubts)
        unusual = studio.library.describe(studio.library.list_ids(Query(sort="ood")))[: len(predicted)]
        energies = [row["energy"] for row in unusual]
        assert energies == sorted(energies, reverse=True)
        assert {row["id"] for row in unusual} == {row["id"] for row in predicted}
        wrong = studio.library.list_ids(Query(state="wrong"))
        assert {row["id"] for row in predicted if row["predicted"] != row["label"]} == set(wrong)


@pytest.fixture(scope="module")
def run_several(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A classifier of several labels, trained on class folders."""
    import sightline as sl

    root = tmp_path_factory.mktemp("run-several")
    folder = draw_classes(root / "colors", {"blue": (60, 60, 200), "red": (200, 60, 60)}, 12)
    settings = {"model.task": "multi_label", "model.hidden_units": [64], "train.track": []}
    return sl.train(folder, recipe="quick", model="cifar10-simple", epochs=1, set=settings, out=root / "a")


def test_arrays_of_probabilities_are_decided_by_thresholds(run_several: Any, patch: Path) -> None:
    evaluated = run_several.directory.read_predictions("test")
    thresholds = run_several.directory.read_thresholds().labels
    with open_studio(run_several, patch) as studio:
        by_path = {row["path"]: row["predicted"] for row in studio.library.describe(range(24))}
    limits = np.array([np.inf if thresholds[name] is None else thresholds[name] for name in evaluated.classes])
    for path, row in zip(evaluated.paths, evaluated.probabilities >= limits, strict=True):
        assert by_path[path] == ";".join(name for name, has in zip(evaluated.classes, row, strict=True) if has)


def test_likely_label_errors_are_listed_worst_first_and_corrected_label_by_label(run_several: Any, patch: Path) -> None:
    worst_first = [row for row in reversed(run_several.directory.read_data()) if row.label == "red"][:3]
    reason = "probably has blue (0.97), according to a classifier trained without this image"
    lines = [
        {
            "action": "relabel",
            "path": row.path,
            "sha256": row.sha256,
            "label": "red",
            "to": "blue;red",
            "reason": reason,
        }
        for row in worst_first
    ]
    run_several.directory.write_label_issues(lines)
    try:
        with open_studio(run_several, patch) as studio:
            queue = studio.library.list_ids(Query(finding="suspected-label-errors", sort="group"))
            rows = studio.library.describe(queue)
            studio.corrections.apply(queue[:1], "add", "blue")
    finally:
        (run_several.path / "label_issues.jsonl").unlink()
    assert [row["path"] for row in rows] == [row.path for row in worst_first]
    assert rows[0]["findings"] == [{"kind": "suspected-label-errors", "reason": reason}]
    (line,) = [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]
    assert {key: line[key] for key in ("path", "label", "to")} == {
        key: lines[0][key] for key in ("path", "label", "to")
    }
