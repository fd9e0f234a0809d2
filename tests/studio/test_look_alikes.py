"""Look-alikes without a run: by perceptual hash once the images are checked, then by pretrained features."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from command import COLORS, draw_classes
from sightline import Dataset
from sightline.callbacks import Callback
from sightline.data.types import Index
from sightline.errors import DataError
from sightline.studio import contents
from sightline.studio.contents import Studio, open_studio
from sightline.studio.look_alikes import LookAlikes
from synthetic_images import encode_png, write_files

testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")


def compute_features(index: Index, callback: Callback) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the mean color of each image, and that the last one cannot be decoded."""
    callback.on_progress("features", 1, 2)
    names = sorted({image.label for image in index.images})
    noise = np.random.default_rng(0).normal(0, 0.01, (len(index.images), len(names)))
    features = np.array([np.eye(len(names))[names.index(image.label)] for image in index.images]) + noise
    features[-1] = np.nan
    return features.astype(np.float32), np.isfinite(features[:, 0])


def test_the_nearest_images_by_features_are_those_alike(studio: Studio, colors: Path) -> None:
    index = Dataset(colors).index
    look_alikes = LookAlikes(index, compute_features, studio.check)
    assert look_alikes.find_nearest(0) == ("", []), "nothing is known yet"
    look_alikes.features.start()
    look_alikes.features.wait()
    by, nearest = look_alikes.find_nearest(9)
    assert by == "features"
    assert 9 not in nearest
    assert {index.images[i].label for i in nearest[:7]} == {"green"}
    assert all(23 not in look_alikes.find_nearest(i)[1] for i in range(23)), "it cannot be decoded"
    assert look_alikes.find_nearest(23) == ("", [])


def test_features_that_are_computed_for_the_labels_already_are_waited_for_with_their_progress(
    tmp_path: Path, patch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, is_wanted = Event(), Event()
    calls = []

    def compute(*arguments: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        *_, index, callback = arguments
        calls.append(index)
        has_begun.set()
        while not is_wanted.wait(0.05):
            callback.on_progress("decoding", 3, 4)
        return compute_features(index, Callback())

    monkeypatch.setattr(contents, "compute_in_process", compute)
    folder = write_files(tmp_path / "photos", {f"{i}.png": encode_png(i) for i in range(12)})
    for is_complete in (True, False):  # else the studio ends before
        has_begun.clear()
        is_wanted.clear()
        with open_studio(Dataset(folder), patch) as studio:
            assert studio.labeling is not None
            assert studio.look_alikes is not None
            features = studio.look_alikes.features
            studio.labeling.start()
            assert has_begun.wait(60)
            features.start()
            while features.state["task"] != "decoding":
                assert features.state["status"] == "running"
            assert (features.state["done"], features.state["total"]) == (3, 4)
            if is_complete:
                is_wanted.set()
                features.wait()
                assert features.vectors is not None
    assert len(calls) == 2, "once in each studio"


def test_without_a_backend_checked_images_are_compared_by_hash(tmp_path: Path, patch: Path) -> None:
    folder = draw_classes(tmp_path / "twins", COLORS, 3)
    with Image.open(folder / "blue" / "blue-001.png") as image:
        image.resize((60, 60)).save(folder / "red" / "twin.png")

    def fail(*_: Any) -> Any:
        raise DataError("No image can be decoded.")

    with open_studio(Dataset(folder), patch) as studio:
        positions = {row["path"]: row["id"] for row in studio.library.describe(range(10))}
        look_alikes = LookAlikes(Dataset(folder).index, fail, studio.check)
        look_alikes.features.start()
        look_alikes.features.wait()
        assert look_alikes.features.state["status"] == "failed"
        studio.check.start()
        studio.check.wait()
        by, nearest = look_alikes.find_nearest(positions["blue/blue-001.png"])
        assert by == "hash"
        assert nearest[0] == positions["red/twin.png"]
        assert len(nearest) == 8
        assert positions["blue/blue-001.png"] not in nearest


def test_the_page_asks_for_them_of_a_data_set(studio: Studio) -> None:
    from sightline.studio.app import create_app

    assert studio.look_alikes is not None
    with testclient.TestClient(create_app(studio), "http://127.0.0.1:8000") as client:
        html = client.get("/").text
        assert 'id="show-nearest"' in html
        assert 'id="show-heat"' not in html
        token = re.search(r'name="csrf-token" content="([^"]+)"', html)
        assert token
        assert client.get("/images/3/nearest").json() == {
            "features": studio.look_alikes.features.state, "by": "", "images": [],
        }  # fmt: skip
        assert client.get("/images/24/nearest").status_code == 404
        assert client.post("/features").status_code == 403, "without the token"
