"""Whether a bundle runs on a GPU, and what is said where it cannot; no test needs one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline import load
from sightline._keras import imports
from sightline.errors import ModelError, UsageError
from sightline.inference import bundle, device_choice
from sightline.inference.device_choice import choose_device, choose_faster
from sightline.inference.parity import TOLERANCES
from sightline.inference.runtimes import onnx as runtime
from sightline.inference.runtimes.onnx import OnnxPredictor
from sightline.inference.safety.limits import LIMIT_VARIABLE
from small_bundles import make_bundle

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
onnxruntime = imports.import_onnx_runtime()
has_gpu_build = runtime.GPU_PROVIDER in onnxruntime.get_available_providers()
without_gpu = pytest.mark.skipif(has_gpu_build, reason="this ONNX Runtime supports GPUs")


def open_gpu(monkeypatch: pytest.MonkeyPatch, other: OnnxPredictor) -> None:
    """Let `other`, a session on the CPU, be what the GPU would be: the decisions do not depend on the device."""
    other.device = "gpu"
    monkeypatch.setattr(OnnxPredictor, "on_gpu", lambda _: other)


@without_gpu
def test_a_build_without_gpu_says_what_to_install() -> None:
    with pytest.raises(UsageError, match=r"no support for GPUs: .*onnxruntime-gpu\[cuda,cudnn\].*the device cpu"):
        make_bundle(1).make_predictor().on_gpu()


@without_gpu
@pytest.mark.filterwarnings("default:Specified provider")
def test_a_provider_that_does_not_start_is_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a build for GPUs on a machine without one: ONNX Runtime drops the provider and uses the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [runtime.GPU_PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with (
        pytest.warns(UserWarning, match="Specified provider 'CUDAExecutionProvider'"),
        pytest.raises(UsageError, match="cannot use a GPU here: check that nvidia-smi lists one"),
    ):
        make_bundle(1).make_predictor().on_gpu()


def test_memory_is_bounded_and_products_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    options = runtime._list_gpu_options()
    assert (options["gpu_mem_limit"], options["use_tf32"]) == (str(4 << 30), "0")
    monkeypatch.setenv(LIMIT_VARIABLE, "2")
    assert runtime._list_gpu_options()["gpu_mem_limit"] == str(8 << 30)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    imports.load_cuda_libraries()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@without_gpu
@pytest.mark.parametrize("suffix", ["", ".zip", ".onnx"])
def test_auto_uses_the_cpu_and_says_why(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    bundle.write(make_bundle(1), path)
    with pytest.raises(UsageError, match="onnxruntime-gpu"):
        bundle.load(path, device="gpu")
    classifier: Any = load(path, device="auto")
    assert classifier.predictor.device == "cpu"
    assert "onnxruntime-gpu" in classifier.predictor.device_reason
    assert load(path).predict_proba(PIXELS).tobytes() == classifier.predict_proba(PIXELS).tobytes()
    with pytest.raises(UsageError, match="no device 'tpu'"):
        load(path, device="tpu")  # type: ignore[arg-type]


def test_a_gpu_that_gives_other_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = make_bundle(1).make_predictor()
    open_gpu(monkeypatch, make_bundle(2).make_predictor())
    with pytest.raises(ModelError, match=r"probabilities differ by 0\.\d+, and .*% of the classes"):
        choose_device(cpu, "gpu", PIXELS, "float32")
    assert choose_device(cpu, "auto", PIXELS, "float32") is cpu
    assert "other results" in cpu.device_reason


def test_the_limits_are_those_of_float32_unless_the_weights_are_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = make_bundle(1).make_predictor(), make_bundle(1).make_predictor()
    open_gpu(monkeypatch, gpu)
    exact = gpu.probabilities
    monkeypatch.setattr(gpu, "probabilities", lambda pixels: exact(pixels) + 2 * TOLERANCES["float32"].difference)
    for precision in ("float32", "float16", "bfloat16"):
        with pytest.raises(ModelError, match="other results"):
            choose_device(cpu, "gpu", PIXELS, precision)
    assert choose_device(cpu, "gpu", PIXELS, "int8") is gpu


def test_masks_are_compared_pixel_by_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = make_bundle(1).make_predictor(), make_bundle(1).make_predictor()
    open_gpu(monkeypatch, gpu)
    masks = np.random.default_rng(0).dirichlet(np.ones(3), (4, 8, 8)).astype(np.float32)
    other = masks.copy()
    other[3, 7, 7] = other[3, 7, 7, ::-1]
    for predictor, values in ((cpu, masks), (gpu, other)):
        monkeypatch.setattr(predictor, "probabilities", lambda _, values=values: values)
    with pytest.raises(ModelError, match="other results"):
        choose_device(cpu, "gpu", PIXELS, "float32")


@pytest.mark.parametrize(
    ("seconds", "expected"), [([9, 2, 3, 2, 3, 4], "gpu"), ([3, 9, 4, 5, 4, 4], "cpu"), ([3, 3, 3, 3, 3, 3], "gpu")]
)
def test_auto_uses_the_gpu_unless_it_is_slower(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], expected: str
) -> None:
    """`seconds` of the calls, which alternate; the best of each device counts."""
    cpu, gpu = make_bundle(1).make_predictor(), make_bundle(1).make_predictor()
    open_gpu(monkeypatch, gpu)
    times = iter(seconds)
    monkeypatch.setattr(device_choice, "time_call", lambda *_: next(times))
    chosen = choose_device(cpu, "auto", PIXELS, "float32")
    assert chosen is {"cpu": cpu, "gpu": gpu}[expected]
    assert chosen.device_reason.startswith("A batch of 4 takes ")


def test_the_clock_runs_while_the_model_does() -> None:
    cpu, gpu = make_bundle(1).make_predictor(), make_bundle(1).make_predictor()
    chosen = choose_faster(cpu, gpu, PIXELS)
    assert chosen in (cpu, gpu)
    assert " 0 ms" not in chosen.device_reason
