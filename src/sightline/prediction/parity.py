"""How far one stored form of a model is from another: the same pictures through both."""

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
CALLS = 30  # for the latencies
TIE = 1e-4  # a lead of the first class over the second that float32 may turn round: its tolerance, see `Tolerance`
NEAR = 1e-3  # of the first class's probability: less still, where a thousand classes have a thousandth each


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What two forms of a model may differ by: probability, and the fraction of images with the same first class.

    Images whose first two classes are tied (see `compare`) do not count in the latter.
    """

    difference: float = 1e-4
    agreement: float = 1.0


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences over `count` images, `top1_agreement` over those without a tie (see `compare`).

    `accuracy_change` is the second form's less the first's, None without labels; `accuracy_interval` is 95%, of the
    paired difference. Latencies in milliseconds at batch 1, throughput in images a second at batch 32, both of the
    second form, None where they were not taken; `bytes` is the size of its file.
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
        """Whether both forms agree; NaN does not."""
        return not self.reasons(tolerance)

    def reasons(self, tolerance: Tolerance) -> tuple[str, ...]:
        """Return why the forms do not agree: a clause for each limit that is missed, with both numbers."""
        missed = []
        if not self.greatest_difference <= tolerance.difference:
            missed.append(
                f"the greatest difference of a probability is {self.greatest_difference:.4g}, above the limit of "
                f"{tolerance.difference:g} (--tolerance)"
            )
        if not self.top1_agreement >= tolerance.agreement:
            missed.append(
                f"the top-1 agreement is {self.top1_agreement:.4g}, below the limit of {tolerance.agreement:g} "
                "(--agreement)"
            )
        return tuple(missed)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def compare(
    first: NDArray[np.floating[Any]],
    second: NDArray[np.floating[Any]],
    labels: NDArray[np.int32] | None = None,
    size: int = 0,
) -> Parity:
    """Compare probabilities [N, K] of the same images; `labels` int32 [N] where they are known.

    An image is tied where the first form's two most probable classes are no further apart than `TIE`, or than `NEAR`
    of the greater where that is less: adding up in another order may then change which comes first.
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
    """Return float32 [N, K] of all `samples`."""
    return _answers(predictor, predictor.probabilities, samples, task, progress)


def logits(predictor: Predictor, samples: Samples) -> NDArray[np.float32]:
    """Return float32 [N, K] of all `samples`."""
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
    """Return the median and the 99th percentile of milliseconds at batch 1, and pictures a second at batch 32."""
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
