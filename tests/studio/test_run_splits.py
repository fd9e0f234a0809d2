"""The splits of a run's images, where its source states some: moved, restored and written as they are shown."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sightline as sl
from command import COLORS, draw_classes
from sightline import UsageError
from sightline.data.indexing import build_index
from sightline.studio.contents import Studio, open_studio
from sightline.studio.corrections import Corrections
from sightline.studio.query import Query
from studio_client import load_page

MOVED = "train/blue/blue-000.png"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images whose source states train and test splits."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    draw_classes(root / "train", COLORS, 20)
    for label in COLORS:
        (root / "test" / label).mkdir(parents=True)
        for number in range(16, 20):
            path = Path(label, f"{label}-{number:03}.png")
            (root / "train" / path).rename(root / "test" / path)
    return root


def train(photos: Path, folder: Path, **options: Any) -> sl.Run:
    settings = {"model.hidden_units": [4], "train.track": []}
    model = "cifar10-simple"
    return sl.train(photos, recipe="quick", model=model, epochs=1, seed=1, out=folder, set=settings, **options)


@pytest.fixture(scope="module")
def stated_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    return train(photos, tmp_path_factory.mktemp("run") / "a")


@pytest.fixture(scope="module")
def moved_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> sl.Run:
    """A run with a patch that moves an image from train to test."""
    folder, index = tmp_path_factory.mktemp("run"), build_index(photos)
    position = next(i for i, image in enumerate(index.images) if image.path == MOVED)
    Corrections(folder / "moves.jsonl", index).apply([position], "move", "test")
    return train(photos, folder / "a", patch=folder / "moves.jsonl")


@pytest.fixture
def stated_studio(stated_run: sl.Run, patch: Path) -> Iterator[Studio]:
    with open_studio(stated_run, patch) as studio:
        yield studio


def find(studio: Studio, text: str) -> dict[str, Any]:
    (row,) = studio.library.describe(studio.library.list_ids(Query(text=text)))
    return row


def read_table(client: Any) -> dict[str, str]:
    return {row["path"]: row["split"] for row in csv.DictReader(io.StringIO(client.get("/images.csv").text))}


def test_a_split_that_training_chose_is_left_and_restored(stated_studio: Studio, patch: Path) -> None:
    position = stated_studio.library.list_ids(Query(split="validation"))[0]
    with load_page(stated_studio) as client:
        for edit, to, expected in (
            ("move", "test", "test"), ("move", "validation", "validation"), ("move", "test", "test"),
            ("restore", None, "validation"),
        ):  # fmt: skip
            answer = client.post("/corrections", json={"ids": [position], "edit": edit, "to": to}).json()
            assert [row["split"] for row in answer["rows"]] == [expected]
            assert read_table(client)[answer["rows"][0]["path"]] == expected
            assert ("move" in patch.read_text()) == (expected == "test"), "training chooses the other one by itself"


@pytest.mark.parametrize("first", [None, "test"])
def test_a_move_that_a_patch_cannot_state_is_refused(stated_studio: Studio, first: str | None) -> None:
    position = stated_studio.library.list_ids(Query(split="validation"))[0]
    if first is not None:
        stated_studio.corrections.apply([position], "move", first)
    with load_page(stated_studio) as client:
        answer = client.post("/corrections", json={"ids": [position], "edit": "move", "to": "train"})
        assert answer.status_code == 400
        assert "cannot be moved to train: its source has it there already" in answer.json()["error"]
        change = {"ids": [position], "edit": "move", "to": "train"}
        chinese = client.post("/corrections", json=change, headers={"Accept-Language": "zh"}).json()["error"]
    assert "无法移到 train" in chinese
    with pytest.raises(UsageError):
        stated_studio.corrections.apply([position], "move", "train")
    assert stated_studio.library.describe([position])[0]["split"] == "validation"


@pytest.mark.parametrize(
    ("address", "change"),
    [
        ("/corrections", {"edit": "move", "to": "train"}),
        ("/corrections", {"edit": "restore"}),
        ("/undo", {"click": None}),
    ],
)
def test_a_move_of_the_run_that_is_taken_back_leaves_the_split_of_the_source(
    moved_run: sl.Run, patch: Path, address: str, change: dict[str, Any]
) -> None:
    assert moved_run.directory.patch is not None
    shutil.copyfile(moved_run.directory.patch, patch)  # so that its line is one to undo
    with open_studio(moved_run, patch) as studio:
        row = find(studio, MOVED)
        assert row["split"] == "test"
        assert studio.library.list_ids(Query(state="corrected")) == [row["id"]]
        with load_page(studio) as client:
            assert client.post(address, json={"ids": [row["id"]]} | change).status_code == 200
            assert read_table(client)[MOVED] == "train"
        assert find(studio, MOVED)["split"] == "train"
        studio.folders.start()
        studio.folders.wait()
        folder = Path(studio.folders.state["written"]["path"])
    assert (folder / "train" / "blue" / Path(MOVED).name).exists()


@pytest.fixture
def added(photos: Path) -> Iterator[None]:
    """Two more images of the training split."""
    paths = [photos / "train" / "red" / f"new-{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.new("RGB", (32, 32), (200 + number, 40, 40)).save(path)
    yield
    for path in paths:
        path.unlink()


@pytest.mark.usefixtures("added")
def test_an_image_that_was_added_after_the_run_is_written_where_it_is_shown(stated_run: sl.Run, patch: Path) -> None:
    with open_studio(stated_run, patch) as studio:
        assert find(studio, "new-0")["split"] == find(studio, "new-1")["split"] == "train"
        studio.corrections.apply([find(studio, "new-1")["id"]], "move", "test")
        studio.folders.start()
        studio.folders.wait()
        state = studio.folders.state
    assert state["error"] == ""
    assert state["written"]["left_out"] == 0
    folder = Path(state["written"]["path"])
    assert (folder / "train" / "red" / "new-0.png").exists()
    assert (folder / "test" / "red" / "new-1.png").exists()
