"""The page to try a model: what it says is what the classifier says."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException

import sightline as sl
from sightline import Dataset
from sightline.api.classifier import Classifier
from sightline.errors import ModelError
from sightline.explain.localization import map_to_original
from sightline.report.heatmap_plot import overlay_heat
from sightline.studio.contents import Studio, open_studio
from sightline.studio.features import BackgroundFeatures
from sightline.studio.query import Query
from sightline.studio.trial import MAX_WAITING, HeatMapQueue

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")


@pytest.fixture(scope="module")
def photo(run: sl.Run) -> Path:
    return next(Path(run.config.data.sources[0]).glob("green/*.png"))


def test_an_image_is_classified_as_in_python(run_client: Any, run: sl.Run, photo: Path) -> None:
    answer = run_client.post("/try", content=photo.read_bytes()).json()
    expected = run.classifier.predict(photo)[0].to_dict()
    del expected["path"]
    assert answer == expected | {"nearest": []}


def test_nearest_training_images_are_found_once_the_features_are_there(
    run_client: Any, run_studio: Studio, run: sl.Run, photo: Path
) -> None:
    assert run_client.get("/features").json()["status"] == "new"
    assert run_client.post("/features").status_code == 200
    assert run_studio.model is not None
    run_studio.model.features.wait()
    assert run_client.get("/features").json() | {"task": ""} == {
        "status": "complete", "task": "", "done": 60, "total": 60, "error": "",
    }  # fmt: skip
    nearest = run_client.post("/try", params={"nearest": "1"}, content=photo.read_bytes()).json()["nearest"]
    assert len(nearest) == 8
    assert {row["split"] for row in nearest} == {"train"}
    folder = Path(run.config.data.sources[0])
    training = [str(folder / row.path) for row in run.directory.read_data() or () if row.split == "train"]
    expected = run.classifier.similar(photo.read_bytes(), training, top=8)
    assert [str(folder / row["path"]) for row in nearest] == [one.path for one in expected]
    np.testing.assert_allclose(
        [row["similarity"] for row in nearest], [one.similarity or 0.0 for one in expected], atol=1e-5
    )


def test_a_model_that_is_loaded_for_its_features_is_named(run: sl.Run) -> None:
    tasks = []

    def load() -> Classifier:
        tasks.append(features.state["task"])
        raise ModelError("It has none.")

    features = BackgroundFeatures(Dataset(run.config.data.sources).index, load)
    features.start()
    features.wait()
    assert tasks == ["loading the model"]
    assert features.state["error"] == "It has none."


def test_an_image_of_the_run_has_look_alikes_without_itself(run_client: Any, run_studio: Studio) -> None:
    assert run_studio.model is not None
    run_studio.model.features.start()
    run_studio.model.features.wait()
    position = int(np.flatnonzero(run_studio.model.is_training)[0])
    answer = run_client.get(f"/images/{position}/nearest").json()
    assert answer["features"]["status"] == "complete"
    assert len(answer["images"]) == 8
    assert {row["split"] for row in answer["images"]} == {"train"}
    assert position not in {row["id"] for row in answer["images"]}
    assert run_client.get("/images/60/nearest").status_code == 404


def test_likely_label_errors_of_a_run_are_listed_worst_first(other: sl.Run, tmp_path: Path) -> None:
    images = [row for row in other.directory.read_data() or () if row.path.startswith("red/mistake")]
    assert len(images) > 1
    worst_first = sorted(images, key=lambda row: row.path, reverse=True)
    lines = [
        {"action": "relabel", "path": row.path, "sha256": row.sha256, "label": "red", "to": "blue", "reason": "blue"}
        for row in worst_first
    ]
    changed = lines[0] | {"path": "red/red-000.png", "sha256": "0" * 64}
    other.directory.write_label_issues([changed, *lines])
    query = Query(finding="suspected-label-errors", sort="group")
    try:
        with open_studio(other, tmp_path / "fixes.jsonl") as studio:
            assert studio.library.count_values()["finding"] == {"suspected-label-errors": len(images)}
            rows = studio.library.describe(studio.library.list_ids(query))
            studio.library.set_findings(())
            assert len(studio.library.list_ids(query)) == len(images), "the checks keep them"
    finally:
        (other.path / "label_issues.jsonl").unlink()
    assert [row["path"] for row in rows] == [row.path for row in worst_first]
    assert rows[0]["findings"] == [{"kind": "suspected-label-errors", "reason": "blue"}]


def test_a_heat_map_is_the_explanation_of_the_class(run_client: Any, run: sl.Run, photo: Path) -> None:
    answer = run_client.post("/try/heat", params={"class": "red"}, content=photo.read_bytes()).json()
    (expected,) = run.classifier.explain(photo, label="red", method="occlusion")
    assert answer["label"] == "red"
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert expected.heat is not None
    with Image.open(photo) as original, Image.open(io.BytesIO(base64.b64decode(answer["image"]))) as image:
        heat = map_to_original(expected.heat, run.classifier.preprocess, *original.size)
        overlaid = overlay_heat(np.asarray(original.convert("RGB")), heat)
        assert image.size == (32, 32)
        assert np.abs(np.asarray(image.convert("RGB"), int) - overlaid).mean() < 6, "but for the loss of WebP"


def test_an_image_of_the_run_has_a_heat_map(run_client: Any) -> None:
    assert "image" in run_client.post("/images/3/heat").json()
    missing = run_client.post("/images/60/heat")
    assert (missing.status_code, missing.json()) == (404, {"error": "There is no such image."})


@pytest.mark.parametrize("path", ["/try", "/try/heat"])
@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_not_an_image_are_refused_in_a_sentence(run_client: Any, path: str, body: bytes) -> None:
    answer = run_client.post(path, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("The image cannot be ")


def test_the_bundle_of_the_run_is_for_the_browser(run_client: Any, run: sl.Run, photo: Path) -> None:
    assert run.directory.bundle is not None
    assert run_client.get("/try/model.onnx").content == (run.directory.bundle / "model.onnx").read_bytes()
    values = run_client.get("/try/bundle").json()
    assert values == {"classes": [*run.classifier.classes], "preprocess": run.classifier.preprocess.to_dict()}
    answer = run_client.post("/try/probabilities", content=photo.read_bytes()).json()
    np.testing.assert_allclose(answer["probabilities"], run.classifier.predict_proba(photo)[0], atol=1e-6)
    assert run_client.post("/try/probabilities", content=b"no image").status_code == 400


def test_the_page_to_try_alone_may_compile_web_assembly(run_client: Any) -> None:
    policies = {
        path: run_client.get(path).headers["Content-Security-Policy"] for path in ("/", "/try", "/map", "/results")
    }
    assert [path for path, policy in policies.items() if "script-src" in policy] == ["/try"]
    assert policies["/try"] == f"{policies['/']}; script-src 'self' 'wasm-unsafe-eval'"


def test_a_run_without_a_bundle_says_so(run: sl.Run, tmp_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="the extra studio is not installed")
    from sightline.studio.app import create_app

    shutil.copytree(run.path, tmp_path / "a", ignore=shutil.ignore_patterns("bundle"))
    with open_studio(sl.Run(tmp_path / "a"), tmp_path / "fixes.jsonl") as studio:
        client = testclient.TestClient(create_app(studio), "http://127.0.0.1:8000")
        assert "This run has no bundle" in client.get("/try").text
        answer = client.get("/try/model.onnx")
    assert (answer.status_code, "a has no bundle" in answer.json()["error"]) == (400, True)


def test_an_unknown_class_and_another_page_are_refused(run_client: Any, photo: Path) -> None:
    answer = run_client.post("/try/heat", params={"class": "rde"}, content=photo.read_bytes())
    assert (answer.status_code, "Did you mean" in answer.json()["error"]) == (400, True)
    for path in ("/try", "/try/heat", "/features", "/images/0/heat"):
        assert run_client.post(path, headers={"X-CSRF-Token": ""}).status_code == 403


def test_few_heat_maps_wait_and_one_is_computed_at_a_time() -> None:
    running, most = 0, 0

    def compute() -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1
        raise LookupError

    async def ask() -> list[BaseException | dict[str, Any]]:
        queue = HeatMapQueue()
        return await asyncio.gather(*(queue.run(compute) for _ in range(MAX_WAITING + 3)), return_exceptions=True)

    with ThreadPoolExecutor(1) as executor:  # the browser of other tests has a loop in this thread
        answers = executor.submit(asyncio.run, ask()).result()
    assert sum(isinstance(answer, LookupError) for answer in answers) == MAX_WAITING
    refused = [answer for answer in answers if isinstance(answer, HTTPException)]
    assert [answer.status_code for answer in refused] == [503] * 3
    assert most == 1
