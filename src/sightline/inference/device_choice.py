"""Choose the device for a bundle's model: the CPU, or a GPU whose results agree with the CPU's."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sightline.errors import ModelError, UsageError
from sightline.inference.parity import TOLERANCES, compare_probabilities, time_call
from sightline.inference.predictor import Predictor
from sightline.inference.runtimes.onnx import OnnxPredictor

Device = Literal["cpu", "gpu", "auto"]
"""Where a model runs; "auto" is a GPU if that is possible and not slower than the CPU."""
ROUNDS = 3  # timed batches on each device


def choose_device(cpu: OnnxPredictor, device: Device, pixels: NDArray[np.uint8], precision: str) -> OnnxPredictor:
    """Return the predictor for `device`: `cpu`, or the same model on a GPU; for "auto", `device_reason` explains it.

    Both must return the same probabilities for the batch `pixels` uint8 [N, H, W, C], within the limits for an export
    in float32, or in int8 if that is the `precision` of the weights. For "auto", batches of `pixels` are timed.

    Raises `UsageError` for "gpu" if there is none, and `ModelError` if its results differ.
    """
    if device == "cpu":
        return cpu
    try:
        gpu = cpu.on_gpu()
        _check_parity(cpu, gpu, pixels, precision)
    except (UsageError, ModelError) as error:
        if device == "gpu":
            raise
        cpu.device_reason = str(error)
        return cpu
    return gpu if device == "gpu" else choose_faster(cpu, gpu, pixels)


def _check_parity(cpu: Predictor, gpu: Predictor, pixels: NDArray[np.uint8], precision: str) -> None:
    classes = len(cpu.classes)
    parity = compare_probabilities(
        cpu.probabilities(pixels).reshape(-1, classes), gpu.probabilities(pixels).reshape(-1, classes)
    )
    if not parity.is_within(TOLERANCES["int8" if precision == "int8" else "float32"]):
        raise ModelError(
            f"The GPU gives other results than the CPU: their probabilities differ by {parity.max_difference:.2g}, and "
            f"{parity.top1_agreement:.1%} of the classes are the same. Use the device cpu."
        )


def choose_faster(cpu: OnnxPredictor, gpu: OnnxPredictor, pixels: NDArray[np.uint8]) -> OnnxPredictor:
    """Return `gpu` unless it is slower than `cpu` for the batch `pixels`, by the best of `ROUNDS` alternating calls.

    Both must have run such a batch before.
    """
    rounds = [[time_call(predictor, pixels) for predictor in (cpu, gpu)] for _ in range(ROUNDS)]
    cpu_seconds, gpu_seconds = map(min, zip(*rounds, strict=True))
    chosen = gpu if gpu_seconds <= cpu_seconds else cpu
    times = f"{1e3 * gpu_seconds:.3g} ms on the GPU and {1e3 * cpu_seconds:.3g} ms on the CPU"
    chosen.device_reason = f"A batch of {len(pixels)} takes {times}."
    return chosen
