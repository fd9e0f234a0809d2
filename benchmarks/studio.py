"""Measure `studio` with a run of 100,000 images: the time of each page and request, and the memory of the server.

Images of 32x32 are drawn, a small network is trained on them for an epoch, and `sightline studio` serves the run. The
page's requests are sent one after another; the first page is also opened in Chromium, if it and Playwright are
installed.

    python benchmarks/studio.py            # 5 minutes on two idle cores
    python benchmarks/studio.py --quick    # 3,000 images, 1 minute, to try it
    python benchmarks/studio.py --write    # also puts the table into benchmarks/results/studio.md
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

import numpy as np
from http_load import measure_memory
from measure import REPOSITORY, describe_machine, read_commit
from numpy.typing import NDArray
from PIL import Image

from sightline.evaluation.active_learning import UNLABELED, ActiveLearner, draw_audit_order, project_features
from sightline.studio.labeling import BATCH

FULL, QUICK = 100_000, 3_000
CLASSES = 10
REPEATS = 20
IN_VIEW = 60  # images
PAGE = REPOSITORY / "benchmarks" / "results" / "studio.md"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
Result = list[float] | str  # milliseconds of calls, or a text
REQUESTS = {
    "all images, by path": "",
    "a class": "label=class-3",
    "a split and wrong predictions": "split=test&state=wrong",
    "confidence at most 0.5": "below=0.5",
    "a part of the path, which few have": "text=00099",
    "a part of the path, which most have": "text=class",
    "by confidence": "sort=confidence",
    "by disagreement": "sort=disagreement",
    "by size": "sort=size",
    "a predicted class": "predicted=class-3",
    "out-of-distribution first": "sort=ood",
}
LABELS = (500, 5_000)  # numbers of labels to train a head on
FEATURES = 1_280
PHOTOGRAPH = (4_000, 3_000)  # pixels


def draw_images(folder: Path, count: int) -> None:
    """Write `count` PNG files of 32x32, of ten classes that differ by color, in a folder for each class."""
    generator = np.random.default_rng(0)
    colors = generator.integers(40, 216, (CLASSES, 1, 1, 3))
    for label in range(CLASSES):
        (folder / f"class-{label}").mkdir(parents=True)
    for i in range(count):
        pixels = np.clip(colors[i % CLASSES] + generator.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8).squeeze()
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"class-{i % CLASSES}" / f"{i:06}.png", compress_level=1)


def draw_photographs(folder: Path) -> None:
    """Write one JPEG file of 12 megapixels for each image in view."""
    generator = np.random.default_rng(1)
    for i in range(IN_VIEW):
        label = folder / f"class-{i % 2}"
        label.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (90, 120, 3), np.uint8)
        Image.fromarray(pixels).resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(label / f"{i:03}.jpg", quality=90)


def train(images: Path, out: Path) -> None:
    """Train for one epoch: only the size of the run matters here."""
    command = [
        sys.executable,
        "-m",
        "sightline",
        "train",
        str(images),
        "--recipe",
        "quick",
        "--model",
        "cifar10-simple",
    ]
    subprocess.run([*command, "--epochs", "1", "--out", str(out)], check=True, capture_output=True)


@contextmanager
def start_studio(run: Path, patch: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the command, yield its process and its port once it serves, and end it after the block."""
    command = [sys.executable, "-m", "sightline", "studio", str(run), "--patch", str(patch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            yield process, int(address.rpartition(":")[2])
        finally:
            process.terminate()


class Client:
    """Sends requests to a studio over one connection, like its page."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        token = re.search(r'name="csrf-token" content="([^"]+)"', self.get("/").decode())
        assert token is not None
        self._headers = {"X-CSRF-Token": token[1], "Content-Type": "application/json"}

    def get(self, path: str) -> bytes:
        """Return the content at a path."""
        return self._send("GET", path)

    def post(self, path: str, values: Any) -> Any:
        """Send JSON and return the JSON of the response."""
        return json.loads(self._send("POST", path, json.dumps(values), self._headers))

    def _send(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> bytes:
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (path, response.status, content[:200])
        return content


def measure(call: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Return the milliseconds of each of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


def load_first_page(client: Client) -> None:
    """Request everything that the first page needs before it shows images, and the rows and thumbnails in view."""
    client.get("/")
    order = np.frombuffer(client.get("/order"), "<u4")
    rows = json.loads(client.get(f"/images?ids={','.join(map(str, order[:IN_VIEW]))}"))
    client.get("/state?since=0")
    for row in rows:
        client.get(f"/thumbnails/{row['sha256']}.webp")


def measure_browser(port: int) -> dict[str, Result]:
    """Return the times until Chromium shows the images in view of the page, and the number of its elements."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None or importlib.util.find_spec("playwright") is None:
        return {}
    from playwright.sync_api import sync_playwright

    condition = """() => {
      const images = [...document.querySelectorAll('.tile img')];
      return images.length > 10 && images.every((image) => image.complete && image.naturalWidth);
    }"""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})

        def open_page() -> None:
            page.goto(f"http://127.0.0.1:{port}/")
            page.wait_for_function(condition)

        def jump(key: str) -> None:
            page.keyboard.press(key)
            page.wait_for_function(condition)

        rows: dict[str, Result] = {
            "first page in Chromium, images shown": measure(open_page, 5),
            "Chromium: to the end of the list": measure(lambda: jump("End"), 1),
            "Chromium: back to its start": measure(lambda: jump("Home"), 1),
            "elements of the page": str(page.evaluate("document.querySelectorAll('*').length")),
        }
        browser.close()
    return rows


