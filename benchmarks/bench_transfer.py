"""Train a head on a frozen backbone for 20 epochs: ours vs. the tutorial's script, starting from decoded images.

MobileNetV2 has its ImageNet weights; VGG16 has random ones, as its file is not available everywhere, so its accuracy is
meaningless here.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import Any

from measure import SHARED, Variant, compare

EPOCHS, BATCH, SIDE = 20, 32, 224


def load_splits() -> tuple[Any, Any, Any, Any]:
    """Return the decoded training and test splits of the cats and dogs, the class names and the dataset."""
    from sightline.config import SplitConfig
    from sightline.data.dataset import build_dataset
    from sightline.data.indexing import build_index
    from sightline.preprocessing import PreprocessingSpec

    os.environ.setdefault("KERAS_HOME", str(SHARED / "keras"))
    data = build_dataset(
        build_index(SHARED / "data" / "cats_vs_dogs"), PreprocessingSpec(SIDE, SIDE), SplitConfig(validation=0.0), 0
    )
    train, test = data.subset("train"), data.subset("test")
    return train, test, data.classes, data


def train_with_stages(name: str, settings: tuple[str, ...]) -> float:
    """Train with Sightline's stages: the frozen layers run once per image."""
    from pathlib import Path

    from sightline import backend, process
    from sightline.callbacks import Callback
    from sightline.config import resolve_config
    from sightline.models import pretrained, registry
    from sightline.models.build import ModelSpec, build_model
    from sightline.training.loop import fit

    train, test, classes, _ = load_splits()
    backend.keras()
    backend.set_threads(process.count_cores())
    assignments = [f"model.name={name}", f"train.batch_size={BATCH}", "data.cache=false", *settings]
    stage = {"train": {"stages": [{"name": "head", "unfreeze": 0, "epochs": EPOCHS, "learning_rate": 1e-3}]}}
    config = resolve_config(stage, assignments=assignments)
    start: Path | None = None
    if name == "mobilenetv2":
        start = pretrained.find_weights(registry.get_entry(name), "imagenet", 0.35, SIDE, SIDE)
    started = time.perf_counter()
    network = build_model(ModelSpec(config.model, SIDE, SIDE, 3, len(classes), weights=start))
    fitted = fit(network, train, test, config, Callback())
    seconds = time.perf_counter() - started
    print(f"{name}: test accuracy of the last epoch {fitted.history[-1].val_accuracy:.4f}", file=sys.stderr)
    return len(train) * EPOCHS / seconds


def train_with_script(name: str) -> float:
    """Train as in the tutorial: `fit` runs the whole network on every image in every epoch."""
    train, test, classes, _ = load_splits()
    import keras  # reads KERAS_HOME, which `load_splits` sets

    x, y = train.take(slice(None)), train.labels
    held_out = test.take(slice(None)), test.labels
    started = time.perf_counter()
    choices: dict[str, tuple[Any, dict[str, Any], Any]] = {
        "vgg16": (keras.applications.VGG16, {"weights": None}, keras.applications.vgg16.preprocess_input),
        "mobilenetv2": (
            keras.applications.MobileNetV2,
            {"weights": "imagenet", "alpha": 0.35},
            keras.applications.mobilenet_v2.preprocess_input,
        ),
    }
    kind, options, preprocess_input = choices[name]
    base = kind(input_shape=(SIDE, SIDE, 3), include_top=False, pooling="avg", **options)
    base.trainable = False
    inputs = keras.Input((SIDE, SIDE, 3))
    outputs = keras.layers.Dense(len(classes), activation="softmax")(base(inputs, training=False))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        preprocess_input(x.astype("float32")), y, batch_size=BATCH, epochs=EPOCHS, verbose=0,
        validation_data=(preprocess_input(held_out[0].astype("float32")), held_out[1]),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    print(f"{name}, the script: {history.history['val_accuracy'][-1]:.4f}", file=sys.stderr)
    return len(x) * EPOCHS / seconds


VARIANTS: dict[str, Variant] = {
    "sightline, MobileNetV2 0.35": partial(train_with_stages, "mobilenetv2", ("model.alpha=0.35",)),
    "the script, MobileNetV2 0.35": partial(train_with_script, "mobilenetv2"),
    "sightline, VGG16": partial(
        train_with_stages, "vgg16", ("model.pooling=average", "model.hidden_units=[]", "model.dropout=0")
    ),
    "the script, VGG16": partial(train_with_script, "vgg16"),
}

if __name__ == "__main__":
    compare(f"{EPOCHS} epochs of a head on a frozen backbone, 600 photographs at {SIDE}, images/s overall", VARIANTS)
