"""What the server answers to hostile models and clients: in this process, over ASGI itself."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from asgi_client import exchange, make_scope
from sightline.api.classifier import Classifier
from sightline.inference.predictor import FakePredictor
from sightline.preprocessing import PreprocessingSpec
from sightline.serve.limits import Limits
from synthetic_images import encode_png

pytest.importorskip("starlette")


class NanPredictor(FakePredictor):
    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.full((len(pixels), len(self.classes)), np.nan, np.float32)


Answer = tuple[int, Any]


async def post(app: Any, chunks: AsyncIterator[bytes]) -> Answer:
    """Send a body in chunks to ``POST /predict`` and return the status and the answer."""
    answer = await exchange(app, make_scope("/predict"), chunks)
    return answer.status, answer.json


async def send_all(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def post_image(predictor: FakePredictor, body: bytes) -> Answer:
    """Send one image and return the status and the answer."""
    from sightline.serve.app import create_app

    async def run() -> Answer:
        app = create_app(Classifier(predictor), max_bytes=1 << 20)
        async with app.router.lifespan_context(app):
            return await post(app, send_all(body))

    return asyncio.run(run())


def test_an_answer_that_is_not_a_number_is_the_servers_fault_not_the_images() -> None:
    status, answer = post_image(NanPredictor(("a", "b"), PreprocessingSpec(8, 8)), encode_png())
    assert (status, answer) == (
        500,
        {"error": "There is no prediction for the image: the model's answer is not a finite number."},
    )
    status, answer = post_image(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)), encode_png())
    assert (status, answer["label"]) == (200, "a")
    status, answer = post_image(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)), b"no image")
    assert status == 400


def test_a_body_that_never_ends_is_given_up() -> None:
    from sightline.serve.app import create_app

    async def stall() -> AsyncIterator[bytes]:
        yield encode_png()[:10]
        await asyncio.Event().wait()

    async def run() -> list[Answer]:
        classifier = Classifier(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)))
        app = create_app(classifier, max_bytes=1 << 20, limits=Limits(body=0.5))
        async with app.router.lifespan_context(app):
            return [await post(app, stall()), await post(app, send_all(encode_png()))]

    (status, answer), (later, _) = asyncio.run(run())
    assert (status, answer) == (408, {"error": "The body did not arrive within 0.5 seconds."})
    assert later == 200


def test_all_bodies_together_are_limited_and_make_room_when_they_end() -> None:
    from sightline.serve.app import create_app

    image = encode_png()
    limits = Limits(body_bytes=2 * len(image) - 1)

    async def run() -> list[Answer]:
        classifier = Classifier(FakePredictor(("a", "b"), PreprocessingSpec(8, 8)))
        app = create_app(classifier, max_bytes=len(image) + 1, limits=limits)
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def pause() -> AsyncIterator[bytes]:
            yield image
            arrived.set()
            await go_on.wait()

        async with app.router.lifespan_context(app):
            first = asyncio.create_task(post(app, pause()))
            await arrived.wait()
            answers = [await post(app, send_all(image))]
            go_on.set()
            answers.append(await first)
            later = (image, image + b"xx", image, image)  # a refused body makes room as well
            return answers + [await post(app, send_all(body)) for body in later]

    answers = asyncio.run(run())
    assert [status for status, _ in answers] == [503, 200, 200, 413, 200, 200]
    assert answers[0][1] == {"error": "Too many images are waiting: try again in a moment."}


def test_a_body_in_tiny_chunks_takes_no_more_memory() -> None:
    from sightline.serve.app import create_app

    async def drip() -> AsyncIterator[bytes]:
        for i in range(1 << 17):
            yield bytes([i % 256, 1 + i % 7])  # two bytes, an object of 35

    async def run() -> tuple[Answer, int]:
        app = create_app(Classifier(FakePredictor(("a", "b"), PreprocessingSpec(8, 8))), max_bytes=1 << 20)
        async with app.router.lifespan_context(app):
            tracemalloc.start()
            answer = await post(app, drip())
            return answer, tracemalloc.get_traced_memory()[1]

    try:
        (status, _), peak = asyncio.run(run())
    finally:
        tracemalloc.stop()
    assert status == 400
    assert peak < 3 << 20  # a list of the chunks would take 6 MiB
