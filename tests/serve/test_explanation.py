"""Heat maps over HTTP: those of `explain`, computed in the thread of the model, and given up when nobody waits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import networks
from asgi_client import exchange, make_scope
from sightline.api.classifier import Classifier
from sightline.export.keras_to_onnx import convert_model
from sightline.inference.predictor import FakePredictor, Outputs, Predictor
from sightline.inference.results import Thresholds
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.preprocessing import PreprocessingSpec

pytest.importorskip("starlette")
from sightline.serve.uploads import CURL_ADVICE, URL_ENCODED

Answer = tuple[int, Any]


class LeftPredictor(FakePredictor):
    """Sees "light" where the left half of an image is light; `threads` are those that it ran in."""

    def __init__(self, preprocess: PreprocessingSpec) -> None:
        super().__init__(("dark", "light"), preprocess)
        self.threads: set[str] = set()
        self.gate, self.called, self.calls = threading.Event(), threading.Event(), 0
        self.gate.set()

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        self.threads.add(threading.current_thread().name.partition("_")[0])
        self.calls += 1
        self.called.set()
        self.gate.wait(20)
        light = pixels[:, :, : pixels.shape[2] // 2].mean((1, 2, 3), dtype=np.float32) / 255
        probabilities = np.stack([1 - light, light], 1)
        return Outputs(probabilities, np.log(probabilities + 1e-3), probabilities)

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.outputs(pixels).probabilities


def encode(width: int = 60, height: int = 40) -> bytes:
    """Return a gray image with a light square on its left."""
    pixels = np.full((height, width, 3), 60, np.uint8)
    pixels[10:24, 8:22] = 230
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def run(predictor: Predictor, use: Callable[[Any], Awaitable[Any]], thresholds: Thresholds | None = None) -> Any:
    from sightline.serve.app import create_app

    async def run_app() -> Any:
        classifier = Classifier(predictor)
        classifier.thresholds = thresholds
        app = create_app(classifier, max_bytes=1 << 20, name="shades")
        async with app.router.lifespan_context(app):
            return await use(app)

    return asyncio.run(run_app())


def make_onnx_predictor() -> OnnxPredictor:
    network = networks.build_network("fast-small").model
    _, height, width, _ = network.input.shape
    return OnnxPredictor(convert_model(network), ("a", "b", "c"), PreprocessingSpec(height, width, resize="stretch"))


async def post(
    app: Any, body: bytes | AsyncIterator[bytes], query: str = "", kind: str = "image/png", path: str = "/explain"
) -> Answer:
    answer = await exchange(app, make_scope(path, query, {"content-type": kind}), body)
    return answer.status, answer.json


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_the_heat_map_is_that_of_explain(resize: Any) -> None:
    predictor = LeftPredictor(PreprocessingSpec(24, 24, resize=resize))
    (expected,) = Classifier(predictor).explain(encode(), label="light")
    assert expected.region is not None
    predictor.threads.clear()
    status, answer = run(predictor, lambda app: post(app, encode(), "class=light"))
    assert status == 200
    fields = expected.to_dict()
    del fields["path"], fields["figure"]
    assert {name: answer[name] for name in fields} == fields
    assert answer["method"] == "occlusion"
    assert answer["image_size"] == [60, 40]
    assert answer["model"]["name"] == "shades"
    box, (left, top, right, bottom) = predictor.preprocess.compute_placement(60, 40)
    assert answer["box"] == list(box)
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["heat_map"]))))
    assert expected.heat is not None
    np.testing.assert_array_equal(heat, np.rint(255 * expected.heat[int(top) : int(bottom), int(left) : int(right)]))
    assert predictor.threads == {"model"}


@pytest.mark.parametrize(
    ("query", "method"), [("", "gradcam"), ("method=gradcam%2B%2B", "gradcam++"), ("method=occlusion", "occlusion")]
)
def test_a_file_with_one_dense_layer_behind_pooling_has_grad_cam(query: str, method: Any) -> None:
    predictor = make_onnx_predictor()
    (expected,) = Classifier(predictor).explain(encode(), method=method)
    status, answer = run(predictor, lambda app: post(app, encode(), query))
    assert (status, answer["method"], answer["label"]) == (200, method, expected.label)
    assert answer["region"] == expected.to_dict()["region"]
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["heat_map"]))))
    assert expected.heat is not None
    np.testing.assert_array_equal(heat, np.rint(255 * expected.heat))


def test_an_image_without_evidence_has_no_region() -> None:
    status, answer = run(FakePredictor(("dark", "light"), PreprocessingSpec(24, 24)), lambda app: post(app, encode()))
    assert status == 200
    assert (answer["label"], answer["region"], answer["faithfulness"]) == ("dark", None, None)


def test_the_class_is_by_default_that_of_predict() -> None:
    """The threshold of a positive class may predict it although the other class is more probable."""

    async def use(app: Any) -> list[Answer]:
        return [await post(app, encode(), path=path) for path in ("/predict", "/explain")]

    thresholds = Thresholds(9, rate="sensitivity", target_rate=0.9, positive="light", positive_threshold=0.1)
    (_, prediction), (status, answer) = run(LeftPredictor(PreprocessingSpec(24, 24)), use, thresholds)
    assert prediction["label"] == "light"
    assert (status, answer["label"], answer["probability"]) == (200, "light", prediction["probability"])
    assert answer["probability"] < 0.5


@pytest.mark.parametrize(
    ("body", "kind", "query", "words"),
    [
        (encode(), "image/png", "class=lihgt", "The model has no class 'lihgt'. Did you mean 'light'?"),
        (
            encode(),
            "image/png",
            "method=rise",
            "There is no method 'rise' here: choose gradcam, gradcam++ or occlusion.",
        ),
        (
            encode(),
            "image/png",
            "method=gradcam",
            "The method gradcam needs a model whose head is one dense layer behind pooling: use method=occlusion.",
        ),
        (b"no image", "image/png", "", "The image cannot be read: not an image."),
        (b"no image", URL_ENCODED, "", f"The image cannot be read: not an image.{CURL_ADVICE}"),
        (b'{"images": ["AAAA", "AAAA"]}', "application/json", "", "The request has 2 images: send one."),
    ],
)
def test_what_has_no_heat_map_is_explained(body: bytes, kind: str, query: str, words: str) -> None:
    predictor = LeftPredictor(PreprocessingSpec(8, 8))
    status, answer = run(predictor, lambda app: post(app, body, query, kind))
    assert (status, answer) == (400, {"error": words})


def test_of_many_classes_the_nearest_is_not_looked_for() -> None:
    predictor = FakePredictor(tuple(f"class {number}" for number in range(1000)), PreprocessingSpec(8, 8))
    status, answer = run(predictor, lambda app: post(app, encode(), "class=class+x"))
    assert (status, answer) == (400, {"error": "The model has no class 'class x'. GET /model lists them."})


def test_predictions_are_made_between_the_batches_of_a_heat_map_which_ends_with_its_request() -> None:
    predictor = LeftPredictor(PreprocessingSpec(8, 8))

    async def use(app: Any) -> None:
        predictor.gate.clear()
        task = asyncio.create_task(post(app, encode()))
        await asyncio.to_thread(predictor.called.wait, 20)
        prediction = asyncio.create_task(post(app, encode(), path="/predict"))
        await asyncio.sleep(0.2)  # it is decoded and waits for the model
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        predictor.gate.set()
        assert (await prediction)[0] == 200
        calls = predictor.calls
        await asyncio.sleep(0.2)
        assert predictor.calls == calls <= 3  # of about twenty

    run(predictor, use)


def test_more_heat_maps_than_may_wait_are_refused() -> None:
    from sightline.serve.explanation import MAX_WAITING

    predictor = LeftPredictor(PreprocessingSpec(8, 8))

    async def use(app: Any) -> list[Answer]:
        predictor.gate.clear()
        tasks = [asyncio.create_task(post(app, encode())) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        refused = await post(app, encode())
        predictor.gate.set()
        return [refused, *[await task for task in tasks], await post(app, encode())]

    assert [status for status, _ in run(predictor, use)] == [503, *[200] * (MAX_WAITING + 1)]


def test_clients_that_have_not_sent_their_images_take_no_turn() -> None:
    from sightline.serve.explanation import MAX_WAITING

    predictor = LeftPredictor(PreprocessingSpec(8, 8))

    async def stall() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def use(app: Any) -> Answer:
        slow = [asyncio.create_task(post(app, stall())) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        answer = await post(app, encode())
        for task in slow:
            task.cancel()
        return answer

    assert run(predictor, use)[0] == 200
