"""Train the Fashion-MNIST net: our loop vs. plain Keras and plain PyTorch on the same arrays."""

from __future__ import annotations

from training import Task, run

if __name__ == "__main__":
    run(Task("fashion-cnn", 32, 1, 5_120, 128))
