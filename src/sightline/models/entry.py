"""A model's registry entry: its backbone, its defaults, and the location of its ImageNet weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Normalize = Literal["unit", "symmetric", "imagenet", "caffe", "lite", "raw", "standardize"]
Pooling = Literal["average", "max", "flatten"]
Activation = Literal["softmax", "sigmoid", "ordinal"]
Init = Literal["auto", "gaussian", "he", "glorot", "identity"]

WHITENING_LAYER = "whiten"
"""The name of the whitening convolution in networks that have one."""
Decoder = Literal["bilinear", "transposed", "fcn32", "fcn16", "fcn8"]


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The classification head, which turns the backbone's feature maps into logits."""

    pooling: Pooling
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class PretrainedWeights:
    """ImageNet weights published for Keras: a file name in ``KERAS_HOME/models`` and its URL.

    In `file` and `url`, ``{alpha}`` is the width multiplier (``{tenths}``: 1_0, 7_5, 5_0, 2_5) and ``{size}`` the image
    size at which the weights were trained. `includes_head` is true if the published top has the same layers as our
    head, so that a file with the top can fill the head too.
    """

    file: str
    url: str
    alphas: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    includes_head: bool = False


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """ImageNet weights in a Python package: once it is installed, they need no network.

    `file` is the path of a PyTorch file in the import package, `sha256` its hash; it includes the top. `extra` is
    Sightline's extra that installs the package `distribution`.
    """

    distribution: str
    file: str
    sha256: str
    extra: str

    @property
    def import_package(self) -> str:
        """The import name of the package, which is never imported."""
        return self.distribution.replace("-", "_")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A registered model and its defaults.

    `backbone_fn` accepts the normalized pixels, a symbolic tensor [N, H, W, C], and returns the last feature maps;
    Sightline's own are given as "module:function" in `sightline.models`, so that listing them does not import Keras.

    `input_size` is the input size in pixels that it was designed for, `min_input_size` the minimum that its strides
    allow. `pretrained_input_size` is the size to use with pretrained weights if the images are that large: a
    convolutional backbone is more accurate at about 1.3 times its training size (Touvron et al., 2019,
    arXiv:1906.06423; measured in benchmarks/results/transfer.md). `init` is the weight initialization (auto: by the
    layers themselves); `ones_bias_layers` names the layers whose biases start at one; `whitening_layer` names a first
    convolution that is initialized from patches of the training images. `decoder` follows the backbone in segmentation
    networks. `has_int8_features` is true if a head trained on int8 features of its frozen layers is as good as one
    trained on float32 features (benchmarks/results/features.md).
    """

    name: str
    description: str
    reference: str
    backbone_fn: str | Callable[..., Any]
    input_size: int
    min_input_size: int = 32
    normalize: Normalize = "imagenet"
    head: HeadSpec = HeadSpec("average")
    pretrained: PretrainedWeights | PackagedWeights | None = None
    alpha: float | None = None
    groups: int | None = None
    pretrained_input_size: int | None = None
    init: Init = "auto"
    ones_bias_layers: tuple[str, ...] = ()
    whitening_layer: str | None = None
    decoder: Decoder = "bilinear"
    has_int8_features: bool = False

    @property
    def network_name(self) -> str:
        """The name of the network in a Keras file."""
        return self.name.replace("-", "_")
