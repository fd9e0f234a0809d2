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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.api import Classifier, load
from sightline.inference.results import Thresholds

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


@pytest.fixture(scope="module")
def served(trained: tuple[Path, Any]) -> Iterator[tuple[str, Classifier]]:
    """The address of a server in this process, and its classifier, which has thresholds."""
    from sightline.serve.app import create_app
    from sightline.serve.connections import Server
    from sightline.serve.limits import Limits

    classifier = load(trained[0])
    classifier.thresholds = Thresholds(9, coverage=0.9, conformal_quantile=0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_app(classifier, max_bytes=1 << 22, name="colors")
        server = Server(app, Limits(), 10)  # uvicorn's own resets connections whose body it has not read
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", classifier
        server.should_exit = True
        thread.join()


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
    assert results["triton"]["outputs"] == ["probabilities", "label", "decision", "ood_score", "set"]
    assert results["triton"]["error"] == "Image 0 cannot be read: not an image."


def test_the_server_is_as_its_openapi_describes(clients: Path, served: tuple[str, Classifier], tmp_path: Path) -> None:
    """Schemathesis draws requests, valid and invalid ones, and compares the answers with the description.

    No schema says which bytes are an image, so bodies that the description allows may still be refused.
    """
    options = ["--max-examples=50", "--seed=1", "--no-color", "--exclude-checks=positive_data_acceptance"]
    completed = subprocess.run(
        [clients / "schemathesis", "run", f"{served[0]}/openapi.json", *options],
        capture_output=True, text=True, check=False, cwd=tmp_path,  # it writes .schemathesis there
    )  # fmt: skip
    assert completed.returncode == 0, completed.stdout[-8000:]
