"""Training the Fashion-MNIST net: our loop beside the tutorial's plain Keras script, on the same arrays."""

from __future__ import annotations

from measure import compare

import training

if __name__ == "__main__":
    compare(
        "Training fashion-cnn, 32x32x1, batch 128, float32, no augmentation, images/s of the second epoch",
        {"sightline": lambda: training.ours("fashion-cnn", 1), "keras fit": lambda: training.plain("fashion-cnn", 1)},
    )
