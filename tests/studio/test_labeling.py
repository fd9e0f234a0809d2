"""Labeling in the studio: what is asked, what is stated, and that nothing which people did is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline import Dataset
from sightline.callbacks import Callback
from sightline.data.indexing import build_index
from sightline.data.label_patch import load_and_apply_patch, read_patch
from sightline.data.types import Index
from sightline.errors import DataError, UsageError
from sightline.studio.background import RepeatedTask
from sightline.studio.contents import open_studio
from sightline.studio.corrections import Corrections
from sightline.studio.labeling import BATCH, MORE, QUEUED, Labeling
from studio_client import load_page
from synthetic_images import encode_png, write_files

COUNT = 120
CLASSES = ("even", "odd")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels, two of which are the same file."""
    files = {f"IMG-{i:03}.png": encode_png(i) for i in range(COUNT)}
    return write_files(tmp_path_factory.mktemp("data") / "photos", files | {"copy of 7.png": encode_png(7)})


@pytest.fixture(scope="module")
def index(photos: Path) -> Index:
    return build_index(photos, unlabeled=True)


def tell(path: str) -> str:
    """Return the class of an image."""
    return CLASSES[int(re.findall(r"\d+", path)[0]) % 2]


def draw_features(index: Index, callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return features that show the class, but not well."""
    callback.on_progress("features", 1, 1)
    rng = np.random.default_rng(0)
    classes = np.array([CLASSES.index(tell(image.path)) for image in index.images])
    features = rng.normal(0, 1, (len(classes), 12)).astype(np.float32)
    features[:, :4] += 1.6 * classes[:, None].astype(np.float32)
    return features, np.ones(len(classes), bool)


def draw_once_set(is_wanted: Event) -> Callable[[Index, Callback], tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    def draw(index: Index, callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        assert is_wanted.wait(60)
        return draw_features(index, callback)

    return draw


def open_labeling(index: Index, patch: Path, **options: Any) -> tuple[Labeling, Corrections]:
    corrections = Corrections(patch, index)
    return Labeling(index, corrections, options.pop("compute", draw_features), **options), corrections


def start(labeling: Labeling) -> None:
    labeling.features.start()
    labeling.features.wait()
    assert labeling.features.state["status"] == "complete", labeling.features.state


def answer(labeling: Labeling, corrections: Corrections, count: int) -> None:
    """Label the first images of the queue as a page does, and wait for the head."""
    for image in labeling.describe()["queue"][:count]:
        corrections.apply(image["ids"], "relabel", tell(image["path"]))
    labeling.describe()
    labeling.training.wait()
    labeling.forecast.wait()


def test_a_folder_without_labels_is_labeled_to_an_accuracy(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    before = labeling.describe()
    assert (before["labeled"], before["remaining"], before["classes"]) == (0, COUNT, list(CLASSES))
    assert len(before["queue"]) == QUEUED, "people begin before the features are there"
    answer(labeling, corrections, 5)
    start(labeling)
    assert labeling.describe()["accuracy"] is None
    for _ in range(6):
        answer(labeling, corrections, BATCH)
    state = labeling.describe()
    assert state["labeled"] == 5 + 6 * BATCH
    assert state["audited"] >= 25
    low, high = state["accuracy"]["interval"]
    assert low < state["accuracy"]["value"] < high
    assert state["accuracy"]["whenever"].low < low
    assert state["accuracy"]["value"] > 0.7
    assert {image["path"] for image in state["queue"]}.isdisjoint(
        entry.path for _, entry in read_patch(corrections.path)
    )
    while labeling.describe()["queue"]:
        answer(labeling, corrections, QUEUED)
    assert labeling.describe()["remaining"] == 0
    assert {entry.path: entry.to for _, entry in read_patch(patch)} == {i.path: tell(i.path) for i in index.images}
    labeling.stop()


def test_copies_are_asked_once_and_labeled_together(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    queues = []
    while queue := labeling.describe()["queue"]:
        queues += queue
        answer(labeling, corrections, QUEUED)
    assert len(queues) == COUNT
    assert sorted(len(image["ids"]) for image in queues)[-2:] == [1, 2]
    assert len(read_patch(patch)) == COUNT + 1


def test_after_a_restart_it_says_that_it_computes(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    assert labeling.describe()["computing"] == [], "nothing was started"
    for _ in range(2):
        answer(labeling, corrections, QUEUED)
    is_wanted = Event()
    again, _ = open_labeling(index, patch, classes=CLASSES, compute=draw_once_set(is_wanted))
    again.features.start()
    assert again.describe()["computing"] == ["accuracy", "gain"]
    is_wanted.set()
    again.features.wait()
    again.forecast.wait()
    state = again.describe()
    assert (state["computing"], state["accuracy"] is None) == ([], False)


def test_a_restart_goes_on(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    start(labeling)
    for _ in range(4):
        answer(labeling, corrections, BATCH)
    state = labeling.describe()
    again, _ = open_labeling(index, patch)
    start(again)
    again.forecast.wait()
    restarted = again.describe()
    assert sorted(restarted["classes"]) == list(CLASSES), "those of the labels"
    for key in ("labeled", "remaining", "audited"):
        assert restarted[key] == state[key]
    assert abs(restarted["accuracy"]["value"] - state["accuracy"]["value"]) < 0.1
    assert not {image["path"] for image in restarted["queue"]} & {entry.path for _, entry in read_patch(patch)}


def test_after_a_restart_the_keys_are_those_of_the_list_of_images(photos: Path, patch: Path) -> None:
    with open_studio(Dataset(photos), patch, classes=["zebra"]) as studio:
        for i, name in enumerate(("odd", "even", "zebra", "ant")):
            studio.corrections.apply([i], "relabel", name)
    with open_studio(Dataset(photos), patch, classes=["zebra"]) as studio:
        assert studio.labeling is not None
        order = ["zebra", "ant", "even", "odd"]
        assert studio.labeling.describe()["classes"] == list(studio.library.count_values()["label"]) == order


def test_undo_and_drop_are_seen(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    first, second = labeling.describe()["queue"][:2]
    click = corrections.apply(first["ids"], "relabel", "odd")
    corrections.apply(second["ids"], "drop")
    state = labeling.describe()
    assert (state["labeled"], state["remaining"]) == (1, COUNT - 2)
    corrections.undo(click.number)
    state = labeling.describe()
    assert (state["labeled"], state["remaining"]) == (0, COUNT - 1)
    assert first in state["queue"]
    assert second not in state["queue"]


def test_two_pages_show_different_images(index: Index, patch: Path) -> None:
    labeling, _ = open_labeling(index, patch)
    queue = labeling.describe()["queue"]
    assert [labeling.describe(page)["queue"] for page in "abca"] == [queue[:8], queue[8:16], queue[16:], queue[:8]]
    assert labeling.describe("d")["queue"] == queue, "nothing is left for it alone"


def test_the_images_of_a_closed_page_are_those_of_the_next_one(index: Index, patch: Path) -> None:
    labeling, _ = open_labeling(index, patch)
    queue = labeling.describe("a", visit="first")["queue"]
    assert labeling.describe("b")["queue"] != queue
    labeling.release("a", "first")
    labeling.describe("a", queue[0]["sha256"], "first")  # a request that was under way
    assert labeling.describe("c")["queue"] == queue
    labeling.release("c")
    assert labeling.describe("a", visit="second")["queue"] == queue


def test_the_image_that_a_page_shows_stays_its_own_until_somebody_labels_it(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES)
    queue = labeling.describe()["queue"]
    others = {image.sha256 for image in index.images} - {image["sha256"] for image in queue}
    assert labeling.describe("a", min(others))["shown"], "though it is not queued"
    assert not labeling.describe("a", "0" * 64)["shown"]
    image = queue[-1]
    assert labeling.describe("a", image["sha256"])["shown"]
    assert all(image not in labeling.describe(page)["queue"] for page in "bc")
    corrections.apply(image["ids"], "relabel", "odd")
    assert not labeling.describe("a", image["sha256"])["shown"]


def test_labels_of_the_source_are_trained_on_but_not_part_of_the_audit(tmp_path: Path, patch: Path) -> None:
    files = {f"{tell(str(i))}/{i}.png": encode_png(i) for i in range(12)}
    files |= {f"new {i}.png": encode_png(i) for i in range(20, 60)}
    index = build_index(write_files(tmp_path / "some", files), unlabeled=True)
    is_wanted = Event()
    labeling, corrections = open_labeling(index, patch, compute=draw_once_set(is_wanted))
    labeling.start()
    assert labeling.describe()["computing"] == [], "without answers, no accuracy is known afterwards"
    is_wanted.set()
    start(labeling)
    state = labeling.describe()
    assert (state["classes"], state["labeled"], state["accuracy"]) == (list(CLASSES), 12, None)
    for _ in range(3):
        answer(labeling, corrections, BATCH)
    assert 3 <= labeling.describe()["audited"] <= 25
    assert labeling.describe()["labeled"] == 48


def test_where_every_image_has_a_class_nothing_is_computed(tmp_path: Path, patch: Path) -> None:
    index = build_index(write_files(tmp_path / "all", {f"{tell(str(i))}/{i}.png": encode_png(i) for i in range(12)}))
    labeling, _ = open_labeling(index, patch)
    labeling.start()
    state = labeling.describe()
    assert (state["features"]["status"], state["computing"], state["remaining"]) == ("new", [], 0)


def test_a_gain_is_predicted_from_enough_errors(index: Index, patch: Path) -> None:
    labeling, corrections = open_labeling(index, patch, classes=CLASSES, compute=lambda i, c: (
        np.random.default_rng(1).normal(0, 1, (len(i.images), 12)).astype(np.float32), np.ones(len(i.images), bool)
    ))  # fmt: skip
    start(labeling)
    assert labeling.describe()["gain"] is None
    for _ in range(7):
        answer(labeling, corrections, BATCH)
    state = labeling.describe()
    assert state["more"] == MORE
    low, high = state["gain"]["interval"]
    assert low <= state["gain"]["value"] <= high


def test_an_image_that_cannot_be_decoded_is_not_asked(index: Index, patch: Path) -> None:
    def compute(images: Index, callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        features, decoded = draw_features(images, callback)
        decoded[3] = False
        return features, decoded

    labeling, _ = open_labeling(index, patch, classes=CLASSES, compute=compute)
    start(labeling)
    assert labeling.describe()["remaining"] == COUNT - 1


def test_the_first_file_that_cannot_be_shown_is_named_at_the_start(tmp_path: Path, patch: Path) -> None:
    texts: list[str] = []

    class Messages(Callback):
        def on_message(self, text: str) -> None:
            texts.append(text)

    write_files(tmp_path / "photos", {"1.png": encode_png(), "2.png": b"", "3.jpg": b"text"})
    with open_studio(Dataset(tmp_path / "photos"), patch, Messages()):
        assert texts == ["2 files cannot be shown; the first, 2.png: empty file"]


def test_an_empty_folder_may_have_images_without_a_class(tmp_path: Path, patch: Path) -> None:
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(DataError, match="expected images without a class"),
        open_studio(Dataset(tmp_path / "empty"), patch),
    ):
        pass


def test_what_went_wrong_is_stated(index: Index, patch: Path) -> None:
    def compute(_images: Index, _callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        raise DataError("The weights are missing: install them.")

    labeling, _ = open_labeling(index, patch, compute=compute)
    labeling.features.start()
    labeling.features.wait()
    state = labeling.describe()
    assert state["features"]["error"] == "The weights are missing: install them."
    assert len(state["queue"]) == QUEUED, "labeling goes on without"


def test_classes_are_added_and_checked(index: Index, patch: Path) -> None:
    labeling, _ = open_labeling(index, patch)
    labeling.add_class("cat")
    labeling.add_class("cat")
    assert labeling.describe()["classes"] == ["cat"]
    for name in ("", " cat", "a/b", "x" * 256):
        with pytest.raises(UsageError, match="A class name has 1 to 255 characters"):
            labeling.add_class(name)


def test_a_repeated_task_runs_once_more_if_it_was_started_while_it_ran() -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(len(calls))
        if len(calls) < 4:
            task.start()

    task = RepeatedTask("count", work)
    task.start()
    task.wait()
    assert calls == [0, 1, 2, 3]
    task.stop()
    task.start()
    task.wait()
    assert len(calls) == 4


@pytest.fixture
def client(photos: Path, patch: Path) -> Iterator[Any]:
    with open_studio(Dataset(photos), patch, classes=CLASSES) as studio, load_page(studio, "/label") as opened:
        yield opened


def test_answers_of_the_page_are_lines_of_the_patch_that_train_reads(client: Any, photos: Path, patch: Path) -> None:
    page = client.get("/label").text
    assert f"sightline train {photos} --patch {patch}" in page
    assert '<a href="/train">or start on the page Train</a>' in page
    counts = client.get("/state").json()["counts"]["label"]
    assert list(counts.items()) == [(name, 0) for name in CLASSES], "the list of images has their buttons, too"
    queue = client.get("/label/state").json()["queue"]
    for image, name in zip(queue, ("even", "odd", "third"), strict=False):
        answer = client.post("/corrections", json={"ids": image["ids"], "edit": "relabel", "to": name})
        assert answer.status_code == 200
    state = client.post("/label/classes", json={"name": "fourth"}).json()
    assert state["classes"] == ["even", "odd", "third", "fourth"]
    assert (state["labeled"], state["features"]["status"]) == (3, "new")
    assert client.post("/label/classes", json={"name": 3}).status_code == 400
    assert client.post("/label/start", headers={"X-CSRF-Token": ""}).status_code == 403
    own = client.get("/label/state?page=a").json()["queue"]
    assert client.post("/label/leave?page=a").status_code == 200
    assert client.get("/label/state?page=b").json()["queue"] == own
    labeled = load_and_apply_patch(build_index(photos, unlabeled=True), patch)
    assert {image.path: image.label for image in labeled.images} == {
        queue[0]["path"]: "even", queue[1]["path"]: "odd", queue[2]["path"]: "third",
    }  # fmt: skip
    counts = client.get("/state").json()["counts"]["label"]
    assert list(counts.items()) == [("even", 1), ("odd", 1), ("third", 1)]
    assert client.get("/images.csv").text.count("\n") == 4
    assert client.get("/state").json()["counts"]["state"]["unlabeled"] == COUNT + 1 - 3
    assert client.get("/order", params={"state": "unlabeled"}).status_code == 200