def measure_map(port: int) -> dict[str, Result]:
    """Compute the features of all images, and return the times of the map."""
    client = Client(port)
    start = time.perf_counter()
    client.post("/features", {})
    while json.loads(client.get("/features"))["status"] == "running":
        time.sleep(0.2)
    features = time.perf_counter() - start
    return {
        "features, computed once": f"{features:.0f} s",
        "map by PCA, the first time": measure(lambda: client.get("/map/points"), 1),
        "map by PCA, again": measure(lambda: client.get("/map/points")),
    }


def measure_findings(client: Client) -> dict[str, Result]:
    """Check the images, and return the times of the filters by finding, group and slice."""
    start = time.perf_counter()
    state = client.post("/check", {})
    while state["check"]["status"] == "running":
        time.sleep(0.2)
        state = json.loads(client.get("/state?since=0"))
    counts = state["counts"]
    queries = {"all groups of findings": {"sort": "group"}}
    if counts["finding"]:
        kind, count = max(counts["finding"].items(), key=lambda item: item[1])
        queries[f"a finding of {count:,} images, by group"] = {"finding": kind, "sort": "group"}
    if counts["slice"]:
        name, count = max(counts["slice"].items(), key=lambda item: item[1])
        queries[f"a slice of {count:,} images"] = {"slice": name}
    rows: dict[str, Result] = {"images checked, once": f"{time.perf_counter() - start:.0f} s"}
    for name, query in queries.items():
        rows[f"list: {name}"] = measure(partial(client.get, f"/order?{urlencode(query)}"))
    return rows


def measure_photographs(folder: Path) -> dict[str, Result]:
    """Return the times to load thumbnails of photographs for the first time, one after another."""
    draw_photographs(folder / "photographs")
    with start_studio(folder / "photographs", folder / "photographs.jsonl") as (_, port):
        client = Client(port)
        first_page = measure(lambda: load_first_page(client), 1)
        return {f"first page of {IN_VIEW} photographs of 12 megapixels, thumbnails not kept": first_page}


