"""Build a model from the registry: uint8 images in; probabilities, logits and features out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import backend
from sightline.config import ModelConfig
from sightline.errors import ModelError, UsageError
from sightline.models import registry, weights
from sightline.models.initial import initialize, is_kernel
from sightline.models.kernels import quicken
from sightline.models.registry import Entry, Head, Normalize
from sightline.models.scopes import no_values, own_names
from sightline.randomness import derive

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow converts color to grayscale


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that determines a model's graph and initial weights.

    `standard` is (mean, standard deviation) of the training pixels in [0, 255], for ``normalize="standardize"``.
    `weights` is the file to load pretrained weights from, None for random weights.
    """

    config: ModelConfig
    height: int
    width: int
    channels: int
    classes: int
    seed: int = 0
    precision: str = "float32"
    l2: float = 0.0
    standard: tuple[float, float] | None = None
    weights: Path | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """A built model and the names of its backbone layers.

    `model` maps uint8 [N, H, W, C] to ``{"probabilities": [N, K], "logits": [N, K], "features": [N, F]}`` in float32.
    `backbone` lists the names of the layers before the head, in order. `pretrained` is true if their weights come from
    a file, `top` if the head's weights do too (the file includes the top, for as many classes and the same image size).
    """

    model: Any
    backbone: tuple[str, ...]
    pretrained: bool
    top: bool = False

    @property
    def logits(self) -> Any:
        """The symbolic logits, float32 [N, K]."""
        return self.model.output["logits"]


def build(plan: Plan) -> Network:
    """Build the model that `plan` specifies, with random or pretrained weights.

    Raises `UsageError` for settings that the model does not support, `ModelError` for weights that do not fit.
    """
    entry = registry.find(plan.config.name)
    model, names = _graph(plan, entry)
    backbone = [model.get_layer(name) for name in names]
    init = entry.init if plan.config.init == "auto" else plan.config.init
    if init != "auto":
        ones = entry.ones if plan.config.init == "auto" else ()
        initialize(model, init, derive(plan.seed, "weights"), skip=names if plan.weights else (), ones=ones)
    top = False
    if plan.weights is not None:
        head = [layer for layer in model.layers[model.layers.index(backbone[-1]) :] if layer.name not in names]
        top = weights.load(backbone, head, plan.weights, entry)
    if plan.l2:
        _penalize(model, plan.l2)
    quicken(model)
    _seed_dropout(model)
    return Network(model, names, plan.weights is not None, top)


def outline(plan: Plan) -> Network:
    """Build the graph only: layers, shapes and parameter counts without values; it takes no memory and cannot run."""
    entry = registry.find(plan.config.name)
    with no_values():
        return Network(*_graph(plan, entry), plan.weights is not None)


def _graph(plan: Plan, entry: Entry) -> tuple[Any, tuple[str, ...]]:
    """Return the model with seeded random weights, and the names of its backbone layers."""
    keras = backend.keras()
    _check(plan, entry)
    keras.utils.set_random_seed(derive(plan.seed, "weights") % 2**32)  # seeds the initializers of Keras
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(plan.precision)
    try:
        with own_names():
            inputs = keras.Input((plan.height, plan.width, plan.channels), dtype="uint8", name="pixels")
            x = inputs
            if plan.channels == 1 and plan.weights is not None:  # before normalization, which differs by channel
                x = keras.layers.Concatenate(name="grey_to_colour")([x, x, x])
            x = start = normalized(x, _scheme(plan, entry), plan.standard)
            x = _body(x, entry, plan.config)
            names = tuple(layer.name for layer in keras.Model(start, x).layers[1:])
            outputs = _head(x, plan, _head_of(plan.config, entry))
            return keras.Model(inputs, outputs, name=entry.name.replace("-", "_")), names
    finally:
        keras.config.set_dtype_policy(policy)


def _check(plan: Plan, entry: Entry) -> None:
    smallest = entry.smallest
    if min(plan.height, plan.width) < smallest:
        raise UsageError(
            f"{entry.name} needs images of at least {smallest}x{smallest} pixels, got {plan.height}x{plan.width}: "
            f"set picture.height={smallest} or more."
        )
    if plan.config.head == "sigmoid" and plan.classes != 2:
        raise UsageError(f"model.head=sigmoid needs exactly two classes, got {plan.classes}: use model.head=softmax.")
    if plan.config.alpha is not None and entry.alpha is None:
        raise UsageError(f"{entry.name} has no width multiplier: leave model.alpha unset.")
    if plan.config.groups is not None and entry.groups is None:
        raise UsageError(f"{entry.name} has no groups: leave model.groups unset.")


