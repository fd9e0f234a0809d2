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
"""The name of the whitening convolution, in the networks that have one."""
Decoder = Literal["bilinear", "transposed", "fcn32", "fcn16", "fcn8"]


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The classification head: what turns the backbone's feature maps into logits."""

    pooling: Pooling
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class PretrainedWeights:
    """ImageNet weights published for Keras: a file name in ``KERAS_HOME/models`` and its URL.

    In `file` and `url`, ``{alpha}`` is the width multiplier (``{tenths}``: 1_0, 7_5, 5_0, 2_5) and ``{size}`` the image
    size that the weights were trained at. `includes_head` is true if the published top has the same layers as our head,
    so that a file that includes the top can fill the head too.
    """

    file: str
    url: str
    alphas: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    includes_head: bool = False


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """ImageNet weights that a Python package holds: they need no network once that is installed.

    `file` is the path of a PyTorch file below the import package, `sha256` its hash; it includes the top. `extra` is
    the extra of Sightline that brings the package named `distribution`.
    """

    distribution: str
    file: str
    sha256: str
    extra: str

    @property
    def import_package(self) -> str:
        """The name under which the package would be imported; it never is."""
        return self.distribution.replace("-", "_")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One registered model and its defaults.

    `backbone_fn` takes the normalized pixels, a symbolic tensor [N, H, W, C], and returns the last feature maps; those
    of Sightline are named by "module:function" in `sightline.models`, so that listing them imports no Keras.

    `input_size` is the input size in pixels that it was designed for, `min_input_size` the minimum that its strides
    allow. `pretrained_input_size` is the size to use with pretrained weights where the images are that large: a
    convolutional backbone is more accurate at about 1.3 times its training size (Touvron et al., 2019,
    arXiv:1906.06423; measured in benchmarks/results/transfer.md). `init` is the weight initialization (auto: that of
    the layers); `ones_bias_layers` names the layers whose biases start at one; `whitening_layer` names a first
    convolution that is initialized from patches of the training images. `decoder` is what follows the backbone in a
    network for masks. `has_int8_features` is true if a head that is trained on features of its frozen layers in int8 is
    as good as one trained on those in float32 (benchmarks/results/features.md).
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
        """The name of the network in a file of Keras."""
        return self.name.replace("-", "_")
