"""Build a model from the registry: uint8 images in; probabilities, logits and features out."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline import backend
from sightline._keras import training_steps
from sightline._keras.compilation import share_compiled_draws
from sightline._keras.fused_kernels import use_fused_kernels
from sightline._keras.graphs import fresh_layer_names, shapes_only, use_dtype_policy
from sightline._keras.process_state import seed_new_layers
from sightline.config import ModelConfig
from sightline.errors import ModelError, UsageError
from sightline.models import pretrained, registry
from sightline.models.decoders import apply_decoder
from sightline.models.entry import Activation, Decoder, HeadSpec, ModelEntry, Normalize
from sightline.models.head import LOGITS, apply_head, apply_mask_head
from sightline.models.initializers import initialize_weights
from sightline.models.layers import is_kernel
from sightline.preprocessing import LUMA
from sightline.seeding import derive_seed

NORMALIZE_LAYER = "normalize"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_SCALE, LITE_OFFSET = 1 / 128, -127 / 128
CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that determines a model's graph and initial weights.

    `pixel_stats` is (mean, standard deviation) of the training pixels in [0, 255], for ``normalize="standardize"``.
    `weights` is the file of the pretrained weights, None for random weights. Grayscale images become color images for
    weights that are for color images, and with `gray_to_color`, which is set if the weights come from such a network.
    `activation` is the activation of the task. With a `decoder`, there are outputs for each pixel.
    """

    config: ModelConfig
    height: int
    width: int
    channels: int
    classes: int
    seed: int = 0
    precision: str = "float32"
    l2: float = 0.0
    pixel_stats: tuple[float, float] | None = None
    weights: Path | None = None
    activation: Activation = "softmax"
    decoder: Decoder | None = None
    gray_to_color: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """A built model and the names of its backbone layers.

    `model` maps uint8 [N, H, W, C] to ``{"probabilities": [N, K], "logits": [N, K], "features": [N, F]}`` in float32;
    with a decoder, probabilities and logits are [N, H, W, K].
    `backbone` lists the names of the layers before the head, in order. `pretrained` is true if their weights come from
    a file, `pretrained_head` if the head's weights do too (the file includes the top, for the same number of classes
    and the same image size).
    """

    model: Any
    backbone: tuple[str, ...]
    pretrained: bool
    pretrained_head: bool = False

    @property
    def logits(self) -> Any:
        """The symbolic logits, float32 [N, K]."""
        return self.model.output[LOGITS]


def choose_decoder(config: ModelConfig, *, is_for_masks: bool) -> Decoder | None:
    """Return the decoder of a segmentation network, by default the one in its registry entry; None for others."""
    if not is_for_masks:
        return None
    return registry.get_entry(config.name).decoder if config.decoder == "auto" else config.decoder


def build_model(spec: ModelSpec) -> Network:
    """Build the model that `spec` specifies, with random or pretrained weights.

    Raises `UsageError` for settings that the model does not support, `ModelError` for weights that do not fit.
    """
    entry = registry.get_entry(spec.config.name)
    backend.keras()  # chooses the backend, and imports it quietly
    with share_compiled_draws():
        model, backbone_names = _build_graph(spec, entry)
    backbone = [model.get_layer(name) for name in backbone_names]
    init = entry.init if spec.config.initializer == "auto" else spec.config.initializer
    if init != "auto":
        ones_bias_layers = entry.ones_bias_layers if spec.config.initializer == "auto" else ()
        with share_compiled_draws():
            initialize_weights(
                model,
                init,
                derive_seed(spec.seed, "weights"),
                skip_layers=backbone_names if spec.weights else (),
                ones_bias_layers=ones_bias_layers,
            )
    pretrained_head = False
    if spec.weights is not None:
        head = [layer for layer in model.layers[model.layers.index(backbone[-1]) :] if layer.name not in backbone_names]
        pretrained_head = pretrained.load_weights(backbone, head, spec.weights, entry)
    if spec.l2:
        _add_l2_penalty(model, spec.l2)
    use_fused_kernels(model)
    training_steps.seed_dropout(model)
    return Network(model, backbone_names, spec.weights is not None, pretrained_head)


def build_shapes_only(spec: ModelSpec) -> Network:
    """Build only the graph, with shapes and parameter counts but no values; it takes no memory and cannot run."""
    entry = registry.get_entry(spec.config.name)
    backend.keras()  # chooses the backend, and imports it quietly
    with shapes_only():
        return Network(*_build_graph(spec, entry), spec.weights is not None)