def _scheme(plan: Plan, entry: Entry) -> Normalize:
    return entry.normalize if plan.config.normalize == "auto" else plan.config.normalize


def normalized(pixels: Any, scheme: Normalize, standard: tuple[float, float] | None) -> Any:
    """Normalize symbolic uint8 `pixels` to float32 under `scheme`; channel order and scaling are part of the graph."""
    keras = backend.keras()
    channels = pixels.shape[-1]
    scale: float | list[float] = 1.0
    offset: float | list[float] = 0.0
    if scheme == "caffe" and channels == 3:
        pixels = keras.ops.flip(pixels, axis=-1)
    if scheme == "unit":
        scale = 1 / 255
    elif scheme == "symmetric":
        scale, offset = 1 / 127.5, -1.0
    elif scheme == "imagenet":
        scale = [1 / (255 * s) for s in _channels(IMAGENET_STD, channels)]
        offset = [
            -m / s for m, s in zip(_channels(IMAGENET_MEAN, channels), _channels(IMAGENET_STD, channels), strict=True)
        ]
    elif scheme == "caffe":
        offset = [-m for m in (CAFFE_MEAN if channels == 3 else _channels(CAFFE_MEAN[::-1], channels))]
    elif scheme == "standardize":
        if standard is None:
            raise ModelError("normalize=standardize needs the mean and standard deviation of the training pixels.")
        mean, deviation = standard
        scale, offset = 1 / max(deviation, 1e-6), -mean / max(deviation, 1e-6)
    return keras.layers.Rescaling(scale, offset, name="normalize", dtype="float32")(pixels)


def _channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """Return an RGB triple unchanged for three channels, else its luma."""
    return values if channels == 3 else [sum(v * w for v, w in zip(values, LUMA, strict=True))]


def _body(x: Any, entry: Entry, config: ModelConfig) -> Any:
    module, function = entry.body.split(":")
    body = getattr(importlib.import_module(f"sightline.models.{module}"), function)
    options: dict[str, Any] = {}
    if entry.alpha is not None:
        options["alpha"] = entry.alpha if config.alpha is None else config.alpha
    if entry.groups is not None:
        options["groups"] = entry.groups if config.groups is None else config.groups
    return body(x, **options)


def _head_of(config: ModelConfig, entry: Entry) -> Head:
    return Head(
        entry.head.pooling if config.pooling == "auto" else config.pooling,
        entry.head.hidden if config.hidden is None else config.hidden,
        entry.head.dropout if config.dropout is None else config.dropout,
    )


def _head(x: Any, plan: Plan, head: Head) -> dict[str, Any]:
    keras = backend.keras()
    layers = keras.layers
    pooling = {
        "average": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
        "flatten": layers.Flatten,
    }[head.pooling]
    x = pooling(name="pool" if head.pooling != "flatten" else "flatten")(x)
    for number, units in enumerate(head.hidden, 1):
        x = layers.Dense(units, activation="relu", name=f"fc{number}")(x)
        if head.dropout:
            x = layers.Dropout(head.dropout, name=f"fc{number}_drop")(x)
    features = layers.Activation("linear", name="features", dtype="float32")(x)
    if head.dropout and not head.hidden:
        x = layers.Dropout(head.dropout, name="head_drop")(x)
    units = 1 if plan.config.head == "sigmoid" else plan.classes
    logits = layers.Dense(units, name="predictions", dtype="float32")(x)
    if units == 1:  # softmax of [0, z] is [1 - sigmoid(z), sigmoid(z)]
        row = layers.Reshape((1, 1), name="as_row", dtype="float32")(logits)
        padded = layers.ZeroPadding1D((1, 0), name="two_classes", dtype="float32")(row)
        logits = layers.Flatten(name="pair", dtype="float32")(padded)
    logits = layers.Rescaling(1.0, name="temperature", dtype="float32")(logits)
    probabilities = layers.Softmax(name="probabilities", dtype="float32")(logits)
    return {"probabilities": probabilities, "logits": logits, "features": features}


def _seed_dropout(model: Any) -> None:
    """Make dropout use its own seed on PyTorch, as on the other backends; checkpoints save that seed.

    For a layer without an explicit seed, Keras uses PyTorch's global random state, and a resumed run would draw
    different masks.
    """
    if backend.name() != "torch":
        return
    for layer in model.layers:
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            generator._initial_seed = int(generator.state.value[0])  # noqa: SLF001  # the only thing that Keras checks


def _penalize(model: Any, l2: float) -> None:
    """Add an L2 penalty to every kernel."""
    for variable in model.trainable_variables:
        if is_kernel(variable):
            variable.regularizer = backend.keras().regularizers.L2(l2)
