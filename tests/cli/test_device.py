"""The option `--device` of predict, evaluate, embed and serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command import Command
from sightline import load
from sightline._keras import imports
from sightline.errors import UsageError
from sightline.inference import bundle
from sightline.inference.runtimes.onnx import GPU_PROVIDER
from sightline.serve.model_folder import LoadOptions, StoredModel, load_all
from small_bundles import make_bundle
from synthetic_images import encode_png

pytestmark = pytest.mark.skipif(
    GPU_PROVIDER in imports.import_onnx_runtime().get_available_providers(),
    reason="this ONNX Runtime supports GPUs",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    bundle.write(make_bundle(1), folder / "model.zip")
    for number in range(6):
        path = folder / "images" / ("ant", "bee", "cat")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(number))
    return folder / "model.zip"


COMMANDS = {"predict": (), "evaluate": ("--no-cache",), "embed": ("--out", "{folder}/vectors.npy")}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_gpu_that_is_not_there_is_one_sentence_and_auto_says_why(sightline: Command, model: Path, verb: str) -> None:
    folder = model.parent
    arguments = [verb, str(model), str(folder / "images"), *(text.format(folder=folder) for text in COMMANDS[verb])]
    refused = sightline(*arguments, "--device", "gpu")
    assert (refused.code, refused.out) == (2, "")
    assert "pip install" in refused.err
    assert "onnxruntime-gpu" in refused.err
    assert "Traceback" not in refused.err
    assert not (folder / "vectors.npy").exists()
    by_default, automatic = sightline(*arguments), sightline(*arguments, "--device", "auto")
    assert (automatic.code, automatic.out) == (by_default.code, by_default.out)
    assert "device cpu: The installed ONNX Runtime has no support for GPUs" in automatic.err
    assert "device cpu" not in by_default.err


def test_a_server_says_where_its_models_compute(sightline: Command, model: Path) -> None:
    refused = sightline("serve", str(model), "--port", "0", "--device", "gpu")
    assert (refused.code, refused.out) == (2, "")
    assert "onnxruntime-gpu" in refused.err
    (served,) = load_all([StoredModel(model)], LoadOptions(device="auto"))
    assert served.classifier.explain_device().startswith("device cpu: The installed ONNX Runtime has no support")


def test_workers_of_ray_use_cpus(sightline: Command, model: Path) -> None:
    out = str(model.parent / "labels.parquet")
    arguments = ("predict", str(model), str(model.parent / "images"), "--out", out, "--engine", "ray")
    result = sightline(*arguments, "--device", "gpu")
    assert (result.code, result.out) == (2, "")
    assert "the workers of --engine ray use CPUs" in result.err


def test_a_keras_model_runs_where_keras_does(trained: tuple[Path, dict[str, Any]]) -> None:
    assert load(trained[0], engine="keras", device="cpu").predictor.device == "cpu"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="runs on the CPU here: a GPU runs only bundles"):
        load(trained[0], engine="keras", device="gpu")
