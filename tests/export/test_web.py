"""A bundle in ONNX Runtime Web, in headless Chromium, on its reference examples."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from browser import NO_BROWSER, find_browser
from command import COLORS, draw_classes
from sightline import studio
from sightline.api.decoding_vectors import write_decoding_vectors
from sightline.api.training import train_run

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "web" / "index.html"
RUNTIME = Path(studio.__file__).parent / "static" / "vendor" / "onnxruntime-web"


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }
    results: queue.Queue[Any]

    def do_POST(self) -> None:
        self.results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Do not log."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the page, the runtime that the studio has, and the test vectors of a small run."""
    folder = tmp_path_factory.mktemp("site")
    image_dir = draw_classes(folder / "images", COLORS, 20)
    run = folder / "run"
    train_run(image_dir, recipe="quick", set=["model.name=cifar10-simple", "train.epochs=1"], out=run)
    vectors_dir = write_decoding_vectors(run, folder / "vectors")
    shutil.copy(PAGE, vectors_dir)
    dist = vectors_dir / "dist"
    dist.mkdir()
    for path in RUNTIME.glob("*.mjs"):
        shutil.copy(path, dist)
    for path in RUNTIME.glob("*.wasm.gz"):
        (dist / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return vectors_dir


def open_page(folder: Path, profile: Path) -> Any:
    """Open the page in headless Chromium and return what it posts."""
    browser = find_browser()
    if browser is None:
        pytest.skip(NO_BROWSER)
    Handler.results = queue.Queue()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox does not work for root
        options = ["--headless=new", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [browser, *options, *sandbox, f"http://127.0.0.1:{server.server_address[1]}/index.html"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            return Handler.results.get(timeout=120)
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()


def test_reference_examples_have_their_probabilities(site: Path, tmp_path: Path) -> None:
    report = open_page(site, tmp_path / "profile")
    assert "error" not in report, report
    examples = json.loads((site / "vectors.json").read_text())["examples"]
    assert [a["file"] for a in report["predictions"]] == [e["file"] for e in examples]
    for result in report["predictions"]:
        assert result["same_pixels"]
        assert result["difference"] < 1e-3
        assert sum(result["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_swapped_channels_are_noticed(site: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    shutil.copytree(site, swapped)
    for path in (swapped / "pixels").iterdir():
        data = bytearray(path.read_bytes())
        data[0::3], data[2::3] = data[2::3], data[0::3]
        path.write_bytes(data)
    results = open_page(swapped, tmp_path / "profile")["predictions"]
    assert not any(a["same_pixels"] for a in results)
    assert max(a["difference"] for a in results) > 1e-3
