"""Fine-tune all of VGG16: our loop vs. plain Keras and plain PyTorch on the same arrays."""

from __future__ import annotations

from training import Task, run

if __name__ == "__main__":
    run(Task("vgg16", 224, 3, 48, 8, settings=("model.pooling=average", "model.hidden_units=[]", "model.dropout=0")))
