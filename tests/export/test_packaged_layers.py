"""A pretrained backbone is written as an ONNX file without Keras: the file that Keras' own layers give."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from networks import make_plan
from sightline import backend
from sightline.config import StageConfig
from sightline.export import keras_to_onnx
from sightline.export.packaged_layers import convert_packaged_layers
from sightline.models import pretrained
from sightline.models.build import build_model
from sightline.models.registry import ENTRIES
from sightline.training import stages

LITE0 = ENTRIES["efficientnet-lite0"]


def find_weights(name: str) -> Path:
    path = pretrained.find_cached_file(ENTRIES[name], None, 224)
    if path is None:
        pytest.skip(f"no weights of {name}: the extra backbones is not installed")
    return path


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith("efficientnet-lite")])
@pytest.mark.parametrize("side", [64, 99])
def test_the_file_is_that_of_the_frozen_layers_of_keras(name: str, side: int) -> None:
    weights = find_weights(name)
    network = build_model(make_plan(name, side=side, options={"weights": weights}))
    for unfreeze in (0, 1, 2, 46, 47, 100, len(network.backbone) - 1, len(network.backbone)):
        tensor = stages.find_freeze_boundary(network, StageConfig(unfreeze=unfreeze))
        layers = convert_packaged_layers(ENTRIES[name], weights, (side, side, 3), unfreeze)
        assert (layers is None) == (tensor is None)
        if layers is not None and tensor is not None:
            frozen = backend.keras().Model(network.model.input, tensor)
            assert layers.file == keras_to_onnx.convert_layers(frozen), unfreeze
            assert layers.shape == tensor.shape[1:]


def test_other_networks_are_left_to_keras(tmp_path: Path) -> None:
    assert convert_packaged_layers(ENTRIES["mobilenetv2"], tmp_path / "weights.h5", (224, 224, 3)) is None


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(find_weights(LITE0.name).read_bytes()[:-1])
    with pytest.raises(ValueError, match="SHA-256"):
        convert_packaged_layers(LITE0, damaged, (64, 64, 3))


def test_keras_is_not_imported() -> None:
    code = (
        "import sys; from pathlib import Path; from sightline.models.registry import ENTRIES;"
        "from sightline.export.packaged_layers import convert_packaged_layers;"
        f"convert_packaged_layers(ENTRIES['efficientnet-lite0'], Path({str(find_weights(LITE0.name))!r}), (64, 64, 3));"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & sys.modules.keys())"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == "set()"
