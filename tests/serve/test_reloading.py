"""A model that changes on disk takes the place of the old one, and no request notices more than that."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from asgi_client import Request, call, make_scope
from sightline import load
from sightline.errors import ModelError
from sightline.inference import bundle
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.serve.app import create_app
from sightline.serve.model_folder import DEFAULT_OPTIONS, LoadOptions, StoredModel, list_folder
from sightline.serve.reloading import Reloader
from sightline.serve.served_model import ServedModel
from small_bundles import make_bundle
from synthetic_images import encode_png

IMAGES = [encode_png(seed) for seed in range(4)]


class Server:
    """An application with a reloader that looks when asked, or every `seconds`."""

    def __init__(self, list_entries: Callable[[], list[StoredModel]], seconds: float = 0) -> None:
        self.reloader = Reloader(list_entries, seconds=seconds)
        self.app = create_app(self.reloader.load_all(), max_bytes=1 << 20, reloader=self.reloader)

    async def get(self, path: str) -> Any:
        answer = await call(self.app, Request(path))
        return json.loads(answer.body) if path != "/metrics" else answer.body

    async def predict(self, path: str = "/predict", image: bytes = IMAGES[0]) -> Any:
        answer = await call(self.app, Request(path, image))
        return answer.status, json.loads(answer.body)

    async def wait_for(self, *lines: str) -> None:
        """Wait until the metrics have these lines."""
        async with asyncio.timeout(60):
            while not set(lines) <= set((await self.get("/metrics")).splitlines()):  # noqa: ASYNC110  # as from outside
                await asyncio.sleep(0.01)


def serve(server: Server, use: Callable[[], Any]) -> None:
    async def run() -> None:
        async with server.app.router.lifespan_context(server.app):
            await use()

    asyncio.run(run())


def count(outcome: str, number: int, model: str = "cats") -> str:
    return f'sightline_model_reloads_total{{model="{model}",outcome="{outcome}"}} {number}.0'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    bundle.write_folder(make_bundle(1), tmp_path / "cats")
    return tmp_path / "cats"


def test_no_request_is_lost_or_gets_an_answer_of_two_models(path: Path) -> None:
    """Clients ask without a pause while the bundle is replaced six times."""
    bundles = {f"{seed}" * 64: make_bundle(seed) for seed in (1, 2)}
    expected = {
        weights: [
            OnnxPredictor(one.model, one.manifest.classes, one.manifest.preprocess).probabilities(pixels[None])[0]
            for pixels in map(one.manifest.preprocess.decode, IMAGES)
        ]
        for weights, one in bundles.items()
    }
    server, done = Server(lambda: [StoredModel(path)]), False
    answers: list[tuple[int, int, Any]] = []

    async def ask(number: int) -> None:
        while not done:
            status, content = await server.predict("/predict", IMAGES[number % len(IMAGES)])
            answers.append((number % len(IMAGES), status, content))
            await asyncio.sleep(0)  # an answer may need no wait

    async def use() -> None:
        nonlocal done
        clients = [asyncio.create_task(ask(number)) for number in range(8)]
        try:
            for turn in range(6):
                await asyncio.to_thread(bundle.write_folder, list(bundles.values())[(turn + 1) % 2], path)
                server.reloader.requested.set()
                await server.wait_for(count("loaded", turn + 1))
                start = len(answers)
                while len(answers) < start + 16:  # noqa: ASYNC110  # what clients see of it
                    await asyncio.sleep(0.001)
        finally:
            done = True
            await asyncio.gather(*clients)

    serve(server, use)
    assert {status for _, status, _ in answers} == {200}
    assert {content["model"]["weights_sha256"] for _, _, content in answers} == set(bundles)
    for image, _, content in answers:
        probabilities = expected[content["model"]["weights_sha256"]][image]
        got = {entry["label"]: entry["probability"] for entry in content["top"]}
        for label, probability in zip(("ant", "bee", "cat"), probabilities, strict=True):
            assert got[label] == pytest.approx(probability, abs=1e-6)


def test_a_request_in_flight_is_finished_by_the_model_that_it_started_with(
    path: Path, model_calls: list[tuple[int, int]]
) -> None:
    server = Server(lambda: [StoredModel(path)])
    old, new = load(path), make_bundle(2)

    async def use() -> None:
        arrived, go_on = asyncio.Event(), asyncio.Event()
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            arrived.set()
            await go_on.wait()
            return {"type": "http.request", "body": IMAGES[0], "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        request = asyncio.create_task(server.app(make_scope("/predict"), receive, send))
        await arrived.wait()
        bundle.write_folder(new, path)
        server.reloader.requested.set()
        assert not model_calls
        await server.wait_for(count("loaded", 1))
        assert model_calls, "the new model has run before its first request"
        assert (await server.predict())[1]["model"]["weights_sha256"] == new.manifest.weights_sha256
        go_on.set()
        await request
        answer = json.loads(sent[1]["body"])
        assert answer["model"]["weights_sha256"] == "1" * 64
        assert answer["probability"] == pytest.approx(old.predict(IMAGES[0])[0].probability, abs=1e-6)

    serve(server, use)


def test_a_model_that_was_replaced_is_freed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []
    load_entry = StoredModel.load

    def record(entry: StoredModel, options: LoadOptions = DEFAULT_OPTIONS) -> ServedModel:
        served = load_entry(entry, options)
        loaded.append(weakref.ref(served.classifier))
        return served

    monkeypatch.setattr(StoredModel, "load", record)
    server = Server(lambda: [StoredModel(path)])

    async def use() -> None:
        bundle.write_folder(make_bundle(2), path)
        server.reloader.requested.set()
        await server.wait_for(count("loaded", 1))
        async with asyncio.timeout(60):
            while loaded[0]() is not None:
                gc.collect()
                await asyncio.sleep(0.01)

    serve(server, use)
    assert len(loaded) == 2


def test_a_bundle_that_cannot_be_used_keeps_the_old_one_until_it_is_mended(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(lambda: [StoredModel(path)])

    async def use() -> None:
        before = await server.predict()
        bundle.write_folder(make_bundle(2), path)
        damaged = bytearray((path / "model.onnx").read_bytes())
        damaged[-100] ^= 1
        (path / "model.onnx").write_bytes(damaged)
        for turn in range(2):  # the second time, nothing has changed
            server.reloader.requested.set()
            await server.wait_for(count("failed", turn + 1))
        assert await server.predict() == before
        assert (await server.get("/health")) == {"status": "ok"}
        shutil.rmtree(path)
        server.reloader.requested.set()
        await server.wait_for(count("failed", 3))
        assert await server.predict() == before
        bundle.write_folder(make_bundle(3), path)
        server.reloader.requested.set()
        await server.wait_for(count("loaded", 1))
        assert (await server.predict())[1]["model"]["weights_sha256"] == "3" * 64

    with caplog.at_level(logging.INFO, "sightline.serve"):
        serve(server, use)
    failures = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 3
    assert f"The model {path} cannot be used: " in failures[0] == failures[1]
    assert "There is no model" in failures[2]
    assert all(message.endswith("The server keeps the one that it has.") for message in failures)


def test_a_failure_that_passes_is_tried_again_although_no_file_changes(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less and less often, and it is logged once."""
    server, attempts = Server(lambda: [StoredModel(path)], seconds=0.02), list[float]()
    load_entry = StoredModel.load

    def fail(entry: StoredModel, options: LoadOptions = DEFAULT_OPTIONS) -> ServedModel:
        attempts.append(time.monotonic())
        if len(attempts) < 5:
            raise ModelError(f"The model {entry.path} cannot be used: Permission denied.")
        return load_entry(entry, options)

    monkeypatch.setattr(StoredModel, "load", fail)

    async def use() -> None:
        bundle.write_folder(make_bundle(2), path)
        await server.wait_for(count("loaded", 1), count("failed", 4))
        assert (await server.predict())[1]["model"]["weights_sha256"] == "2" * 64

    with caplog.at_level(logging.ERROR, "sightline.serve"):
        serve(server, use)
    waits = [after - before for before, after in itertools.pairwise(attempts)]
    assert [wait >= 0.02 * 2**i for i, wait in enumerate(waits)] == [True] * 4
    assert [record.message for record in caplog.records] == [
        f"The model {path} cannot be used: Permission denied. The server keeps the one that it has."
    ]


