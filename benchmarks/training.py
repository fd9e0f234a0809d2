"""One training benchmark, done our way and the tutorials' way: the same net, arrays, batch, optimizer and epochs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

COUNT, VALIDATION, BATCH, CLASSES = 5_120, 512, 128, 10
EPOCHS = 2  # the first one compiles


def arrays(channels: int) -> tuple[Any, Any]:
    """Return uint8 pictures [N, 32, 32, C] and labels [N]; what they show does not change the speed."""
    rng = np.random.default_rng(0)
    count = COUNT + VALIDATION
    return rng.integers(0, 256, (count, 32, 32, channels), np.uint8), rng.integers(0, CLASSES, count)


def ours(name: str, channels: int) -> float:
    """Train with Sightline's loop; return the second epoch's images/s, validation not counted."""
    from sightline.config import resolve
    from sightline.models.build import Plan, build
    from sightline.records import Samples
    from sightline.training.fit import fit
    from sightline.watch import Watcher

    x, y = arrays(channels)
    assignments = [f"train.epochs={EPOCHS}", f"train.batch_size={BATCH}", f"model.name={name}", "model.normalize=unit"]
    config = resolve(assignments=assignments)
    network = build(Plan(config.model, 32, 32, channels, CLASSES))
    every = Samples(x, np.arange(len(x)), y.astype(np.int32), tuple(map(str, range(len(x)))))
    train = every.first(COUNT)
    held_out = Samples(x, every.rows[COUNT:], every.labels[COUNT:], every.paths[COUNT:])
    return fit(network, train, held_out, config, Watcher()).history[-1].images_per_second


def plain(name: str, channels: int) -> float:
    """Train as the tutorials do: float32 arrays divided by 255, one-hot labels, `compile`, `fit`."""
    import keras

    x, y = arrays(channels)
    pixels, labels = x.astype("float32") / 255, keras.utils.to_categorical(y, CLASSES)
    model = NETS[name](channels)
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    started: list[float] = []
    ended: list[float] = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_: started.append(time.perf_counter()),
        on_test_begin=lambda *_: ended.append(time.perf_counter()),
    )
    held_out = (pixels[COUNT:], labels[COUNT:])
    model.fit(
        pixels[:COUNT], labels[:COUNT], batch_size=BATCH, epochs=EPOCHS, verbose=0, validation_data=held_out,
        callbacks=[watch],
    )  # fmt: skip
    return COUNT / (ended[-1] - started[-1])


def deep(channels: int) -> Any:
    """The deep net of the CIFAR-10 tutorial, as its script has it."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((32, 32, channels)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def fashion(channels: int) -> Any:
    """The net of the Fashion-MNIST tutorial, as its script has it."""
    from keras import Input, Sequential, layers

    model = Sequential([Input((32, 32, channels))])
    for width in (32, 64, 128):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    for layer in (layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(CLASSES, activation="softmax")):
        model.add(layer)
    return model


NETS = {"cifar10-deep": deep, "fashion-cnn": fashion}
