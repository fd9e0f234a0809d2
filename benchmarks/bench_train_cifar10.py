"""Train the deep CIFAR-10 net: our loop vs. plain Keras and plain PyTorch on the same arrays."""

from __future__ import annotations

from training import Task, run

if __name__ == "__main__":
    run(Task("cifar10-deep", 32, 3, 5_120, 128))
