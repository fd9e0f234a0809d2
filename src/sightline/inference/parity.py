"""Compare two stored forms of a model on the same images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.errors import UsageError
from sightline.inference.predictor import Predictor
from sightline.intervals import Interval

BATCH_SIZE = 32
LATENCY_CALLS = 30
TIE_MARGIN = 1e-4  # lead of the first class over the second that float32 may reverse, as in `Tolerance`
RELATIVE_TIE_MARGIN = 1e-3  # the same relative to the first probability: less if a thousand classes have 0.001 each


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The allowed difference in probability between two forms, and the required fraction with the same top-1 class.

    Images whose first two classes are tied (see `compare_probabilities`) do not count toward that fraction.

    Raises `UsageError` for limits that no file could meet.
    """

    difference: float = 1e-4
    agreement: float = 1.0

    def __post_init__(self) -> None:
        if not self.difference >= 0:  # rejects NaN too
            raise UsageError(f"The tolerance is a difference of probabilities, at least 0, not {self.difference}.")
        if not 0 <= self.agreement <= 1:
            raise UsageError(f"The minimum agreement is a fraction of images, from 0 to 1, not {self.agreement}.")


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(),
    "float16": Tolerance(0.05, 0.98),
    "bfloat16": Tolerance(0.1, 0.97),
    "int8": Tolerance(0.5, 0.97),
}
"""How much the outputs of a file may differ from the model's.

float32 differs only in the order of additions. A float16 weight has 11 significant bits and a relative error of at most
0.02%; a bfloat16 weight has 8 bits and an error of at most 0.2%. The largest differences measured on photographs were
0.013 and 0.061, the lowest agreements 0.997 and 0.987 (benchmarks/results/export.md); a faulty file, such as one with
red and blue swapped, differs by 0.28 or more. The agreement limits allow for small validation splits, where a single
near tie is 1%. int8 also rounds activations, and may keep layers in float to meet the limits.
"""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the probabilities of a file are from those of the original model.

    Attributes:
        count: The number of images.
        max_difference: The largest difference of any probability, in [0, 1].
        mean_difference: The mean difference of all probabilities.
        top1_agreement: The fraction of images with the same most probable class, among images without a tie.
        accuracy_change: The accuracy of the file minus the accuracy of the model; None without labels.
        accuracy_interval: The 95% interval of this paired difference.
        bytes: The size of the file.
        latency_median: The median time for one image, in milliseconds; None if it was not measured.
        latency_p99: The 99th percentile of that time.
        throughput: Images per second in batches of 32; None if it was not measured.
    """

    count: int
    max_difference: float
    mean_difference: float
    top1_agreement: float
    accuracy_change: float | None = None
    accuracy_interval: Interval | None = None
    bytes: int = 0
    latency_median: float | None = None
    latency_p99: float | None = None
    throughput: float | None = None

    def is_within(self, tolerance: Tolerance) -> bool:
        """Return whether both forms agree; NaN never does."""
        return not self.list_failures(tolerance)

    def list_failures(self, tolerance: Tolerance) -> tuple[str, ...]:
        """Return why the forms do not agree: a clause for each missed limit, with both numbers."""
        failures = []
        if not self.max_difference <= tolerance.difference:
            failures.append(
                f"the largest difference in probability is {self.max_difference:.4g}, above the limit of "
                f"{tolerance.difference:g} (--tolerance)"
            )
        if not self.top1_agreement >= tolerance.agreement:
            failures.append(
                f"the top-1 agreement is {self.top1_agreement:.4g}, below the limit of {tolerance.agreement:g} "
                "(--min-agreement)"
            )
        return tuple(failures)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def compare_probabilities(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    labels: NDArray[np.int32] | None = None,
    size: int = 0,
) -> Parity:
    """Compare probabilities [N, K] of the same images; `labels` are int32 [N], if known.

    An image is tied if the two most probable classes of the first form differ by at most `TIE_MARGIN`, or by
    `RELATIVE_TIE_MARGIN` of the larger if that is less: a different order of summation may then swap them.
    """
    differences = np.abs(first.astype(np.float64) - second)
    agrees = (first.argmax(1) == second.argmax(1))[~find_ties(first)]
    change = interval = None
    if labels is not None and len(labels):
        first_correct, second_correct = first.argmax(1) == labels, second.argmax(1) == labels
        lost, won = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
        change = (won - lost) / len(labels)
        interval = intervals.paired_difference_interval(lost, won, len(labels))
    return Parity(
        len(first), float(differences.max(initial=0)), float(differences.mean()) if differences.size else 0.0,
        float(agrees.mean()) if len(agrees) else 1.0, change, interval, size,
    )  # fmt: skip


def find_ties(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Return which rows of probabilities [N, K] are tied, bool [N]; see `compare_probabilities`."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities), bool)
    second, first = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:].T
    tied: NDArray[np.bool_] = first - second <= np.minimum(TIE_MARGIN, RELATIVE_TIE_MARGIN * first)
    return tied


def measure_speed(
    predictor: Predictor, pixels: NDArray[np.uint8], calls: int = LATENCY_CALLS
) -> tuple[float, float, float]:
    """Return median and 99th percentile latency (ms, batch size 1) and throughput (images/s, batch size 32).

    `pixels` uint8 [N, H, W, C] are repeated to fill a batch; single images are timed in `calls` calls.
    """
    single_image = pixels[:1]
    image_batch = np.resize(pixels, (BATCH_SIZE, *pixels.shape[1:]))
    for batch in (single_image, image_batch):
        predictor.probabilities(batch)
    single_seconds = [time_call(predictor, single_image) for _ in range(calls)]
    batch_seconds = sorted(time_call(predictor, image_batch) for _ in range(max(calls // 10, 3)))
    return (
        float(np.median(single_seconds)) * 1e3,
        float(np.percentile(single_seconds, 99)) * 1e3,
        BATCH_SIZE / batch_seconds[len(batch_seconds) // 2],
    )


def time_call(predictor: Predictor, pixels: NDArray[np.uint8]) -> float:
    """Return the seconds that a predictor takes for uint8 pixels [N, H, W, C]."""
    started = time.perf_counter()
    predictor.probabilities(pixels)
    return time.perf_counter() - started
