"""Labeling images that may have several classes: what is asked, what is written, what is stated, what is trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import Dataset, UsageError
from sightline.callbacks import Callback
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch
from sightline.data.targets import LABEL_SETS, join_classes
from sightline.data.types import Index
from sightline.studio.contents import open_studio
from sightline.studio.corrections import Corrections
from sightline.studio.feature_process import list_images
from sightline.studio.labeling import BATCH, QUEUED, Labeling
from sightline.studio.query import Query
from studio_client import load_page
from synthetic_images import encode_png, write_files

COUNT = 120
CLASSES = ("even", "third")
TASK = "model.task=multi_label"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels, two of which are the same file."""
    files = {f"IMG-{i:03}.png": encode_png(i) for i in range(COUNT)}
    return write_files(tmp_path_factory.mktemp("data") / "photos", files | {"copy of 7.png": encode_png(7)})


@pytest.fixture(scope="module")
def index(photos: Path) -> Index:
    return list_images(Dataset(photos, set=[TASK]), lambda *_: None)


def tell(path: str) -> str:
    """Return the classes of an image: of a third of them, none."""
    number = int(re.findall(r"\d+", path)[0])
    return join_classes([name for name, by in zip(CLASSES, (2, 3), strict=True) if number % by == 0])


def draw_features(index: Index, _callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return features that show the classes, but not well."""
    has_class = LABEL_SETS.encode([tell(image.path) for image in index.images], CLASSES).astype(np.float32)
    features = np.random.default_rng(0).normal(0, 1, (len(has_class), 12)).astype(np.float32)
    features[:, :8] += 0.9 * np.repeat(has_class, 4, axis=1)
    return features, np.ones(len(features), bool)


def open_labeling(index: Index, patch: Path, **options: Any) -> tuple[Labeling, Corrections]:
    corrections = Corrections(patch, index)
    return Labeling(index, corrections, options.pop("compute", draw_features), **options), corrections


def answer(labeling: Labeling, corrections: Corrections, count: int) -> None:
    """Label the first images of the queue as a page does, and wait for the head."""
    for image in labeling.describe()["queue"][:count]:
        corrections.apply(image["ids"], "set", tell(image["path"]))
    labeling.describe()
    labeling.training.wait()
    labeling.forecast.wait()


def read_lines(patch: Path) -> dict[str, tuple[str, str | None]]:
    """Return the action and the new label of each image."""
    rows = [json.loads(line) for line in patch.read_text(encoding="utf-8").splitlines()]
    return {row["path"]: (row["action"], row.get("to")) for row in rows}


def expect_line(path: str) -> tuple[str, str | None]:
    return ("relabel", tell(path)) if tell(path) else ("keep", None)


def test_a_folder_is_labeled_with_several_classes_to_an_f1(index: Index, photos: Path, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    before = labeling.describe()
    assert (before["labeled"], before["remaining"], before["classes"]) == (0, COUNT, list(CLASSES))
    answer(labeling, corrections, 5)
    labeling.features.start()
    labeling.features.wait()
    for _ in range(6):
        answer(labeling, corrections, BATCH)
    state = labeling.describe()
    assert state["labeled"] == 5 + 6 * BATCH
    low, high = state["accuracy"]["interval"]
    assert low < state["accuracy"]["value"] < high
    assert state["accuracy"]["whenever"].low < low
    assert state["accuracy"]["value"] > 0.7
    assert {image["path"] for image in state["queue"]}.isdisjoint(read_lines(patch))
    while labeling.describe()["queue"]:
        answer(labeling, corrections, QUEUED)
    assert labeling.describe()["remaining"] == 0
    assert read_lines(patch) == {image.path: expect_line(image.path) for image in index.images}
    trained = load_and_apply_patch(build_index(photos, unlabeled=True, targets=LABEL_SETS), patch)
    assert {image.path: image.label for image in trained.images} == {i.path: tell(i.path) for i in index.images}
    labeling.stop()


def test_a_restart_knows_who_has_none_of_the_classes(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    answer(labeling, corrections, QUEUED)
    assert "keep" in {action for action, _ in read_lines(patch).values()}
    again, _ = open_labeling(index, patch)
    state = again.describe()
    assert (state["labeled"], state["remaining"]) == (QUEUED, COUNT - QUEUED)
    assert sorted(state["classes"]) == list(CLASSES), "those of the answers"
    assert {image["path"] for image in state["queue"]}.isdisjoint(read_lines(patch))


def test_none_of_them_is_undone_dropped_and_changed(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    image = labeling.describe()["queue"][0]
    click = corrections.apply(image["ids"], "set", "")
    assert labeling.describe()["labeled"] == 1
    corrections.undo(click.number)
    assert labeling.describe()["labeled"] == 0
    assert image in labeling.describe()["queue"]
    corrections.apply(image["ids"], "set", "")
    corrections.apply(image["ids"], "set", "third;even")
    assert read_lines(patch)[image["path"]] == ("relabel", "even;third")
    corrections.apply(image["ids"], "set", "")
    assert read_lines(patch)[image["path"]] == ("keep", None)
    corrections.apply(image["ids"], "drop")
    state = labeling.describe()
    assert (state["labeled"], state["remaining"]) == (0, COUNT - 1)


@pytest.mark.parametrize("to", ["even; third", "even;;third", "a/b", None])
def test_sets_that_cannot_be_are_refused(index: Index, patch: Path, to: str | None) -> None:
    _, corrections = open_labeling(index, patch, classes=CLASSES)
    with pytest.raises(UsageError, match="A class name has 1 to 255 characters"):
        corrections.apply([0], "set", to)
    assert not patch.exists()


def test_a_class_that_is_added_later_trains_too(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES[:1])
    labeling.features.start()
    labeling.features.wait()
    for image in labeling.describe()["queue"][:BATCH]:
        corrections.apply(image["ids"], "set", tell(image["path"]).replace("third", "").strip(";"))
    labeling.describe()
    labeling.training.wait()
    for _ in range(4):
        answer(labeling, corrections, BATCH)
    state = labeling.describe()
    assert state["classes"] == list(CLASSES)
    assert state["accuracy"]["value"] > 0.5


def test_a_table_asks_about_its_rows_without_a_label(tmp_path: Path, patch: Path) -> None:
    files = {f"{i}.png": encode_png(i) for i in range(5)}
    rows = b"path,labels\n0.png,cat;dog\n1.png,dog\n2.png,\n"
    root = write_files(tmp_path / "photos", files | {"labels.csv": rows})
    with open_studio(Dataset(root), patch) as studio:
        assert studio.labeling is not None
        assert studio.labeling.several
        state = studio.labeling.describe()
        assert (state["labeled"], state["remaining"], state["classes"]) == (2, 3, ["cat", "dog"])
        assert studio.labeling.command == f"sightline train {root} --set {TASK} --patch {patch}"
        ids = {row["path"]: row["id"] for row in studio.library.describe(range(5))}
        studio.library.update(studio.corrections.apply([ids["4.png"]], "set", "").after)
        assert studio.labeling.describe()["labeled"] == 3
        assert [row["path"] for row in studio.library.iter_kept()] == ["0.png", "1.png", "2.png", "4.png"]
        unlabeled = studio.library.describe(studio.library.list_ids(Query(state="unlabeled")))
        assert [row["path"] for row in unlabeled] == ["2.png", "3.png"]


@pytest.fixture
def client(photos: Path, patch: Path) -> Iterator[Any]:
    with (
        open_studio(Dataset(photos, set=[TASK]), patch, classes=CLASSES) as studio,
        load_page(studio, "/label") as opened,
    ):
        yield opened


def test_answers_of_the_page_are_in_the_list_and_the_table(client: Any, photos: Path, patch: Path) -> None:
    page = client.get("/label").text
    assert 'data-several="1"' in page
    assert f"sightline train {photos} --set {TASK} --patch {patch}" in page
    queue = client.get("/label/state").json()["queue"]
    for image, to in zip(queue, ("even;third", "", "third"), strict=False):
        assert client.post("/corrections", json={"ids": image["ids"], "edit": "set", "to": to}).status_code == 200
    state = client.get("/label/state").json()
    assert (state["labeled"], state["remaining"]) == (3, COUNT - 3)
    table = client.get("/images.csv").text.splitlines()[1:]
    assert sorted(table) == sorted(
        f"{image['path']},{to}" for image, to in zip(queue, ("even;third", "", "third"), strict=False)
    )
    assert client.get("/state").json()["counts"]["state"]["unlabeled"] == COUNT + 1 - 3
