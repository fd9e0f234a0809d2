"""Fine-tune all of MobileNetV2: our loop vs. plain Keras and plain PyTorch on the same arrays."""

from __future__ import annotations

from training import Task, run

if __name__ == "__main__":
    run(Task("mobilenetv2", 224, 3, 96, 16, settings=("model.alpha=1.0",)))
