"""All figures with their intervals, of pictures judged already: what the bootstrap costs, in pictures per second.

Set SIGHTLINE_CPU=1 to count the processor's time of all threads, on a machine that does other work as well.
"""

from __future__ import annotations

import os
import time
from functools import partial

from measure import compare

PICTURES = 10_000


def figures(classes: int) -> float:
    """Compute all figures of drawn probabilities that are often right."""
    import numpy as np

    from sightline import metrics
    from sightline.evaluation.scores import scores

    clock = time.process_time if os.environ.get("SIGHTLINE_CPU") else time.perf_counter
    rng = np.random.default_rng(0)
    labels = (np.arange(PICTURES) % classes).astype(np.int32)
    logits = rng.normal(size=(PICTURES, classes)).astype(np.float32)
    logits[np.arange(PICTURES), labels] += 1.5
    probabilities = metrics.softmax(logits)
    started = clock()
    scores(probabilities, labels)
    return PICTURES / (clock() - started)


if __name__ == "__main__":
    compare(
        f"Figures and intervals of {PICTURES:,} pictures",
        {f"{classes} classes": partial(figures, classes) for classes in (2, 10, 100)},
    )
