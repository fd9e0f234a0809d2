"""Compare training loops on the same net, arrays, batch size, optimizer and epochs, by the speed of the last epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import plain_torch
from measure import Variant, compare

EPOCHS = 2  # the first compiles


@dataclass(frozen=True, slots=True)
class Task:
    """A network of the registry with `settings`, to train on `count` random images of size `side`."""

    name: str
    side: int
    channels: int
    count: int
    batch: int
    classes: int = 10
    settings: tuple[str, ...] = ()

    def arrays(self) -> tuple[Any, Any]:
        """Return uint8 images [N, side, side, C] and labels [N]; their content does not affect the speed."""
        rng = np.random.default_rng(0)
        shape = (self.count, self.side, self.side, self.channels)
        return rng.integers(0, 256, shape, np.uint8), np.arange(self.count) % self.classes


def run(task: Task) -> None:
    """Compare all training loops on a task: Keras if it has the network, PyTorch if it is installed."""
    variants: dict[str, Variant] = {
        "sightline": partial(train_with_sightline, task, "auto"),
        "sightline, float32": partial(train_with_sightline, task, "float32"),
    }
    if task.name in NETS:
        variants["Keras fit"] = partial(train_with_keras, task)
    if plain_torch.is_installed():
        for name, bfloat16 in (("PyTorch, float32", False), ("PyTorch, bfloat16", True)):
            variants[name] = partial(train_with_torch, task, bfloat16=bfloat16)
    size = f"{task.side}x{task.side}x{task.channels}"
    compare(f"Training {task.name}, {size}, batch {task.batch}, images/s of the second epoch", variants)


def train_with_sightline(task: Task, precision: str) -> float:
    """Train with Sightline's loop, with ``train.precision`` set to `precision`."""
    from dataclasses import replace

    from sightline import backend, process
    from sightline.callbacks import Callback
    from sightline.config import resolve_config
    from sightline.data.types import Subset
    from sightline.models.build import ModelSpec, build_model
    from sightline.training import precision as precisions
    from sightline.training.loop import fit

    x, y = task.arrays()
    assignments = [f"train.epochs={EPOCHS}", f"train.batch_size={task.batch}", f"model.name={task.name}"]
    config = resolve_config(assignments=[*assignments, "model.normalize=unit", *task.settings])
    backend.keras()
    backend.set_threads(process.count_cores())
    plan = ModelSpec(config.model, task.side, task.side, task.channels, task.classes)
    if precision == "auto":
        choice = precisions.choose_precision(plan, config, 1_000_000)
        precision = choice.precision
        print(f"precision {choice.precision}: {choice.reason}")
    network = build_model(replace(plan, precision=precision))
    subset = Subset(x, np.arange(len(x)), y.astype(np.int32), tuple(map(str, range(len(x)))))
    return fit(network, subset, subset.head(0), config, Callback()).history[-1].images_per_second


def train_with_keras(task: Task) -> float:
    """Train as in the tutorials: float32 arrays divided by 255, one-hot labels, `compile`, `fit`."""
    import keras

    x, y = task.arrays()
    pixels, labels = x.astype("float32") / 255, keras.utils.to_categorical(y, task.classes)
    model = NETS[task.name](task)
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    started: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: started.append(time.perf_counter()))
    model.fit(pixels, labels, batch_size=task.batch, epochs=EPOCHS, verbose=0, callbacks=[watch])
    return task.count / (time.perf_counter() - started[-1])


def train_with_torch(task: Task, *, bfloat16: bool) -> float:
    """Train with a plain PyTorch loop."""
    return plain_torch.measure_speed(task.name, *task.arrays(), task.batch, bfloat16=bfloat16, epochs=EPOCHS)


def deep(task: Task) -> Any:
    """Return the deep net of the CIFAR-10 tutorial, as in its script."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((task.side, task.side, task.channels)),
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
            layers.Dense(task.classes, activation="softmax"),
        ]
    )


def fashion(task: Task) -> Any:
    """Return the net of the Fashion-MNIST tutorial, as in its script."""
    from keras import Input, Sequential, layers

    model = Sequential([Input((task.side, task.side, task.channels))])
    for width in (32, 64, 128):
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.Conv2D(width, 3, padding="same", activation="relu"))
        model.add(layers.MaxPooling2D())
    layers_of_head = (
        layers.Flatten(),
        layers.Dense(128, activation="relu"),
        layers.Dense(task.classes, activation="softmax"),
    )
    for layer in layers_of_head:
        model.add(layer)
    return model


def application(task: Task) -> Any:
    """Return a network of `keras.applications` with average pooling and one dense layer; all layers are trainable."""
    import keras

    kind = {"vgg16": keras.applications.VGG16, "mobilenetv2": keras.applications.MobileNetV2}[task.name]
    base = kind(input_shape=(task.side, task.side, task.channels), include_top=False, weights=None, pooling="avg")
    return keras.Sequential([base, keras.layers.Dense(task.classes, activation="softmax")])


NETS = {"cifar10-deep": deep, "fashion-cnn": fashion, "vgg16": application, "mobilenetv2": application}
