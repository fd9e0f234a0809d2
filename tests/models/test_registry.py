"""The registry is complete, valid plain data, readable without Keras."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from networks import NAMES
from sightline import backend
from sightline._keras.graphs import shapes_only
from sightline.errors import UsageError
from sightline.models import entry as registry_entry
from sightline.models import pretrained, registry
from sightline.models.entry import PackagedWeights, PretrainedWeights
from sightline.models.registry import ENTRIES

APPLICATIONS = {
    "vgg16": ("VGG16", 224),
    "vgg19": ("VGG19", 224),
    "resnet50": ("ResNet50", 224),
    "xception": ("Xception", 299),
    "inceptionv3": ("InceptionV3", 299),
    "densenet121": ("DenseNet121", 224),
    "mobilenet": ("MobileNet", 224),
    "mobilenetv2": ("MobileNetV2", 224),
    "mobilenetv3-small": ("MobileNetV3Small", 224),
    "mobilenetv3-large": ("MobileNetV3Large", 224),
    "efficientnetb0": ("EfficientNetB0", 224),
    "efficientnetv2b0": ("EfficientNetV2B0", 224),
    "convnext-tiny": ("ConvNeXtTiny", 224),
    "nasnetmobile": ("NASNetMobile", 224),
}


def test_registered_models() -> None:
    assert set(NAMES) == {
        "airbench",
        "alexnet",
        "cifar10-deep",
        "cifar10-simple",
        "convnext-tiny",
        "densenet121",
        "efficientnet-lite0",
        "efficientnet-lite1",
        "efficientnet-lite2",
        "efficientnetb0",
        "efficientnetv2b0",
        "fashion-cnn",
        "fast-small",
        "fcn",
        "inceptionv3",
        "mobilenet",
        "mobilenetv2",
        "mobilenetv3-large",
        "mobilenetv3-small",
        "nasnetmobile",
        "resnet50",
        "se-resnet",
        "squeezenet",
        "vgg16",
        "vgg16-bn",
        "vgg19",
        "xception",
    }
    assert all(name == entry.name for name, entry in ENTRIES.items())


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_valid(name: str) -> None:
    entry = registry.get_entry(name)
    assert entry is ENTRIES[name]
    assert name == name.lower().strip()
    assert " " not in name
    assert 10 < len(entry.description) < 100
    assert not entry.description.endswith(".")
    assert entry.reference
    assert 8 <= entry.min_input_size <= entry.input_size
    assert entry.pretrained_input_size is None or entry.pretrained_input_size > entry.input_size
    assert entry.normalize in get_args(registry_entry.Normalize)
    assert entry.head.pooling in get_args(registry_entry.Pooling)
    assert 0 <= entry.head.dropout < 1
    assert isinstance(entry.backbone_fn, str)
    module, function = entry.backbone_fn.split(":")
    assert callable(getattr(importlib.import_module(f"sightline.models.{module}"), function))


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(ENTRIES[n].pretrained, PretrainedWeights)])
def test_published_weights_have_a_file_and_its_address(name: str) -> None:
    entry = ENTRIES[name]
    assert isinstance(entry.pretrained, PretrainedWeights)
    assert entry.pretrained.url.startswith("https://")
    if name == "nasnetmobile":  # Keras caches it under another name
        assert entry.pretrained.url.endswith("/NASNet-mobile-no-top.h5")
    else:
        assert entry.pretrained.url.endswith(f"/{entry.pretrained.file}")
    by_width = "{alpha}" in entry.pretrained.file or "{tenths}" in entry.pretrained.file
    assert by_width is bool(entry.pretrained.alphas)
    assert ("{size}" in entry.pretrained.file) is bool(entry.pretrained.sizes)
    assert entry.alpha is None or entry.alpha in entry.pretrained.alphas
    assert not entry.pretrained.sizes or entry.input_size in entry.pretrained.sizes
    assert all(size >= entry.min_input_size for size in entry.pretrained.sizes)


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(ENTRIES[n].pretrained, PackagedWeights)])
def test_packaged_weights_are_those_of_an_extra(name: str) -> None:
    weights = ENTRIES[name].pretrained
    assert isinstance(weights, PackagedWeights)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"][weights.extra]
    assert [line for line in extra if line.startswith(f"{weights.distribution}==")], "pinned, since its hash is"


@pytest.mark.slow  # builds every model
def test_files_are_those_that_keras_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """File names and URLs match those that `keras.applications` downloads."""
    keras = backend.keras()
    requests: list[tuple[str, str]] = []

    class DownloadRequested(Exception):
        pass

    def get_file(name: str, origin: str, **options: object) -> str:
        requests.append((name, origin))
        raise DownloadRequested

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    for name, (function, side) in APPLICATIONS.items():
        entry = ENTRIES[name]
        with shapes_only(), pytest.raises(DownloadRequested):
            getattr(keras.applications, function)(include_top=False, input_shape=(side, side, 3))
        assert isinstance(entry.pretrained, PretrainedWeights)
        assert pretrained._format_file_and_url(entry.pretrained, entry.alpha, side) == requests[-1]
    for alpha in (0.25, 0.5, 0.75):
        with shapes_only(), pytest.raises(DownloadRequested):
            keras.applications.MobileNet(include_top=False, input_shape=(160, 160, 3), alpha=alpha)
        published = ENTRIES["mobilenet"].pretrained
        assert isinstance(published, PretrainedWeights)
        assert pretrained._format_file_and_url(published, alpha, 160) == requests[-1]


def test_unknown_model_suggests_the_closest() -> None:
    with pytest.raises(UsageError, match=r"There is no model 'squezenet'\. Did you mean 'squeezenet'\?"):
        registry.get_entry("squezenet")
    with pytest.raises(UsageError, match=r"There is no model 'zzz'\. Valid names: airbench, "):
        registry.get_entry("zzz")


def test_entries_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ENTRIES["vgg16"].input_size = 1  # type: ignore[misc]  # the test is that it fails


def test_reading_it_imports_no_keras() -> None:
    code = "import sys; from sightline.models import registry; print('keras' in sys.modules, len(registry.ENTRIES))"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.split() == ["False", str(len(NAMES))]
