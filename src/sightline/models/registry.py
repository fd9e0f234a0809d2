"""Which networks there are: plain data, read without importing Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sightline.errors import UsageError, suggest

Normalize = Literal["unit", "symmetric", "imagenet", "caffe", "raw", "standardize"]
Pooling = Literal["average", "max", "flatten"]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands between the backbone's feature maps and the class scores."""

    pooling: Pooling
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Pretrained:
    """ImageNet weights as Keras publishes them: a file below ``KERAS_HOME/models`` and its address.

    ``{alpha}`` in `file` is the width multiplier, ``{size}`` the picture side that the weights were trained for.
    """

    file: str
    url: str
    alphas: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One network: `body` names its function ("module:function" below `sightline.models`), the rest its defaults.

    `size` is the side in pixels that it was designed for, `smallest` the least that its strides allow. `sharp` is the
    side to use with pretrained weights where the pictures are that large: a convolutional backbone names them better
    at about 1.3 times its training size (Touvron et al., 2019, arXiv:1906.06423; figures in docs/transfer.md).
    """

    name: str
    about: str
    source: str
    body: str
    size: int
    smallest: int
    normalize: Normalize
    head: Head
    pretrained: Pretrained | None = None
    alpha: float | None = None
    sharp: int | None = None


_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"

_ENTRIES = (
    Entry(
        name="cifar10-simple",
        about="one convolution and one dense layer; the simplest net of the CIFAR-10 tutorial",
        source="Keras/TensorFlow CIFAR-10 tutorial, step 1",
        body="small:cifar10_simple",
        size=32,
        smallest=8,
        normalize="unit",
        head=Head("flatten", (512,), 0.5),
    ),
    Entry(
        name="cifar10-deep",
        about="four convolutions in two blocks with dropout; the deep net of the CIFAR-10 tutorial",
        source="Keras/TensorFlow CIFAR-10 tutorial, step 2",
        body="small:cifar10_deep",
        size=32,
        smallest=8,
        normalize="unit",
        head=Head("flatten", (512,), 0.5),
    ),
    Entry(
        name="fashion-cnn",
        about="six convolutions in three blocks; the net of the Fashion-MNIST tutorial",
        source="Keras Fashion-MNIST tutorial",
        body="small:fashion_cnn",
        size=28,
        smallest=8,
        normalize="standardize",
        head=Head("flatten", (128,)),
    ),
    Entry(
        name="vgg16",
        about="13 convolutions 3x3 and 3 dense layers; large, the classic backbone of the tutorials",
        source="Simonyan and Zisserman, 2014, arXiv:1409.1556",
        body="vgg:vgg16",
        size=224,
        smallest=32,
        normalize="caffe",
        head=Head("flatten", (4096, 4096), 0.5),
        pretrained=Pretrained(
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            f"{_APPLICATIONS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
    ),
    Entry(
        name="mobilenetv2",
        about="inverted residual blocks; small and quick, the usual start for transfer on a laptop",
        source="Sandler et al., 2018, arXiv:1801.04381",
        body="applications:mobilenetv2",
        size=224,
        smallest=32,
        normalize="symmetric",
        head=Head("average", (), 0.2),
        pretrained=Pretrained(
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5",
            f"{_APPLICATIONS}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{{alpha}}_{{size}}_no_top.h5",
            alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
            sizes=(96, 128, 160, 192, 224),
        ),
        alpha=1.0,
        sharp=288,
    ),
)

ENTRIES: dict[str, Entry] = {e.name: e for e in _ENTRIES}


def find(name: str) -> Entry:
    """Return the entry called `name`; raises `UsageError` with the nearest name."""
    try:
        return ENTRIES[name]
    except KeyError:
        raise UsageError(f"There is no model {name!r}.{suggest(name, ENTRIES)}") from None
