"""Clients and tools that others wrote, against a server on loopback: Triton's, KServe's and Schemathesis.

They need packages that contradict those of `.venv`, so they have an environment of their own, `.venv-clients`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixel_predictor import make_mask_model
from sightline.api.classifier import Classifier
from sightline.api.loading import load
from sightline.inference.predictor import FakePredictor
from sightline.inference.results import Thresholds
from sightline.preprocessing import PreprocessingSpec
from sightline.tasks.protocol import BUILT_IN
from waiting import wait_until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "tests" / "serve" / "protocol_clients.py"


@pytest.fixture(scope="module")
def clients() -> Path:
    """The folder of the programs of `.venv-clients`."""
    folder = Path(os.environ.get("SIGHTLINE_CLIENTS") or REPOSITORY / ".venv-clients") / "bin"
    if not (folder / "python").exists():
        pytest.skip("the clients are not installed: make .venv-clients/installed")
    return folder


@contextmanager
def serve(classifier: Classifier, name: str) -> Iterator[str]:
    """Start a server in this process, and yield its address."""
    from sightline.serve.app import create_app
    from sightline.serve.connections import Server
    from sightline.serve.limits import Limits

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(classifier, max_bytes=1 << 22, name=name)
        server = Server(app, Limits(), 10)  # uvicorn's own resets connections whose body it has not read
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def served(trained: tuple[Path, Any]) -> Iterator[tuple[str, Classifier]]:
    """The address of a server, and its classifier, which has thresholds."""
    classifier = load(trained[0])
    classifier.thresholds = Thresholds(9, coverage=0.9, conformal_quantile=0.5)
    with serve(classifier, "colors") as url:
        yield url, classifier


def make_model(task: str) -> Classifier:
    """Return a model of a task with all that its thresholds can decide, which takes no training."""
    if task == "segmentation":
        classifier = make_mask_model()
        classifier.thresholds = Thresholds(9, min_iou=0.5, quality=0.5)
        return classifier
    classes = ("owl", "pet/cat", "pet/dog") if task == "hierarchical" else ("low", "mid", "high")
    classifier = Classifier(FakePredictor(classes, PreprocessingSpec(4, 6)))
    classifier.task_name = task
    labels = dict.fromkeys(classes, 0.4)
    classifier.thresholds = {
        "multi_label": Thresholds(
            9, labels=labels, absent=dict.fromkeys(classes), label_target="f1", target_precision=0.9, target_fnr=0.1,
            set_threshold=0.2, ood="joint_energy", ood_limit=-100.0,
        ),
        "hierarchical": Thresholds(9, target_precision=0.9, confidence=0.92),
    }.get(task, Thresholds(9, coverage=0.9, conformal_quantile=0.5))  # fmt: skip
    return classifier


def test_clients_of_the_open_inference_protocol_get_the_answers_of_predict(
    clients: Path, served: tuple[str, Classifier], colors: Path, tmp_path: Path
) -> None:
    url, classifier = served
    paths = sorted(colors.rglob("*.png"))[::8]
    for number, path in enumerate(paths):
        shutil.copy(path, tmp_path / f"{number:02}.png")
    np.save(tmp_path / "pixels.npy", np.stack([classifier.preprocess.decode(path.read_bytes()) for path in paths]))
    completed = subprocess.run(
        [clients / "python", SCRIPT, url, "colors", tmp_path], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    results = json.loads(completed.stdout)
    labels = [prediction.label for prediction in classifier.predict(paths)]
    probabilities = classifier.predict_proba(paths)
    for client, forms in (
        ("triton", ["files", "pixels", "pixels as JSON", "gzip", "deflate", "JSON outputs"]),
        ("kserve", ["files", "files as JSON", "pixels", "pixels as JSON"]),
    ):
        assert results[client]["live"] is results[client]["ready"] is results[client]["model ready"] is True
        assert results[client]["another model ready"] is False
        for form in forms:
            answer = results[client][form]
            assert answer["label"] == labels, (client, form)
            np.testing.assert_allclose(answer["probabilities"], probabilities, rtol=0, atol=1e-6)
    assert results["triton"]["classification"] == labels
    assert results["triton"]["outputs"] == ["probabilities", "label", "decision", "ood_score", "is_ood", "set"]
    assert results["triton"]["error"] == "Image 0 cannot be read: not an image."


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_server_is_as_its_openapi_describes(clients: Path, task: str, tmp_path: Path) -> None:
    """Schemathesis draws requests, valid and invalid ones, and compares the answers with the description.

    No schema says which bytes are an image, so bodies that the description allows may still be refused.
    """
    options = ["--max-examples=20", "--seed=1", "--no-color", "--exclude-checks=positive_data_acceptance"]
    with serve(make_model(task), "drawn") as url:
        completed = subprocess.run(
            [clients / "schemathesis", "run", f"{url}/openapi.json", *options],
            capture_output=True, text=True, check=False, cwd=tmp_path,  # it writes .schemathesis there
        )  # fmt: skip
    assert completed.returncode == 0, completed.stdout[-8000:]
