"""The map of a run's images: the principal components of their features, and the images that are selected on it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from sightline.evaluation.covariance import ROWS
from sightline.studio.contents import Studio
from sightline.studio.embedding_map import RIGHT, UNKNOWN, WRONG, compute_pca, compute_umap

pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")


@pytest.mark.parametrize("features", [2, 6, 60])
def test_the_plane_is_that_of_the_principal_components(features: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    generator = np.random.default_rng(5)
    spread = np.array([5, 3, *[1] * 58])[:features]
    vectors = (generator.normal(0, 1, (ROWS + 40, features)) * spread + 7).astype(np.float32)
    vectors[3] = np.nan
    points = compute_pca(vectors)
    assert np.isnan(points[3]).all()
    valid = np.delete(vectors, 3, 0)
    expected = decomposition.PCA(2).fit_transform(valid.astype(np.float64))
    actual = np.delete(points, 3, 0)
    np.testing.assert_allclose(np.abs(actual), np.abs(expected), atol=2e-2)


@pytest.mark.slow
@pytest.mark.installed
def test_images_that_are_alike_are_near_each_other_by_umap() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    generator = np.random.default_rng(5)
    centers = generator.normal(0, 1, (2, 16))
    vectors = (np.repeat(centers, 40, 0) + generator.normal(0, 0.05, (80, 16))).astype(np.float32)
    vectors[0] = np.nan
    points = compute_umap(vectors)
    assert np.isnan(points[0]).all()
    first, second = points[1:40].mean(0), points[40:].mean(0)
    assert np.linalg.norm(first - second) > 2 * np.linalg.norm(points[1:40] - first, axis=1).max()


def test_each_image_has_a_point(run_client: Any, run_studio: Studio) -> None:
    assert run_studio.model is not None
    early = run_client.get("/map/points")
    assert (early.status_code, early.json()) == (409, {"error": "The features of the images are not computed yet."})
    run_studio.model.features.start()
    run_studio.model.features.wait()
    values = run_client.get("/map/points").json()
    types = {"ids": "<u4", "x": "<f4", "y": "<f4", "label": "<u2", "state": "u1"}
    arrays = {name: np.frombuffer(base64.b64decode(values[name]), of) for name, of in types.items()}
    assert {len(array) for array in arrays.values()} == {values["count"]} == {60}
    assert (arrays["x"].min(), arrays["x"].max(), arrays["y"].min(), arrays["y"].max()) == (0, 1, 0, 1)
    rows = run_client.get("/images", params={"ids": ",".join(map(str, arrays["ids"]))}).json()
    assert [values["classes"][number] for number in arrays["label"]] == [row["label"] for row in rows]
    states = {None: UNKNOWN, True: RIGHT, False: WRONG}
    expected = [states[row["predicted"] and row["predicted"] == row["label"]] for row in rows]
    assert arrays["state"].tolist() == expected


def test_a_corrected_class_is_on_the_map_at_once(run_client: Any, run_studio: Studio) -> None:
    assert run_studio.model is not None
    run_studio.model.features.start()
    run_studio.model.features.wait()
    before = run_client.get("/map/points").json()
    assert run_client.get("/map/points").json() == before
    click = run_client.post("/corrections", json={"ids": [0], "edit": "relabel", "to": "purple"}).json()["click"]
    try:
        assert run_client.get("/map/points").json()["classes"] == sorted([*before["classes"], "purple"])
    finally:
        run_client.post("/undo", json={"click": click})
    assert run_client.get("/map/points").json() == before


@pytest.mark.slow
@pytest.mark.installed
def test_the_page_has_a_map_by_umap_where_it_is_installed(run_client: Any, run_studio: Studio) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    assert '<option value="umap">UMAP</option>' in run_client.get("/map").text
    assert run_studio.model is not None
    run_studio.model.features.start()
    run_studio.model.features.wait()
    values = run_client.get("/map/points", params={"method": "umap"}).json()
    assert values["count"] == 60
    assert values["x"] != run_client.get("/map/points").json()["x"]


def test_the_keys_of_the_map_are_among_those_that_the_page_shows(run_client: Any) -> None:
    page = run_client.get("/map").text
    assert "Move a rectangle over the map" in page[page.index('id="keys-template"') :]


def test_selected_images_are_listed(run_client: Any) -> None:
    answer = run_client.post("/selections", content=np.array([7, 3, 7], "<u4").tobytes()).json()
    order = run_client.get("/order", params=answer).content
    assert np.frombuffer(order, "<u4").tolist() == [3, 7]
    assert run_client.post("/selections", content=b"123").status_code == 400
    assert run_client.post("/selections", content=b"", headers={"X-CSRF-Token": ""}).status_code == 403
    assert run_client.get("/map/points", params={"method": "tsne"}).status_code == 400
