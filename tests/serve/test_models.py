"""Several models and versions in one server, from a folder of real bundles."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from asgi_client import Answer, Request, call
from sightline import load
from sightline.errors import ModelError, OutputError, UsageError
from sightline.inference import bundle
from sightline.inference.logged_images import read_log
from sightline.serve.app import create_app
from sightline.serve.feature_logs import FeatureLogs
from sightline.serve.model_folder import list_folder, load_all
from small_bundles import make_bundle
from synthetic_images import encode_png

IMAGE = encode_png(3)
BIRDS = ("crow", "owl")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Versions of cats in each form that is allowed, and birds without versions."""
    models = tmp_path / "models"
    bundle.write_folder(make_bundle(1), models / "cats" / "1")
    bundle.write(make_bundle(2), models / "cats" / "2.zip")
    (models / "cats" / "10").mkdir()
    bundle.write(make_bundle(10), models / "cats" / "10" / "model.onnx")
    bundle.write(make_bundle(5, BIRDS), models / "birds.zip")
    (models / "README.md").write_text("Not a model.")
    (models / "cats" / "config.pbtxt").write_text("")
    (models / ".snapshot").mkdir()
    (models / "lost+found").mkdir()
    return models


def send(folder: Path, *requests: Request, **options: Any) -> list[Answer]:
    async def exchange() -> list[Answer]:
        app = create_app(load_all(list_folder(folder)), max_bytes=1 << 20, **options)
        async with app.router.lifespan_context(app):
            return [await call(app, request) for request in requests]

    return asyncio.run(exchange())


def get(folder: Path, *paths: str) -> list[tuple[int, Any]]:
    return [(answer.status, json.loads(answer.body)) for answer in send(folder, *map(Request, paths))]


def test_each_model_and_version_answers_below_its_own_addresses(folder: Path) -> None:
    expected = {
        "/models/cats": ("10", load(folder / "cats" / "10" / "model.onnx")),
        "/models/cats/versions/1": ("1", load(folder / "cats" / "1")),
        "/models/cats/versions/2": ("2", load(folder / "cats" / "2.zip")),
        "/models/birds": ("5" * 12, load(folder / "birds.zip")),
    }
    requests = [Request(f"{address}/predict", IMAGE) for address in expected]
    raw = {"Inference-Header-Content-Length": "0"}
    answers = send(folder, *requests, *(Request(f"/v2{address}/infer", IMAGE, raw) for address in expected))
    for (version, classifier), own, protocol in zip(expected.values(), answers[:4], answers[4:], strict=True):
        (prediction,) = classifier.predict(IMAGE)
        (probabilities,) = classifier.predict_proba(IMAGE)
        content, other = json.loads(own.body), json.loads(protocol.body)
        assert (content["label"], content["model"]["version"]) == (prediction.label, version)
        assert content["probability"] == pytest.approx(prediction.probability, abs=1e-6)
        assert other["model_version"] == version
        np.testing.assert_allclose(other["outputs"][0]["data"], probabilities, atol=1e-6)


def test_each_model_and_version_has_its_own_log_of_features(folder: Path, tmp_path: Path) -> None:
    paths = ["birds", "cats", "cats/versions/1", "cats/versions/1"]
    requests = [Request(f"/models/{path}/predict", encode_png(seed)) for seed, path in enumerate(paths)]
    logs = FeatureLogs(tmp_path / "logs", 1 << 20, is_folder=True)
    *answers, scrape = send(folder, *requests, Request("/metrics"), feature_logs=logs)
    ids = [json.loads(answer.body)["log_id"] for answer in answers]
    expected = {"birds.log": ids[:1], "cats/10.log": ids[1:2], "cats/1.log": ids[2:], "cats/2.log": []}
    files = {path.relative_to(tmp_path / "logs").as_posix() for path in (tmp_path / "logs").rglob("*.log")}
    assert files == set(expected)
    for name, logged in expected.items():
        lines = (tmp_path / "logs" / name).read_bytes().splitlines()
        assert [json.loads(line)["id"] for line in lines[1:]] == logged
    model = load(folder / "cats" / "10" / "model.onnx")
    (images,) = read_log(tmp_path / "logs/cats/10.log", model.feature_model_id, model.classes, lambda _: None)
    np.testing.assert_allclose(images.probabilities, model.predict_proba(encode_png(1)), atol=1e-6)
    for name in ("birds", "cats"):
        assert f'sightline_feature_log_dropped_images{{model="{name}"}} 0.0' in scrape.body


