"""Training the deep CIFAR-10 net: our loop beside the tutorial's plain Keras script, on the same arrays."""

from __future__ import annotations

from measure import compare

import training

if __name__ == "__main__":
    compare(
        "Training cifar10-deep, 32x32x3, batch 128, float32, no augmentation, images/s of the second epoch",
        {"sightline": lambda: training.ours("cifar10-deep", 3), "keras fit": lambda: training.plain("cifar10-deep", 3)},
    )
