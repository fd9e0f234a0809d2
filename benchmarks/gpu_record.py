"""Train the network of the CIFAR-10 speed record on one GPU: accuracy and seconds of training over several seeds.

    python benchmarks/gpu.py --record             five seeds on the whole of CIFAR-10, in bfloat16
    python benchmarks/gpu.py --record --tiny      the same with a few random images on the CPU, to try it

Each run is ``sightline train cifar10 --recipe airbench`` with the record's 8 epochs, on all 50,000 training images, on
JAX. "training" is the time of the steps of all epochs, counting the first epoch as the median of the others; its excess
is "compilation". The accuracy with six views of each test image (``--tta flip-shift``) is stated separately from that
without them. Without a GPU, the cells stay empty.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import measure
import numpy as np
from gpu import find_gpu

if TYPE_CHECKING:
    import sightline

EPOCHS = 8
SEEDS = range(5)
SETTINGS = ("split.validation=0", "device.backend=jax", "train.track=[]")
TINY = ("model.alpha=0.1", "bundle.num_reference_examples=1")
COLUMNS = ("test accuracy", "with six views", "training, s", "compilation, s")


@dataclass(frozen=True, slots=True)
class RecordRun:
    """Accuracies on the test split in [0, 1], without and with six views of each image, and times in seconds."""

    accuracy: float
    accuracy_of_views: float
    training: float
    compilation: float


def split_seconds(seconds: list[float]) -> tuple[float, float]:
    """Return the seconds of training and of compilation, from the seconds of the steps in each epoch.

    >>> split_seconds([30.0, 0.25, 0.5, 0.25])
    (1.25, 29.75)
    """
    usual = statistics.median(seconds[1:])
    compilation = max(seconds[0] - usual, 0.0)
    return sum(seconds) - compilation, compilation


def train_record(data: sightline.Dataset | list[str], seed: int, folder: Path, *settings: str) -> RecordRun:
    """Train on `data`, which has a test split, in the new `folder`."""
    import sightline

    run = sightline.train(
        data, recipe="airbench", epochs=EPOCHS, seed=seed, set=[*SETTINGS, *settings], out=folder, progress=False
    )
    training, compilation = split_seconds([record.seconds for record in run.history])
    assert run.test is not None
    views = run.classifier.evaluate(tta="flip-shift", progress=False)
    assert run.test.accuracy is not None
    assert views.accuracy is not None
    return RecordRun(run.test.accuracy, views.accuracy, training, compilation)


def load_data(*, tiny: bool) -> sightline.Dataset | list[str]:
    """Return CIFAR-10, or a few random images of its size for a test."""
    import sightline

    if not tiny:
        folder = measure.SHARED / "data" / "cifar10"
        return [str(folder / f"{name}.zip") for name in ("train-1", "train-2", "test")]
    random, labels = np.random.default_rng(0), [str(number % 4) for number in range(48)]
    train, test = (random.integers(0, 256, (48, 32, 32, 3), np.uint8) for _ in range(2))
    from_arrays = sightline.Dataset.from_arrays
    return from_arrays(train, labels, split="train") + from_arrays(test, labels, split="test")


def print_table(gpu: str, runs: list[RecordRun]) -> None:
    """Print a row for each of `runs` and their mean; without runs, print empty rows."""
    print(f"airbench, {EPOCHS} epochs in batches of 2,000. {gpu}; {measure.describe_machine()}")
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {measure.read_commit()}\n")
    print(f"| seed | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    rows = [astuple(run) for run in runs]
    for seed in SEEDS:
        print(_format_row(str(seed), rows[seed] if seed < len(rows) else None))
    print(_format_row("mean", tuple(map(statistics.mean, zip(*rows, strict=True))) if rows else None))


def _format_row(name: str, values: tuple[float, ...] | None) -> str:
    cells = [""] * len(COLUMNS) if values is None else [f"{value:.4f}" for value in values[:2]]
    cells += [] if values is None else [f"{value:.2f}" for value in values[2:]]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Train with every seed and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a few random images, without a GPU too")
    options = parser.parse_args()
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    gpu, runs = "" if options.tiny else find_gpu(), []
    if gpu or options.tiny:
        data = load_data(tiny=options.tiny)
        with tempfile.TemporaryDirectory() as folder:
            settings = TINY if options.tiny else ()
            runs = [train_record(data, seed, Path(folder, str(seed)), *settings) for seed in SEEDS]
    print_table(gpu or ("the CPU, tiny: no speeds of a GPU" if options.tiny else "no GPU: the cells stay empty"), runs)


if __name__ == "__main__":
    main()
