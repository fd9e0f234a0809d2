"""Compare two stored forms of a model on the same images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import intervals
from sightline.prediction.base import Predictor, filled, suitable_batch_size
from sightline.records import Interval, Progress, Samples, no_progress

ROWS = 32
CALLS = 30  # for latency
TIE = 1e-4  # a margin of the first class over the second that float32 may reverse: that of `Tolerance`
NEAR = 1e-3  # relative to the first probability: smaller still if a thousand classes have 0.001 each


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The allowed difference in probability between two forms, and the required fraction with the same top-1 class.

    Images whose first two classes are tied (see `compare`) do not count in the latter.
    """

    difference: float = 1e-4
    agreement: float = 1.0


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences over `count` images; `top1_agreement` is over those without a tie (see `compare`).

    `accuracy_change` is the accuracy of the second form minus that of the first, None without labels;
    `accuracy_interval` is the 95% interval of this paired difference. Latencies (milliseconds at batch size 1) and
    throughput (images per second at batch size 32) are of the second form, None if not measured; `bytes` is the size of
    its file.
    """

    count: int
    greatest_difference: float
    mean_difference: float
    top1_agreement: float
    accuracy_change: float | None = None
    accuracy_interval: Interval | None = None
    bytes: int = 0
    latency_median: float | None = None
    latency_p99: float | None = None
    throughput: float | None = None

    def within(self, tolerance: Tolerance) -> bool:
        """Return whether both forms agree; NaN never does."""
        return not self.reasons(tolerance)

    def reasons(self, tolerance: Tolerance) -> tuple[str, ...]:
        """Return why the forms do not agree: a clause for each missed limit, with both numbers."""
        missed = []
        if not self.greatest_difference <= tolerance.difference:
            missed.append(
                f"the largest difference in probability is {self.greatest_difference:.4g}, above the limit of "
                f"{tolerance.difference:g} (--tolerance)"
            )
        if not self.top1_agreement >= tolerance.agreement:
            missed.append(
                f"the top-1 agreement is {self.top1_agreement:.4g}, below the limit of {tolerance.agreement:g} "
                "(--agreement)"
            )
        return tuple(missed)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def compare(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    labels: NDArray[np.int32] | None = None,
    size: int = 0,
) -> Parity:
    """Compare probabilities [N, K] of the same images; `labels` int32 [N] if known.

    An image is tied if the two most probable classes of the first form differ by at most `TIE`, or by `NEAR` of the
    larger if that is less: a different order of summation may then swap them.
    """
    gaps = np.abs(first.astype(np.float64) - second)
    same = (first.argmax(1) == second.argmax(1))[~_tied(first)]
    change = interval = None
    if labels is not None and len(labels):
        before, after = first.argmax(1) == labels, second.argmax(1) == labels
        lost, won = int((before & ~after).sum()), int((after & ~before).sum())
        change = (won - lost) / len(labels)
        interval = intervals.paired_difference(lost, won, len(labels))
    return Parity(
        len(first), float(gaps.max(initial=0)), float(gaps.mean()) if gaps.size else 0.0,
        float(same.mean()) if len(same) else 1.0, change, interval, size,
    )  # fmt: skip


def _tied(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities), bool)
    second, first = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:].T
    tied: NDArray[np.bool_] = first - second <= np.minimum(TIE, NEAR * first)
    return tied


def probabilities(
    predictor: Predictor, samples: Samples, *, task: str = "comparing", progress: Progress = no_progress
) -> NDArray[np.float32]:
    """Return the probabilities of all `samples`, float32 [N, K]."""
    return _answers(predictor, predictor.probabilities, samples, task, progress)


def logits(predictor: Predictor, samples: Samples) -> NDArray[np.float32]:
    """Return the logits of all `samples`, float32 [N, K]."""
    return _answers(predictor, lambda rows: predictor.outputs(rows).logits, samples, "", no_progress)


def _answers(
    predictor: Predictor, ask: Callable[[Any], Any], samples: Samples, task: str, progress: Progress
) -> NDArray[np.float32]:
    found, rows = [], suitable_batch_size(predictor.preprocess)
    size = min(rows, len(samples))
    for start in range(0, len(samples), rows):
        found.append(filled(ask, samples.take(slice(start, start + rows)), size))
        progress(task, min(start + rows, len(samples)), len(samples))
    return np.concatenate(found) if found else np.zeros((0, len(predictor.classes)), np.float32)


def speed(predictor: Predictor, pixels: NDArray[np.uint8], calls: int = CALLS) -> tuple[float, float, float]:
    """Return median and 99th percentile latency (ms, batch size 1), and images per second (batch size 32)."""
    one = pixels[:1]
    many = np.resize(pixels, (ROWS, *pixels.shape[1:]))
    for batch in (one, many):
        predictor.probabilities(batch)
    single = [_seconds(predictor, one) for _ in range(calls)]
    batched = sorted(_seconds(predictor, many) for _ in range(max(calls // 10, 3)))
    return float(np.median(single)) * 1e3, float(np.percentile(single, 99)) * 1e3, ROWS / batched[len(batched) // 2]


def _seconds(predictor: Predictor, pixels: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    predictor.probabilities(pixels)
    return time.perf_counter() - started
