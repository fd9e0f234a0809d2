"""The model registry: plain data, readable without importing Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sightline.errors import UsageError, suggest

Normalize = Literal["unit", "symmetric", "imagenet", "caffe", "raw", "standardize"]
Pooling = Literal["average", "max", "flatten"]
Init = Literal["auto", "gaussian", "he", "glorot"]


@dataclass(frozen=True, slots=True)
class Head:
    """The classification head: what turns the backbone's feature maps into logits."""

    pooling: Pooling
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Pretrained:
    """ImageNet weights published for Keras: a file name in ``KERAS_HOME/models`` and its URL.

    In `file` and `url`, ``{alpha}`` is the width multiplier (``{tenths}``: 1_0, 7_5, 5_0, 2_5) and ``{size}`` the image
    size that the weights were trained at. `top` is true if the published top has the same layers as our head, so that a
    file that includes the top can fill the head too.
    """

    file: str
    url: str
    alphas: tuple[float, ...] = ()
    sizes: tuple[int, ...] = ()
    top: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered model: `body` is its function ("module:function" in `sightline.models`), the rest its defaults.

    `size` is the input size in pixels that it was designed for, `smallest` the minimum that its strides allow. `sharp`
    is the size to use with pretrained weights where the images are that large: a convolutional backbone is more
    accurate at about 1.3 times its training size (Touvron et al., 2019, arXiv:1906.06423; measured in
    docs/transfer.md). `init` is the weight initialization (auto: that of the layers); `ones` names the layers whose
    biases start at one; `whitened` names a first convolution that is initialized from patches of the training images.
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
    groups: int | None = None
    sharp: int | None = None
    init: Init = "auto"
    ones: tuple[str, ...] = ()
    whitened: str | None = None


_APPLICATIONS = "https://storage.googleapis.com/tensorflow/keras-applications"


def _published(folder: str, file: str, *, top: bool = True, **choices: tuple[Any, ...]) -> Pretrained:
    return Pretrained(file, f"{_APPLICATIONS}/{folder}/{file}", top=top, **choices)