def _build_graph(spec: ModelSpec, entry: ModelEntry) -> tuple[Any, tuple[str, ...]]:
    """Return the model with seeded random weights, and the names of its backbone layers."""
    keras = backend.keras()
    _check_spec(spec, entry)
    seed = derive_seed(spec.seed, "weights") % 2**32
    with fresh_layer_names(), seed_new_layers(seed), use_dtype_policy(spec.precision):
        inputs = keras.Input((spec.height, spec.width, spec.channels), dtype="uint8", name="pixels")
        x = inputs
        if spec.gray_to_color or (
            spec.channels == 1 and spec.weights is not None and pretrained.are_for_color(spec.weights)
        ):  # before normalization, which is per channel
            x = keras.layers.Concatenate(name=pretrained.GRAY_LAYER)([x, x, x])
        normalize = entry.normalize if spec.config.normalize == "auto" else spec.config.normalize
        x = normalized_input = normalize_pixels(x, normalize, spec.pixel_stats)
        x = _apply_backbone(x, entry, spec.config)
        backbone_names = tuple(layer.name for layer in keras.Model(normalized_input, x).layers[1:])
        if spec.decoder is not None:
            outputs = apply_mask_head(x, apply_decoder(spec.decoder, inputs, x, spec.classes))
            return keras.Model(inputs, outputs, name=entry.network_name), backbone_names
        is_sigmoid = spec.config.head == "sigmoid"
        outputs = apply_head(
            x, _resolve_head(spec.config, entry), spec.classes, is_sigmoid=is_sigmoid, activation=spec.activation
        )
        return keras.Model(inputs, outputs, name=entry.network_name), backbone_names


def _check_spec(spec: ModelSpec, entry: ModelEntry) -> None:
    min_size = entry.min_input_size
    if min(spec.height, spec.width) < min_size:
        raise UsageError(
            f"{entry.name} needs images of at least {min_size}x{min_size} pixels, got {spec.height}x{spec.width}: "
            f"set input.height={min_size} or more."
        )
    if spec.config.head == "sigmoid" and spec.classes != 2:
        raise UsageError(f"model.head=sigmoid needs exactly two classes, got {spec.classes}: use model.head=softmax.")
    if spec.config.alpha is not None and entry.alpha is None:
        raise UsageError(f"{entry.name} has no width multiplier: leave model.alpha unset.")
    if spec.config.groups is not None and entry.groups is None:
        raise UsageError(f"{entry.name} has no groups: leave model.groups unset.")


def normalize_pixels(pixels: Any, scheme: Normalize, pixel_stats: tuple[float, float] | None) -> Any:
    """Normalize symbolic uint8 `pixels` to float32 by `scheme`; channel order and scaling are part of the graph."""
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
    elif scheme == "lite":
        scale, offset = LITE_SCALE, LITE_OFFSET
    elif scheme == "imagenet":
        scale = [1 / (255 * s) for s in _match_channels(IMAGENET_STD, channels)]
        offset = [
            -m / s
            for m, s in zip(
                _match_channels(IMAGENET_MEAN, channels), _match_channels(IMAGENET_STD, channels), strict=True
            )
        ]
    elif scheme == "caffe":
        offset = [-m for m in (CAFFE_MEAN if channels == 3 else _match_channels(CAFFE_MEAN[::-1], channels))]
    elif scheme == "standardize":
        if pixel_stats is None:
            raise ModelError("normalize=standardize needs the mean and standard deviation of the training pixels.")
        mean, std = pixel_stats
        scale, offset = 1 / max(std, 1e-6), -mean / max(std, 1e-6)
    return keras.layers.Rescaling(scale, offset, name=NORMALIZE_LAYER, dtype="float32")(pixels)


def _match_channels(values: Sequence[float], channels: int) -> Sequence[float]:
    """Return RGB `values` unchanged for three channels, else their luma."""
    return values if channels == 3 else [sum(v * w for v, w in zip(values, LUMA, strict=True))]


def _apply_backbone(x: Any, entry: ModelEntry, config: ModelConfig) -> Any:
    body = entry.backbone_fn
    if isinstance(body, str):
        module, function = body.split(":")
        body = getattr(importlib.import_module(f"sightline.models.{module}"), function)
    options: dict[str, Any] = {}
    if entry.alpha is not None:
        options["alpha"] = entry.alpha if config.alpha is None else config.alpha
    if entry.groups is not None:
        options["groups"] = entry.groups if config.groups is None else config.groups
    return body(x, **options)


def _resolve_head(config: ModelConfig, entry: ModelEntry) -> HeadSpec:
    return HeadSpec(
        entry.head.pooling if config.pooling == "auto" else config.pooling,
        entry.head.hidden if config.hidden_units is None else config.hidden_units,
        entry.head.dropout if config.dropout is None else config.dropout,
    )


def _add_l2_penalty(model: Any, l2: float) -> None:
    """Add an L2 penalty to every kernel."""
    for variable in model.trainable_variables:
        if is_kernel(variable):
            variable.regularizer = backend.keras().regularizers.L2(l2)