def measure_heads(count: int) -> dict[str, Result]:
    """Return the training times of the head of *Label* after each further 12 labels, for ten overlapping classes."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, CLASSES, count)
    centers = generator.normal(0, 0.2, (CLASSES, FEATURES)).astype(np.float32)
    features = generator.standard_normal((count, FEATURES), np.float32)
    features += centers[truth]
    order = draw_audit_order([str(i) for i in range(count)])
    learner = ActiveLearner(project_features(features), order)
    rows: dict[str, Result] = {}
    for number in LABELS:
        labels = np.full(count, UNLABELED)
        chosen = [*order[: number // 3], *np.setdiff1d(np.arange(count), order)[: number - number // 3]]
        labels[chosen] = truth[chosen]

        def answer(labels: NDArray[np.int64] = labels) -> None:
            batch = learner.choose_next(labels, BATCH)
            labels[batch] = truth[batch]
            learner.refit(labels, CLASSES)

        rows[f"head and next images after {BATCH} labels, {number:,} before"] = measure(answer, 5)
    return rows


def measure_corrections(port: int) -> dict[str, Result]:
    """Return the times of corrections, each of which writes the patch file, and of reading the map after one."""
    client = Client(port)
    clicks = iter(range(10_000))

    def correct_one() -> None:
        client.post("/corrections", {"ids": [next(clicks)], "edit": "relabel", "to": "class-1"})

    times: dict[str, Result] = {"a correction": measure(correct_one)}
    count = len(np.frombuffer(client.get("/order"), "<u4"))
    many = list(range(min(10_000, count // 2)))
    drop = partial(client.post, "/corrections", {"ids": many, "edit": "drop"})
    times[f"a correction of {len(many):,} images"] = measure(drop, 1)
    times["a correction after that"] = measure(correct_one)
    times["map after a correction"] = measure(lambda: client.get("/map/points"), 1)
    return times


def measure_studio(run: Path, folder: Path) -> dict[str, Result]:
    """Return all measurements of a run's studio: milliseconds, or a text."""
    start = time.perf_counter()
    with start_studio(run, folder / "fixes.jsonl") as (process, port):
        client = Client(port)
        rows: dict[str, Result] = {"start of the command": f"{time.perf_counter() - start:.1f} s"}
        rows["first page, thumbnails not kept"] = measure(lambda: load_first_page(client), 1)
        rows["first page"] = measure(lambda: load_first_page(client))
        for name, query in REQUESTS.items():
            rows[f"list: {name}"] = measure(partial(client.get, f"/order?{query}"))
        rows |= measure_findings(client)
        rows["memory after these"] = format_memory(process)
        rows |= measure_browser(port)
        rows |= measure_map(port)
        rows["memory with features and map"] = format_memory(process)
        rows |= measure_corrections(port)
        rows["memory at the end"] = format_memory(process)
    start = time.perf_counter()
    with start_studio(run, folder / "fixes.jsonl"):
        rows["start of the command again"] = f"{time.perf_counter() - start:.1f} s"
    return rows


def format_memory(process: subprocess.Popen[str]) -> str:
    """Return the memory of the server as text."""
    return f"{measure_memory(process) / 2**20:.0f} MB"


def format_table(rows: dict[str, Result]) -> str:
    """Return a table in Markdown."""
    lines = ["| | median | slowest |", "|---|---|---|"]
    for name, value in rows.items():
        cells = f"{value} | " if isinstance(value, str) else f"{median(value):,.0f} ms | {max(value):,.0f} ms"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def write_page(text: str) -> None:
    """Replace the table on the results page."""
    begin, end = "<!-- studio: begin -->", "<!-- studio: end -->"
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} images, to try it")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/results/studio.md")
    options = parser.parse_args()
    count = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SIGHTLINE_CACHE"] = str(folder / "cache")  # starts empty
        draw_images(folder / "images", count)
        train(folder / "images", folder / "run")
        rows = measure_studio(folder / "run", folder) | measure_photographs(folder) | measure_heads(count)
    machine = f"{datetime.now(UTC):%Y-%m-%d}, commit {read_commit()}, {describe_machine()}, {count:,} images"
    text = f"{machine}\n\n{format_table(rows)}"
    print(text)
    if options.write:
        write_page(text)


if __name__ == "__main__":
    main()
