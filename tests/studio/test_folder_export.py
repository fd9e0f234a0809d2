"""The class folders that the page writes beside the patch file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import sightline as sl
from sightline import Dataset
from sightline.studio.contents import Studio, open_studio

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")


def list_files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def connect(studio: Studio) -> Any:
    from sightline.studio.app import create_app

    client = testclient.TestClient(create_app(studio), "http://127.0.0.1:8000")
    token = re.search(r'name="csrf-token" content="([^"]+)"', client.get("/").text)
    assert token
    client.headers["X-CSRF-Token"] = token[1]
    return client


def test_the_page_writes_links_beside_the_patch_and_names_no_path(studio: Studio, patch: Path, colors: Path) -> None:
    studio.corrections.apply([0], "relabel", "new class")
    studio.corrections.apply([1], "drop")
    client = connect(studio)
    assert client.get("/state").json()["folders"] | {"total": 0} == {
        "status": "new", "task": "", "done": 0, "total": 0, "error": "", "written": None,
    }  # fmt: skip
    for number in (1, 2):
        client.post("/folders", json={"path": "../elsewhere", "folder": "../up"})
        studio.folders.wait()
        state = client.get("/state").json()["folders"]
        folder = patch.parent / f"fixes-images-{number}"
        assert (state["status"], state["written"]["path"]) == ("complete", str(folder))
        assert (state["written"]["images"], state["written"]["hard_links"]) == (23, 23)
        assert len(list_files(folder)) == 23
    linked = patch.parent / "fixes-images-2" / "new class" / "blue-000.png"
    assert linked.samefile(colors / "blue" / "blue-000.png")
    assert {path.name for path in patch.parent.iterdir()} == {"fixes.jsonl", "fixes-images-1", "fixes-images-2"}
    del client.headers["X-CSRF-Token"]
    assert client.post("/folders").status_code == 403


def test_a_run_has_the_splits_that_it_was_trained_in(run: sl.Run, patch: Path) -> None:
    with open_studio(run, patch) as studio:
        studio.folders.start()
        studio.folders.wait()
        written = studio.folders.state["written"]
    folders = {path.relative_to(written["path"]).parts[0] for path in Path(written["path"]).glob("*/*")}
    assert folders == {"train", "validation", "test"}
    assert written["images"] == 60
    data = Dataset(written["path"])
    assert {image.split for image in data.index.images} == folders


def test_the_folder_is_not_written_among_the_images(colors: Path) -> None:
    inside = colors / "fixes.jsonl"
    with open_studio(Dataset(colors), inside) as studio:
        studio.folders.start()
        studio.folders.wait()
        assert studio.folders.state["status"] == "failed"
        assert "would hold its images twice" in studio.folders.state["error"]
    assert {path.name for path in colors.iterdir()} == {"blue", "green", "red"}
