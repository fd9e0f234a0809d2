"""`serve` under load: throughput, latency at half load, and memory, for MobileNetV2 0.35 and EfficientNet-Lite0.

In one run, for each network: a bare ONNX Runtime loop with decoding on all cores; the answers per second that 64
clients get from `serve`, and from LitServe with the same model if it is installed; the 99th percentile at half of that
rate, with requests at regular and random intervals, next to the time of a single answer; and the memory of all
processes over many requests. Clients run on the same machine, in one process.

    python benchmarks/serve.py              # 25 minutes on two cores
    python benchmarks/serve.py --quick      # 3 minutes, to try it
    PYTHONPATH=PEERS python benchmarks/serve.py    # after `pip install --target PEERS litserve`
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import trained_run
from http_load import Address, find_port, make_request, measure_memory, run_closed, run_open, start_server
from measure import SHARED, describe_machine, read_commit

from sightline import process

RECIPES = {"MobileNetV2 0.35": "transfer-mobilenetv2", "EfficientNet-Lite0": "transfer"}
CLIENTS = 64
ROWS = 32
PEER = Path(__file__).with_name("peer_litserve.py")


@dataclass(frozen=True, slots=True)
class Size:
    """The size of each part: seconds of load, and the number of requests for measuring memory."""

    seconds: float
    requests: int
    images: int


FULL, QUICK = Size(60, 50_000, 200), Size(5, 1_000, 50)


def train(recipe: str, folder: Path) -> Path:
    """Return the bundle of a run with one epoch: only its network matters here."""
    path = folder / recipe
    command = [sys.executable, "-m", "sightline", "train", str(trained_run.IMAGES), "--recipe", recipe]
    environment = {"KERAS_HOME": str(SHARED / "keras")} | os.environ
    subprocess.run([*command, "--epochs", "1", "--out", str(path)], check=True, env=environment, capture_output=True)
    return path / "bundle"


def measure_bare_loop(bundle: Path, images: Sequence[bytes], seconds: float) -> float:
    """Return images per second: decode all in a thread per core, then run the session in batches, repeatedly."""
    import numpy as np
    import onnxruntime

    from sightline.inference import bundle as bundles

    preprocess = bundles.load(bundle)[0].manifest.preprocess
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    start, count = time.perf_counter(), 0
    with ThreadPoolExecutor(process.count_cores()) as pool:
        while time.perf_counter() - start < seconds:
            pixels = np.stack(list(pool.map(preprocess.decode, images)))
            for i in range(0, len(pixels), ROWS):
                session.run(["probabilities"], {"pixels": pixels[i : i + ROWS]})
            count += len(images)
    return count / (time.perf_counter() - start)


def start_sightline(bundle: Path, port: int) -> list[str]:
    """Return the command of `serve`."""
    return [sys.executable, "-m", "sightline", "serve", str(bundle), "--port", str(port)]


def start_litserve(bundle: Path, port: int) -> list[str]:
    """Return the command of LitServe with the same model."""
    return [sys.executable, str(PEER), str(bundle), str(port)]


def measure(address: Address, requests: Sequence[bytes], bare: float, size: Size, *, memory: bool) -> list[str]:
    """Return the cells of a row."""
    run_closed(address.port, requests, CLIENTS, seconds=size.seconds / 6)  # warms up
    single = run_closed(address.port, requests, 1, seconds=size.seconds / 4)
    full = run_closed(address.port, requests, CLIENTS, seconds=size.seconds)
    regular = run_open(address.port, requests, full.rate / 2, size.seconds, regular=True)
    random = run_open(address.port, requests, full.rate / 2, size.seconds)
    answer = median(single.latencies)
    cells = [
        f"{full.rate:.1f}", f"{full.rate / bare:.2f}", f"{1000 * answer:.1f}",
        *(f"{1000 * half.percentile(99):.1f}, {half.percentile(99) / answer:.2f}" for half in (regular, random)),
        str(single.refused + full.refused + regular.refused + random.refused),
    ]  # fmt: skip
    if not memory:
        return [*cells, ""]
    sizes = [measure_memory(address.process)]
    for _ in range(5):
        run_closed(address.port, requests, CLIENTS, count=size.requests // 5)
        sizes.append(measure_memory(address.process))
    return [*cells, ", ".join(f"{value / 2**20:.0f}" for value in sizes)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="short, to try it")
    parser.add_argument("--only", choices=list(RECIPES), help="one of the networks")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    files = itertools.islice(sorted(trained_run.IMAGES.rglob("*.jpg")), size.images)
    images = [path.read_bytes() for path in files]
    servers: dict[str, tuple[Callable[[Path, int], list[str]], str, bool]] = {
        "sightline serve": (start_sightline, "/health", False)
    }
    if importlib.util.find_spec("litserve") is not None:
        servers["LitServe"] = (start_litserve, "/health", True)
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {read_commit()}, {describe_machine()}\n")
    print(
        f"| network | | answers/s, {CLIENTS} clients | of the bare loop | single answer, ms | p99 at half load, ms, "
        f"and times the single: regular | random | refused | MB, over {size.requests:,} requests |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for network, recipe in RECIPES.items():
            if options.only not in {None, network}:
                continue
            bundle = train(recipe, Path(folder))
            bare = measure_bare_loop(bundle, images, size.seconds / 2)
            print(f"| {network} | bare loop | {bare:.1f} | 1 | | | | | |", flush=True)
            for name, (command, ready, is_form) in servers.items():
                port = find_port()
                with start_server(command(bundle, port), port, "/predict", ready) as address:
                    requests = [make_request(address.path, image, form=is_form) for image in images]
                    cells = measure(address, requests, bare, size, memory=name == "sightline serve")
                print(f"| {network} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