def test_files_that_cannot_be_listed_are_a_failure_of_their_model(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link to a name that is too long stands for a folder without permission, which stops nobody who is root."""
    folder = path.parent / "models"
    bundle.write_folder(make_bundle(1), folder / "cats")
    bundle.write_folder(make_bundle(3), folder / "birds")
    entries = list_folder(folder)
    server = Server(lambda: entries)

    async def use() -> None:
        shutil.rmtree(folder / "cats")
        (folder / "cats").symlink_to("x" * 300)
        bundle.write_folder(make_bundle(2), folder / "birds")
        server.reloader.requested.set()
        await server.wait_for(count("failed", 1), count("loaded", 1, "birds"))
        assert (await server.predict("/models/cats/predict"))[0] == 200
        (folder / "cats").unlink()
        bundle.write_folder(make_bundle(4), folder / "cats")
        server.reloader.requested.set()
        await server.wait_for(count("loaded", 1))

    with caplog.at_level(logging.ERROR, "sightline.serve"):
        serve(server, use)
    (record,) = caplog.records
    assert record.exc_info is None
    assert record.message.endswith("The server keeps the one that it has.")


def test_a_model_that_still_answers_when_the_server_closes_is_stopped(path: Path) -> None:
    server = Server(lambda: [StoredModel(path)])
    threads: list[threading.Thread] = []
    requests: list[asyncio.Task[Any]] = []  # keeps the request waiting

    async def use() -> None:
        arrived = asyncio.Event()

        async def receive() -> dict[str, Any]:
            arrived.set()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            raise AssertionError(message)

        await server.predict()  # starts the thread of the model
        threads.extend(thread for thread in threading.enumerate() if thread.name.startswith("model"))
        request = asyncio.create_task(server.app(make_scope("/predict"), receive, send))
        await arrived.wait()
        bundle.write_folder(make_bundle(2), path)
        server.reloader.requested.set()
        await server.wait_for(count("loaded", 1))
        requests.append(request)

    serve(server, use)
    assert len(threads) == 1
    threads[0].join(20)
    assert not threads[0].is_alive()


def test_a_model_that_is_being_loaded_does_not_keep_the_server_from_closing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(lambda: [StoredModel(path)])
    is_loading, may_end = threading.Event(), threading.Event()

    def load(_entry: StoredModel, _options: LoadOptions) -> ServedModel:
        is_loading.set()
        may_end.wait(20)
        raise ModelError("The server is closed.")

    monkeypatch.setattr(StoredModel, "load", load)

    async def use() -> None:
        bundle.write_folder(make_bundle(2), path)
        server.reloader.requested.set()
        assert await asyncio.to_thread(is_loading.wait, 20)

    started = time.monotonic()
    serve(server, use)
    assert time.monotonic() - started < 15
    may_end.set()


def test_a_folder_gains_and_loses_versions_and_models(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = path.parent / "models"
    bundle.write_folder(make_bundle(1), folder / "cats" / "1")
    server = Server(lambda: list_folder(folder))

    async def use() -> None:
        bundle.write_folder(make_bundle(2), folder / "cats" / "2")
        bundle.write(make_bundle(5), folder / "birds.zip")
        (folder / "cats" / "3").mkdir()  # not a model, or not yet
        server.reloader.requested.set()
        await server.wait_for(count("loaded", 1), count("loaded", 1, "birds"), count("failed", 1))
        assert [(m["name"], m["version"]) for m in (await server.get("/models"))["models"]] == [
            ("birds", "5" * 12), ("cats", "1"), ("cats", "2")
        ]  # fmt: skip
        assert (await server.predict("/models/cats/predict"))[1]["model"]["version"] == "2"
        shutil.rmtree(folder / "cats" / "2")
        shutil.rmtree(folder / "cats" / "3")
        (folder / "birds.zip").unlink()
        server.reloader.requested.set()
        await server.wait_for(count("removed", 1), count("removed", 1, "birds"))
        assert (await server.predict())[1]["model"]["version"] == "1"
        assert 'version="2"' not in await server.get("/metrics")
        shutil.rmtree(folder / "cats")
        server.reloader.requested.set()
        await server.wait_for(count("failed", 1, ""))
        assert (await server.predict())[0] == 200

    serve(server, use)
    assert f"There is no model in {folder}" in caplog.text


def test_files_are_read_when_they_have_stopped_changing(path: Path) -> None:
    """Looks that are not asked for wait for a copy that is still being written."""
    looks, is_written = 0, True
    answers: list[str] = []

    def look() -> list[StoredModel]:
        nonlocal looks
        looks += 1
        if is_written:
            (path / "notes.txt").write_bytes(bytes(looks))
        return [StoredModel(path)]

    server = Server(look, seconds=0.02)

    async def use() -> None:
        nonlocal is_written
        async with asyncio.timeout(60):
            while looks < 10:  # noqa: ASYNC110  # what is seen of it from outside
                await asyncio.sleep(0.01)
        answers.append(await server.get("/metrics"))
        is_written = False
        await server.wait_for(count("loaded", 1))

    serve(server, use)
    assert {count(outcome, 0) for outcome in ("loaded", "failed", "removed")} <= set(answers[0].splitlines())