def test_a_folder_of_logs_that_cannot_be_made_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OutputError, match="--log-features names a folder"):
        send(folder, feature_logs=FeatureLogs(tmp_path / "logs", 1 << 20, is_folder=True))


def test_models_are_listed_and_described(folder: Path) -> None:
    models, cats, birds, metadata, ready = get(
        folder, "/models", "/models/cats", "/models/birds", "/v2/models/cats", "/v2/models/cats/versions/2/ready"
    )
    assert [(model["name"], model["version"]) for model in models[1]["models"]] == [
        ("birds", "5" * 12), ("cats", "1"), ("cats", "2"), ("cats", "10")
    ]  # fmt: skip
    assert cats[1]["weights_sha256"] == "a" * 64
    assert birds[1]["classes"] == list(BIRDS)
    assert metadata[1]["versions"] == ["1", "2", "10"]
    assert ready == (200, {"name": "cats", "ready": True})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/models/owls/predict", "There is no model 'owls': this server has 'birds' and 'cats'."),
        ("/v2/models/owls/infer", "There is no model 'owls': this server has 'birds' and 'cats'."),
        ("/models/cats/versions/3/predict", "There is no version '3' of 'cats': this server has '1', '2' and '10'."),
        ("/predict", "This server has several models: use /models/NAME/..., where NAME is 'birds' or 'cats'."),
    ],
)
def test_what_there_is_not_is_explained(folder: Path, path: str, words: str) -> None:
    (answer,) = send(folder, Request(path, IMAGE))
    assert (answer.status, json.loads(answer.body)) == (404, {"error": words})


def test_the_only_model_needs_no_name(folder: Path) -> None:
    (folder / "birds.zip").unlink()
    newest, described = send(folder, Request("/predict", IMAGE), Request("/model"))
    assert json.loads(newest.body)["model"] == {"name": "cats", "version": "10", "weights_sha256": "a" * 64}
    assert json.loads(described.body)["weights_sha256"] == "a" * 64


def test_requests_are_counted_by_the_model_that_they_name(folder: Path) -> None:
    paths = [
        "/models/cats/predict",
        "/models/cats/versions/1/predict",
        "/v2/models/birds/infer",
        "/models/owls/predict",
    ]
    *_, metrics = send(folder, *(Request(path, IMAGE) for path in paths), Request("/metrics"))
    for model, endpoint, code, count in (
        ("cats", "predict", 200, 2), ("birds", "infer", 400, 1), ("", "predict", 404, 1)
    ):  # fmt: skip
        labels = f'{{code="{code}",endpoint="{endpoint}",model="{model}"}}'
        assert f"sightline_requests_total{labels} {count}.0" in metrics.body
    assert metrics.body.count("sightline_model_info{") == 4
    assert 'sightline_images_total{model="cats",outcome="predicted"} 2.0' in metrics.body


def test_every_damaged_model_is_named_before_anything_is_served(folder: Path) -> None:
    path = folder / "cats" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    (folder / "owls").mkdir()
    with pytest.raises(ModelError) as error:
        load_all(list_folder(folder))
    first, second = f"{path.parent} cannot be used", f"{folder / 'owls'} is not a model"
    assert str(error.value).find(first) < str(error.value).find(second)
    assert first in str(error.value)
    assert "\n" not in str(error.value), "which the command line would print as an escape"


def test_folders_without_models_and_names_that_clash_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "cats" / "1", folder / "birds")
    with pytest.raises(UsageError, match="are models of the same name"):
        list_folder(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="There is no model in"):
        list_folder(tmp_path / "empty")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        list_folder(tmp_path / "none")


def test_a_folder_inside_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = Path.iterdir

    def refuse(path: Path) -> Any:
        if path.name == "cats":
            raise PermissionError(13, "Permission denied", str(path))
        return iterate(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match=r"cannot be read: Permission denied: .*cats\.$"):
        list_folder(folder)
