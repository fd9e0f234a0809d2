"""Fine-tune all of EfficientNet-Lite0: our loop vs. plain PyTorch on the same arrays."""

from __future__ import annotations

from training import Task, run

if __name__ == "__main__":
    run(Task("efficientnet-lite0", 224, 3, 128, 32))
