"""What the server answers where the model's own answer is not a number: in this process, over ASGI itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sightline.api import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from synthetic_images import encode_png

pytest.importorskip("starlette")


class NanPredictor(FakePredictor):
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(pixels), len(self.classes)), np.nan, np.float32)


def post_image(predictor: FakePredictor, body: bytes) -> tuple[int, Any]:
    """Send one image to ``POST /predict`` and return the status and the answer."""
    from sightline.serve.app import create_app

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def exchange() -> None:
        app = create_app(Classifier(predictor), max_bytes=1 << 20)
        scope = {
            "type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": [], "scheme": "http",
            "http_version": "1.1", "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(exchange())
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_an_answer_that_is_not_a_number_is_the_servers_fault_not_the_images() -> None:
    status, answer = post_image(NanPredictor(("a", "b"), PreprocessingSpec(8, 8)), encode_png())
    assert (status, answer) == (500, {"error": "There is no prediction: the model's answer is not a finite number."})
    status, answer = post_image(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)), encode_png())
    assert (status, answer["label"]) == (200, "a")
    status, answer = post_image(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)), b"no image")
    assert status == 400
