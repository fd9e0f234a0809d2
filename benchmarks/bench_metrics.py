"""Compute all metrics with their intervals from given probabilities: the cost of the bootstrap, in images per second.

Set SIGHTLINE_CPU=1 to measure the CPU time of all threads, on a machine that is not idle.
"""

from __future__ import annotations

import os
import time
from functools import partial

from measure import compare

IMAGES = 10_000


def compute_metrics(classes: int) -> float:
    """Compute all metrics of random, mostly correct probabilities; return images per second."""
    import numpy as np

    from sightline import metrics
    from sightline.evaluation.scoring import compute_metrics

    clock = time.process_time if os.environ.get("SIGHTLINE_CPU") else time.perf_counter
    rng = np.random.default_rng(0)
    labels = (np.arange(IMAGES) % classes).astype(np.int32)
    logits = rng.normal(size=(IMAGES, classes)).astype(np.float32)
    logits[np.arange(IMAGES), labels] += 1.5
    probabilities = metrics.softmax(logits)
    started = clock()
    compute_metrics(probabilities, labels)
    return IMAGES / (clock() - started)


if __name__ == "__main__":
    compare(
        f"Metrics and intervals of {IMAGES:,} images",
        {f"{classes} classes": partial(compute_metrics, classes) for classes in (2, 10, 100)},
    )
