"""Print the validation accuracy of the Fashion-MNIST tutorial's plain Keras script on the split of a Sightline run.

`python benchmarks/tutorial_fashion.py RUN IMAGES`, where the run was trained with the recipe `fashion-cnn` on an IDX
file. Pixels are standardized by a single mean and deviation; SGD with Keras' default learning rate of 0.01, batch size
32, 10 epochs; the epoch with the lowest validation loss counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sightline import backend
from sightline.data.dataset import build_dataset
from sightline.data.indexing import build_index
from sightline.runs.directory import RunDirectory
from sightline.runs.resolve import build_preprocess

CLASSES = 10


def main(run: Path, source: str) -> float:
    """Return the validation accuracy of the best epoch."""
    config = RunDirectory.open(run).config
    data = build_dataset(build_index(source), build_preprocess(config), config.split, config.seed)
    train, validation = data.subset("train"), data.subset("validation")
    x = train.pixels[train.rows].astype("float32")
    mean, deviation = x.mean(), x.std()
    x = (x - mean) / deviation
    held_out = (validation.pixels[validation.rows].astype("float32") - mean) / deviation

    keras = backend.keras()
    keras.utils.set_random_seed(config.seed)
    layers = keras.layers
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for width in (32, 64, 128):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    for layer in (layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(CLASSES, activation="softmax")):
        model.add(layer)
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        x, train.labels, epochs=10, verbose=0, validation_data=(held_out, validation.labels),
        callbacks=[keras.callbacks.EarlyStopping(patience=5, min_delta=1e-3)],
    ).history  # fmt: skip
    return float(history["val_accuracy"][int(np.argmin(history["val_loss"]))])


if __name__ == "__main__":
    print(f"{main(Path(sys.argv[1]), sys.argv[2]):.4f}")