_ENTRIES = (
    Entry(
        name="cifar10-simple",
        about="one convolution and one dense layer; the simplest model of the CIFAR-10 tutorial",
        source="Keras/TensorFlow CIFAR-10 tutorial, step 1",
        body="small:cifar10_simple",
        size=32,
        smallest=8,
        normalize="unit",
        head=Head("flatten", (512,), 0.5),
    ),
    Entry(
        name="cifar10-deep",
        about="four convolutions in two blocks with dropout; the deep model of the CIFAR-10 tutorial",
        source="Keras/TensorFlow CIFAR-10 tutorial, step 2",
        body="small:cifar10_deep",
        size=32,
        smallest=8,
        normalize="unit",
        head=Head("flatten", (512,), 0.5),
    ),
    Entry(
        name="fashion-cnn",
        about="six convolutions in three blocks; the model of the Fashion-MNIST tutorial",
        source="Keras Fashion-MNIST tutorial",
        body="small:fashion_cnn",
        size=28,
        smallest=8,
        normalize="standardize",
        head=Head("flatten", (128,)),
    ),
    Entry(
        name="fast-small",
        about="six batch-normalized convolutions after a whitening one; trains on small images in minutes",
        source="Jordan, 2024, arXiv:2404.00498, narrower",
        body="small:fast_small",
        size=32,
        smallest=16,
        normalize="imagenet",
        head=Head("max"),
        alpha=1.0,
        whitened="whiten",
    ),
    Entry(
        name="alexnet",
        about="5 convolutions and 3 dense layers; won ImageNet in 2012",
        source="Krizhevsky, Sutskever and Hinton, 2012, ImageNet Classification with Deep CNNs",
        body="alexnet:alexnet",
        size=227,
        smallest=67,
        normalize="caffe",
        head=Head("flatten", (4096, 4096), 0.5),
        groups=2,
        init="gaussian",
        ones=("conv2", "conv4", "conv5", "fc1", "fc2"),
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
        pretrained=_published("vgg16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="vgg19",
        about="16 convolutions 3x3 and 3 dense layers; a deeper VGG16",
        source="Simonyan and Zisserman, 2014, arXiv:1409.1556",
        body="vgg:vgg19",
        size=224,
        smallest=32,
        normalize="caffe",
        head=Head("flatten", (4096, 4096), 0.5),
        pretrained=_published("vgg19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="vgg16-bn",
        about="VGG16 with batch normalization and a small head; trains from scratch",
        source="Simonyan and Zisserman, 2014; Ioffe and Szegedy, 2015, arXiv:1502.03167",
        body="vgg:vgg16_bn",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average", (512,), 0.5),
        init="he",
    ),
    Entry(
        name="resnet50",
        about="residual blocks; the standard baseline",
        source="He et al., 2015, arXiv:1512.03385",
        body="applications:resnet50",
        size=224,
        smallest=32,
        normalize="caffe",
        head=Head("average"),
        pretrained=_published("resnet", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="se-resnet",
        about="ResNet-18 with squeeze-and-excitation blocks",
        source="Hu et al., 2017, arXiv:1709.01507",
        body="seresnet:se_resnet18",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average"),
        init="he",
    ),
    Entry(
        name="xception",
        about="depthwise separable convolutions with residual connections",
        source="Chollet, 2016, arXiv:1610.02357",
        body="applications:xception",
        size=299,
        smallest=71,
        normalize="symmetric",
        head=Head("average", (), 0.5),
        pretrained=_published("xception", "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="inceptionv3",
        about="parallel towers of factorized convolutions",
        source="Szegedy et al., 2015, arXiv:1512.00567",
        body="applications:inceptionv3",
        size=299,
        smallest=75,
        normalize="symmetric",
        head=Head("average", (), 0.2),
        pretrained=_published("inception_v3", "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="densenet121",
        about="each layer sees the output of all earlier ones; few parameters for its depth",
        source="Huang et al., 2016, arXiv:1608.06993",
        body="applications:densenet121",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average"),
        pretrained=_published("densenet", "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    Entry(
        name="squeezenet",
        about="fire modules, version 1.1; under 5 MB, the smallest model with ImageNet weights",
        source="Iandola et al., 2016, arXiv:1602.07360",
        body="squeezenet:squeezenet",
        size=227,
        smallest=32,
        normalize="caffe",
        head=Head("average", (), 0.5),
        pretrained=Pretrained(
            "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0/"
            "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
    ),
    Entry(
        name="mobilenet",
        about="depthwise separable convolutions; the first model for phones",
        source="Howard et al., 2017, arXiv:1704.04861",
        body="applications:mobilenet",
        size=224,
        smallest=32,
        normalize="symmetric",
        head=Head("average", (), 0.2),
        pretrained=_published(
            "mobilenet",
            "mobilenet_{tenths}_{size}_tf_no_top.h5",
            top=False,
            alphas=(0.25, 0.5, 0.75, 1.0),
            sizes=(128, 160, 192, 224),
        ),
        alpha=1.0,
    ),
    Entry(
        name="mobilenetv2",
        about="inverted residual blocks; small and fast, the usual choice for transfer learning on a laptop",
        source="Sandler et al., 2018, arXiv:1801.04381",
        body="applications:mobilenetv2",
        size=224,
        smallest=32,
        normalize="symmetric",
        head=Head("average", (), 0.2),
        pretrained=_published(
            "mobilenet_v2",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5",
            alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
            sizes=(96, 128, 160, 192, 224),
        ),
        alpha=1.0,
        sharp=288,
    ),
    *(
        Entry(
            name=f"mobilenetv3-{size}",
            about=about,
            source="Howard et al., 2019, arXiv:1905.02244",
            body=f"applications:mobilenetv3_{size}",
            size=224,
            smallest=32,
            normalize="symmetric",
            head=Head("average", (), 0.2),
            pretrained=_published(
                "mobilenet_v3",
                f"weights_mobilenet_v3_{size}_224_{{alpha}}_float_no_top_v2.h5",
                top=False,
                alphas=(0.75, 1.0),
            ),
            alpha=1.0,
        )
        for size, about in (
            ("small", "architecture search and squeeze-and-excitation; for low-power devices"),
            ("large", "architecture search and squeeze-and-excitation; for phones"),
        )
    ),
    Entry(
        name="efficientnetb0",
        about="balanced scaling of depth, width and resolution; accurate for its size",
        source="Tan and Le, 2019, arXiv:1905.11946",
        body="applications:efficientnetb0",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average", (), 0.2),
        pretrained=Pretrained(
            "efficientnetb0_notop.h5",
            "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
            top=True,
        ),
    ),
    Entry(
        name="efficientnetv2b0",
        about="EfficientNet with fused blocks at the start; faster to train",
        source="Tan and Le, 2021, arXiv:2104.00298",
        body="applications:efficientnetv2b0",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average", (), 0.2),
        pretrained=_published("efficientnet_v2", "efficientnetv2-b0_notop.h5"),
    ),
    Entry(
        name="convnext-tiny",
        about="a convolutional network modeled on transformers; the most accurate here",
        source="Liu et al., 2022, arXiv:2201.03545",
        body="convnext:convnext_tiny",
        size=224,
        smallest=32,
        normalize="imagenet",
        head=Head("average"),
        pretrained=_published("convnext", "convnext_tiny_notop.h5", top=False),
    ),
    Entry(
        name="nasnetmobile",
        about="cells found by neural architecture search",
        source="Zoph et al., 2017, arXiv:1707.07012",
        body="applications:nasnetmobile",
        size=224,
        smallest=32,
        normalize="symmetric",
        head=Head("average", (), 0.5),
        pretrained=Pretrained("nasnet_mobile_no_top.h5", f"{_APPLICATIONS}/nasnet/NASNet-mobile-no-top.h5", top=True),
    ),
)

ENTRIES: dict[str, Entry] = {e.name: e for e in _ENTRIES}


def find(name: str) -> Entry:
    """Return the entry named `name`; raises `UsageError`, which suggests the closest name."""
    try:
        return ENTRIES[name]
    except KeyError:
        raise UsageError(f"There is no model {name!r}.{suggest(name, ENTRIES)}") from None
