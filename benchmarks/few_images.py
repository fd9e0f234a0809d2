"""The scale of features for a linear head on few images per class: accuracy on held-out images, by number of images.

`python benchmarks/few_images.py` prints the table of ``results/transfer.md`` in about ten minutes. Heads are fitted to
2 to 100 images of each class, drawn several times, on features of EfficientNet-Lite0. Their penalty is chosen on a
fifth of these images, at least one per class, and the head is then fitted to all of them, as `train --effort fast`
does. The images are in the folder ``data`` of ``SIGHTLINE_SHARED``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import compare_peers
import numpy as np
from numpy.typing import NDArray

import sightline as sl
from sightline import process
from sightline.data.types import Subset
from sightline.tasks.protocol import find_task
from sightline.training import linear_head

SETS = ("cats_vs_dogs", "flowers5", "cifar10-120")
DRAWS = {2: 20, 4: 20, 8: 12, 16: 12, 32: 8, 100: 4}  # images per class: drawings of them
SCALES: dict[str, Callable[[NDArray[np.floating]], NDArray[np.floating]]] = {
    "standard deviation": lambda std: np.where(std > 1e-3 * std.max(initial=0), std, 1.0),
    "none": np.ones_like,
    "Pareto": linear_head.find_scale,
}
TASK = find_task("single_label")


def embed(name: str, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the features of a set, divided by one number, the labels, and which images are for testing."""
    rows = list(compare_peers.list_images(name, 0, folder))
    vectors = sl.load("imagenet").embed([path for path, _, _ in rows]).vectors
    labels = np.unique([label for _, label, _ in rows], return_inverse=True)[1]
    return vectors / vectors.std(0).mean(), labels, np.array([split == "test" for *_, split in rows])


def fit_head(features: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> linear_head.LinearHead:
    """Return the head for images [N, F] of which the first `count` of each class are for validation."""
    order = np.argsort(labels, kind="stable").reshape(labels.max() + 1, -1)
    everything = Subset(features, np.arange(len(labels)), labels, ("",) * len(labels))
    validation, train = everything.select(order[:, :count].ravel()), everything.select(order[:, count:].ravel())
    penalty = linear_head.fit_linear_head(TASK, train, validation, len(order)).penalty
    return next(linear_head.iter_heads(TASK, everything, len(order), penalties=(penalty,)))


def measure_accuracies(
    features: NDArray[np.float32], labels: NDArray[np.int64], is_test: NDArray[np.bool_]
) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """Yield the accuracy on the test images for each number of images per class, by scale, for each drawing."""
    for count, draws in DRAWS.items():
        accuracies: dict[str, list[float]] = {name: [] for name in SCALES}
        for draw in range(draws):
            rng = np.random.default_rng(draw)
            pools = [np.flatnonzero((labels == label) & ~is_test) for label in range(labels.max() + 1)]
            rows = np.concatenate([rng.permutation(pool)[:count] for pool in pools])
            for name, scale in SCALES.items():
                linear_head.find_scale = scale  # type: ignore[assignment]
                head = fit_head(features[rows], labels[rows], max(1, round(count / 5)))
                right = head.compute_scores(features[is_test]).argmax(1) == labels[is_test]
                accuracies[name].append(float(right.mean()))
        yield count, accuracies


def main() -> None:
    """Print a row for each set and number of images per class."""
    print("| set | images per class | " + " | ".join(SCALES) + " | Pareto minus standard deviation |")
    print("|---|---|" + "---|" * (len(SCALES) + 1))
    with tempfile.TemporaryDirectory() as folder, process.one_blas_thread():
        for name in SETS:
            for count, accuracies in measure_accuracies(*embed(name, Path(folder))):
                gains = np.subtract(accuracies["Pareto"], accuracies["standard deviation"])
                error = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
                means = " | ".join(f"{np.mean(values):.3f}" for values in accuracies.values())
                print(f"| {name} | {count} | {means} | {gains.mean():+.3f} ± {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
