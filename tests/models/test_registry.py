"""The registry is data: complete, lawful, readable without Keras."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from typing import get_args

import pytest

from networks import NAMES
from sightline.errors import UsageError
from sightline.models import registry
from sightline.models.registry import ENTRIES


def test_networks_there_are() -> None:
    assert {"cifar10-simple", "cifar10-deep", "fashion-cnn", "vgg16", "mobilenetv2"} <= set(NAMES)
    assert all(name == entry.name for name, entry in ENTRIES.items())


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_lawful(name: str) -> None:
    entry = registry.find(name)
    assert entry is ENTRIES[name]
    assert name == name.lower().strip()
    assert " " not in name
    assert 10 < len(entry.about) < 100
    assert not entry.about.endswith(".")
    assert entry.source
    assert 8 <= entry.smallest <= entry.size
    assert entry.sharp is None or entry.sharp > entry.size
    assert entry.normalize in get_args(registry.Normalize)
    assert entry.head.pooling in get_args(registry.Pooling)
    assert 0 <= entry.head.dropout < 1
    module, function = entry.body.split(":")
    assert callable(getattr(importlib.import_module(f"sightline.models.{module}"), function))


@pytest.mark.parametrize("name", [n for n in NAMES if ENTRIES[n].pretrained])
def test_published_weights_have_a_file_and_its_address(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.pretrained is not None
    assert entry.pretrained.url.startswith("https://")
    assert entry.pretrained.url.endswith(f"/{entry.pretrained.file}")
    assert ("{alpha}" in entry.pretrained.file) is bool(entry.pretrained.alphas)
    assert ("{size}" in entry.pretrained.file) is bool(entry.pretrained.sizes)
    assert entry.alpha is None or entry.alpha in entry.pretrained.alphas
    assert not entry.pretrained.sizes or entry.size in entry.pretrained.sizes
    assert all(size >= entry.smallest for size in entry.pretrained.sizes)


def test_unknown_model_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"There is no model 'vgg61'\. Did you mean 'vgg16'\?"):
        registry.find("vgg61")
    with pytest.raises(UsageError, match=r"There is no model 'zzz'\. Valid names: cifar10-deep, "):
        registry.find("zzz")


def test_entries_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ENTRIES["vgg16"].size = 1  # type: ignore[misc]  # that it cannot is the point


def test_reading_it_imports_no_keras() -> None:
    code = "import sys; from sightline.models import registry; print('keras' in sys.modules, len(registry.ENTRIES))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(len(NAMES))]
