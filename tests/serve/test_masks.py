"""A served model of masks: the answers of `predict --masks` as run lengths, PNG files and tensors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from asgi_client import exchange, make_scope
from pixel_predictor import CLASSES, PixelPredictor, draw_blobs, encode_blobs, make_mask_model
from sightline.api.classifier import Classifier
from sightline.errors import UsageError
from sightline.inference.logged_images import read_log
from sightline.inference.mask_colors import make_palette
from sightline.inference.masks import encode_mask, overlay_image
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec

pytest.importorskip("starlette")
FILES = [encode_blobs(30, 50), encode_blobs(64, 20, 1), encode_blobs(100, 75, 2)]
PNG = {"accept": "image/png"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        return self.headers["content-type"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.body))


def send(
    model: Classifier, *requests: tuple[str, bytes] | tuple[str, bytes, dict[str, str]], **options: Any
) -> list[Answer]:
    """Post each body to its address, one after the other, to a server of `model`, and return the answers."""
    from sightline.serve.app import create_app

    async def post(app: Any, address: str, body: bytes, headers: Mapping[str, str] = {}) -> Answer:
        path, _, query = address.partition("?")
        scope = make_scope(path, query, headers, method="POST" if body else "GET")
        return Answer(*await exchange(app, scope, body))

    async def send_all() -> list[Answer]:
        app = create_app(model, max_bytes=1 << 20, name="scenes", **options)
        async with app.router.lifespan_context(app):
            return [await post(app, *request) for request in requests]

    return asyncio.run(send_all())


def decode_runs(answer: Any) -> NDArray[np.uint8]:
    """Return the mask whose classes have these run lengths, 255 where there is none."""
    height, width = answer["masks"][0]["rle"]["size"]
    mask = np.full(height * width, 255, np.uint8)
    for one in answer["masks"]:
        assert one["rle"]["size"] == [height, width]
        position, is_inside = 0, False
        for count in one["rle"]["counts"]:
            if is_inside:
                assert (mask[position : position + count] == 255).all()
                mask[position : position + count] = one["value"]
            position, is_inside = position + count, not is_inside
        assert position == mask.size
    return mask.reshape(width, height).T


@pytest.mark.parametrize(("tile", "resize"), [(0, "crop"), (0.5, "stretch")])
def test_the_server_answers_as_predict_does(tile: float, resize: str) -> None:
    model = make_mask_model(resize=resize)
    model.tile = tile
    expected = model.predict_masks(FILES)
    body = json.dumps({"images": [base64.b64encode(file).decode() for file in FILES]}).encode()
    form = {"content-type": "application/json"}
    answers = send(model, ("/predict", body, form), *(("/predict", file) for file in FILES))
    assert [answer.status for answer in answers] == [200] * 4
    content = answers[0].json
    assert content["model"]["name"] == "scenes"
    for one, alone, prediction in zip(content["predictions"], answers[1:], expected, strict=True):
        assert prediction.mask is not None
        for answer in (one, alone.json):
            assert answer["areas"] == dict(prediction.areas)
            np.testing.assert_array_equal(decode_runs(answer), prediction.mask)
            assert [mask["label"] for mask in answer["masks"]] == list(answer["areas"])
            assert all(CLASSES[mask["value"]] == mask["label"] for mask in answer["masks"])
            assert answer["masks"][0]["color"] == "#" + bytes(make_palette(3)[answer["masks"][0]["value"]]).hex()


def test_few_whole_images_are_in_memory_for_their_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.serve import masks
    from sightline.serve.app import create_app
    from sightline.serve.batcher import Batching

    model = make_mask_model()
    model.tile = 1
    predict, current, most = masks._predict_tiles, 0, 0

    async def count_images(running: Any, pixels: NDArray[np.uint8]) -> Any:
        nonlocal current, most
        current += 1
        most = max(most, current)
        prediction = await predict(running, pixels)
        current -= 1
        return prediction

    async def send_at_once() -> list[int]:
        app = create_app(model, max_bytes=1 << 20, batching=Batching(size=1))
        async with app.router.lifespan_context(app):
            requests = [exchange(app, make_scope("/predict", "", {}, method="POST"), file) for file in 3 * FILES]
            return [status for status, *_ in await asyncio.gather(*requests)]

    monkeypatch.setattr(masks, "_predict_tiles", count_images)
    assert asyncio.run(send_at_once()) == [200] * 9
    assert most <= 2


def test_a_mask_or_its_colors_over_the_image_are_a_png_file() -> None:
    model = make_mask_model()
    mask = model.predict_masks([FILES[0]])[0].mask
    assert mask is not None
    png, overlay, other, unknown = send(
        model,
        ("/predict", FILES[0], {"accept": "text/html, image/png;q=0.9"}),
        ("/predict?overlay=true", FILES[0]),
        ("/predict", FILES[0], {"accept": "*/*"}),
        ("/predict?overlay=yes", FILES[0]),
    )
    assert (png.kind, overlay.kind, other.kind) == ("image/png", "image/png", "application/json")
    details = json.loads(png.headers["x-prediction"])
    assert png.headers["x-prediction"] == overlay.headers["x-prediction"]
    assert details == {"quality": other.json["quality"], "model": other.json["model"]}
    assert png.body == encode_mask(mask, 3)
    np.testing.assert_array_equal(np.asarray(png.image), mask)
    assert overlay.body == overlay_image(model.preprocess, FILES[0], mask, 3)
    assert (unknown.status, unknown.json["error"]) == (400, "overlay is 'yes': expected true or false.")


def test_a_heat_map_is_that_of_explain() -> None:
    model = make_mask_model()
    answers = send(model, ("/explain", FILES[0]), ("/explain?class=light", FILES[0]))
    for answer, label in zip(answers, (None, "light"), strict=True):
        (expected,) = model.explain([FILES[0]], label=label, progress=False)
        assert answer.status == 200
        for name in ("label", "method", "probability", "pixel_fraction", "region", "faithfulness"):
            assert answer.json[name] == pytest.approx(expected.to_dict()[name])
        assert 0 < answer.json["pixel_fraction"] < 1


def test_what_cannot_be_answered_is_said_in_a_sentence() -> None:
    model = make_mask_model()
    as_json = {"content-type": "application/json"}
    image = base64.b64encode(FILES[0]).decode()
    bad = base64.b64encode(b"no image").decode()
    answers = send(
        model,
        ("/predict", b"no image"),
        ("/predict", json.dumps({"images": [bad, image]}).encode(), as_json),
        ("/predict", json.dumps({"images": [image] * 65}).encode(), as_json),
        ("/predict", json.dumps({"images": [image] * 2}).encode(), as_json | PNG),
        ("/explain?class=sky", FILES[0]),
        ("/predict", b"no image", {"content-type": "application/x-www-form-urlencoded"}),
        ("/predict", b"no image", {"content-type": "application/x-www-form-urlencoded"} | PNG),
    )
    assert [answer.status for answer in answers] == [400, 200, 400, 400, 400, 400, 400]
    assert answers[0].json["error"] == "The image cannot be read: not an image."
    first, second = answers[1].json["predictions"]
    assert (first, list(second)) == ({"error": "not an image"}, ["areas", "quality", "masks"])
    assert "at most 64" in answers[2].json["error"]
    assert all("send a file with --data-binary" in answer.json["error"] for answer in answers[-2:])
    assert answers[3].json["error"] == "The request has 2 images: send one."
    assert answers[4].json["error"] == "The model has no class 'sky'. Valid names: dark, gray, light."


class BrokenPredictor(PixelPredictor):
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((*pixels.shape[:3], 3), np.nan, np.float32)


@pytest.mark.parametrize("tile", [0.0, 1.0])
def test_an_answer_that_is_not_a_number_is_the_servers_fault(tile: float) -> None:
    model = Classifier(BrokenPredictor(PreprocessingSpec(16, 24)))
    model.task_name, model.tile = "segmentation", tile
    (answer,) = send(model, ("/predict", FILES[0]))
    assert (answer.status, "not a finite number" in answer.json["error"]) == (500, True)


def test_the_open_inference_protocol_has_masks_of_the_networks_own_size() -> None:
    model = make_mask_model()
    pixels = np.stack([draw_blobs(16, 24, seed) for seed in range(3)])
    worst = min(one.quality or 0.0 for one in model.predict_masks(list(pixels)))
    model.thresholds = Thresholds(9, min_iou=0.5, quality=worst + 1e-9)
    as_pixels = {"name": "pixels", "datatype": "UINT8", "shape": [3, 16, 24, 3], "data": pixels.ravel().tolist()}
    as_files = {
        "name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(encode_blobs(16, 24)).decode()]
    }  # fmt: skip
    described, answer, file, binary, too_many = send(
        model,
        ("/v2/models/scenes", b""),
        ("/v2/models/scenes/infer", json.dumps({"inputs": [as_pixels]}).encode()),
        ("/v2/models/scenes/infer", json.dumps({"inputs": [as_files]}).encode()),
        (
            "/v2/models/scenes/infer",
            json.dumps({
                "inputs": [as_pixels], "outputs": [{"name": "mask", "parameters": {"binary_data": True}}]
            }).encode(),
        ),
        ("/v2/models/scenes/infer", json.dumps({"inputs": [as_files | {"shape": [65]}]}).encode()),
    )  # fmt: skip
    assert {"name": "mask", "datatype": "UINT8", "shape": [-1, 16, 24]} in described.json["outputs"]
    outputs = {output["name"]: output for output in answer.json["outputs"]}
    assert list(outputs) == ["probabilities", "label", "labels", "mask", "quality", "decision"]
    predicted = model.predict_masks(list(pixels))
    assert outputs["quality"]["data"] == [one.quality for one in predicted]
    assert outputs["decision"]["data"] == [one.decision for one in predicted]
    assert set(outputs["decision"]["data"]) == {"mask", "abstain"}
    masks: list[Any] = [model.predict_masks([image])[0].mask for image in pixels]
    expected = np.stack(masks)
    assert outputs["mask"]["shape"] == [3, 16, 24]
    np.testing.assert_array_equal(np.reshape(outputs["mask"]["data"], expected.shape), expected)
    np.testing.assert_allclose(
        np.reshape(outputs["probabilities"]["data"], (3, 3)), model.predict_proba(list(pixels)), rtol=1e-6
    )
    assert outputs["label"]["data"] == [one.label for one in model.predict(list(pixels))]
    (mask,) = (output for output in file.json["outputs"] if output["name"] == "mask")
    assert mask["data"] == expected[0].ravel().tolist()
    assert binary.body.endswith(expected.tobytes())
    assert (too_many.status, "at most 64" in too_many.json["error"]) == (400, True)


def test_every_address_decides_about_the_image_without_its_padding() -> None:
    model = make_mask_model(resize="pad")
    predicted = model.predict(FILES)
    padded = [model.predict([model.preprocess.decode(file)])[0] for file in FILES]
    assert all(one.quality != other.quality for one, other in zip(predicted, padded, strict=True))
    quality = sorted(one.quality or 0.0 for one in predicted)[1]
    model.thresholds = Thresholds(9, min_iou=0.5, quality=quality)
    data = [base64.b64encode(file).decode() for file in FILES]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [3], "data": data}
    masks, infer, metrics = send(
        model,
        ("/predict", json.dumps({"images": data}).encode(), {"content-type": "application/json"}),
        ("/v2/models/scenes/infer", json.dumps({"inputs": [tensor]}).encode()),
        ("/metrics", b""),
    )
    outputs = {output["name"]: output for output in infer.json["outputs"]}
    assert outputs["quality"]["data"] == [one.quality for one in predicted]
    assert outputs["label"]["data"] == [one.label for one in predicted]
    assert outputs["mask"]["shape"] == [3, 16, 24], "the mask is of all pixels"
    decisions = ["mask" if (one.quality or 0) >= quality else "abstain" for one in predicted]
    assert outputs["decision"]["data"] == decisions
    assert [one["decision"] for one in masks.json["predictions"]] == decisions
    for decision in ("mask", "abstain"):
        assert f'decision="{decision}",model="scenes"}} {2.0 * decisions.count(decision)}' in metrics.body.decode()


@pytest.mark.parametrize("is_broken", [False, True])
def test_an_image_in_tiles_is_counted_once(is_broken: bool) -> None:
    model = make_mask_model()
    model.tile, model.thresholds = 1.0, Thresholds(9, min_iou=0.5, quality=0.0)
    if is_broken:
        model.predictor = BrokenPredictor(model.preprocess)
    answer, metrics = send(model, ("/predict", FILES[2]), ("/metrics", b""))
    text = metrics.body.decode()
    assert answer.status == (500 if is_broken else 200)
    outcome = "failed" if is_broken else "predicted"
    assert f'sightline_images_total{{model="scenes",outcome="{outcome}"}} 1.0' in text
    assert text.count("sightline_images_total{") == 1
    assert ('sightline_decisions_total{decision="mask",model="scenes"} 1.0' in text) != is_broken


def test_an_image_that_is_too_large_for_tiles_is_counted_as_unreadable() -> None:
    model = make_mask_model()
    model.tile, model.predictor.preprocess = 16.0, replace(model.preprocess, max_megapixels=1)  # type: ignore[misc]
    (expected,) = model.predict_masks([FILES[2]])
    assert expected.error == "too large for tiles: 1200x1600 pixels at the scale 16, limit 1 megapixels"
    answer, metrics = send(model, ("/predict", FILES[2]), ("/metrics", b""))
    assert (answer.status, expected.error in answer.json["error"]) == (400, True)
    assert 'sightline_images_total{model="scenes",outcome="unreadable"} 1.0' in metrics.body.decode()


def test_the_description_of_the_api_names_what_masks_have() -> None:
    described, model = send(make_mask_model(), ("/openapi.json", b""), ("/model", b""))
    answers = described.json["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert set(answers) == {"application/json", "image/png"}
    queries = described.json["paths"]["/predict"]["post"]["parameters"]
    assert [query["name"] for query in queries if query["in"] == "query"] == ["overlay"]  # a mask has no `top`
    assert "/explain" in described.json["paths"]
    assert (model.json["task"], model.json["tile"]) == ("segmentation", 0)


def test_the_description_of_a_server_of_masks_and_classes_says_which_parameter_is_for_which() -> None:
    from sightline.inference.predictor import FakePredictor
    from sightline.serve.openapi import build_openapi
    from sightline.serve.served_model import ServedModel

    classifier = Classifier(FakePredictor(("dark", "light"), PreprocessingSpec(8, 8, 3)))
    served = [ServedModel(make_mask_model(), "scenes"), ServedModel(classifier, "levels")]
    for path in ("/predict", "/models/{model}/predict"):
        parameters = build_openapi(served)["paths"][path]["post"]["parameters"]
        texts = {query["name"]: query["description"] for query in parameters if query["in"] == "query"}
        assert texts["top"] == "Classes to return, up to 2. Models of masks ignore it."
        assert texts["overlay"].endswith("Models of classes ignore it.")
        (alone,) = build_openapi(served[1:])["paths"][path]["post"]["parameters"][-1:]
        assert alone["description"] == "Classes to return, up to 2."


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_what_is_logged_of_a_mask_is_what_its_answer_states(tmp_path: Path, resize: str) -> None:
    from sightline.serve.feature_logs import FeatureLogs

    model = make_mask_model(resize=resize)
    model.feature_model_id = f"blobs@{64 * '0'}"
    content = json.dumps({"images": [base64.b64encode(file).decode() for file in FILES]}).encode()
    (answer,) = send(
        model, ("/predict", content, {"content-type": "application/json"}),
        feature_logs=FeatureLogs(tmp_path / "scenes.log", 1 << 20),
    )  # fmt: skip
    (images,) = read_log(tmp_path / "scenes.log", model.feature_model_id, CLASSES, print)
    predictions = {prediction["log_id"]: prediction for prediction in answer.json["predictions"]}
    assert set(images.ids) == set(predictions)
    for image_id, quality, means in zip(images.ids, images.quality, images.probabilities, strict=True):
        assert predictions[image_id]["quality"] == pytest.approx(quality, abs=1e-6)
        assert means.sum() == pytest.approx(1, abs=1e-5)


def test_options_without_a_meaning_are_refused(tmp_path: Path) -> None:
    from sightline.serve.feature_logs import FeatureLogs
    from sightline.serve.served_model import ServedModel

    tiled = make_mask_model()
    tiled.tile = 1.0
    with pytest.raises(UsageError, match="this model predicts masks in tiles: leave --log-features out"):
        send(tiled, feature_logs=FeatureLogs(tmp_path / "log", 1000))
    whole = make_mask_model()
    whole.task_name = "single_label"
    with pytest.raises(UsageError, match="leave --tile out"):
        ServedModel.from_classifier(whole, "a", tile=1.0)
    assert ServedModel.from_classifier(make_mask_model(), "a", tile=0.5).classifier.tile == 0.5
