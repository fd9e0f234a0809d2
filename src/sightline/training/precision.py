"""``train.precision``: "device" is bfloat16 on GPUs that support it, "auto" also where a short benchmark is faster.

The benchmark is cached. On a CPU with bfloat16 instructions, bfloat16 doubles the speed of VGG and of small models and
does little for MobileNetV2; on other CPUs it slows everything down. Only a measurement can tell. On an NVIDIA GPU,
the compute capability decides.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sightline import _io, backend, jsonio, process
from sightline._keras import graphs, training_steps
from sightline._keras.fused_kernels import must_stay_float32
from sightline.config import RunConfig, TrainConfig
from sightline.data import cache
from sightline.errors import ModelError, OutputError, plural
from sightline.models.build import NORMALIZE_LAYER, ModelSpec, build_model
from sightline.models.head import FLOAT32_LAYERS
from sightline.training.optimizers import build_loss, build_optimizer, smooth_labels

Precision = Literal["float32", "mixed_bfloat16"]
MIN_GAIN = 1.1  # required speedup of bfloat16
BFLOAT16_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16 tensor cores (CUDA C++ Programming Guide, 5.1)
MIN_STEPS = 200  # a benchmark of a few seconds does not pay off for shorter runs
ROUNDS = 4
MAX_SECONDS = 10.0  # after this no further round begins: one round suffices for long steps
KERNELS_VERSION = 3  # increment with each change of `_keras.fused_kernels`, which invalidates cached measurements
_MAX_GAIN_BYTES = 1 << 12  # limit on the file of a measurement
MAX_BATCH_PIXELS = 1 << 20  # large images are measured in small batches


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision and the reason for choosing it; the reason is "" if the precision would be used anyway."""

    precision: Precision
    reason: str


def choose_precision(spec: ModelSpec, config: RunConfig, num_images: int) -> PrecisionChoice:
    """Choose the precision for training the model of `spec` on `num_images` images; measuring it builds the model.

    The first measurement is cached, so that the same model on the same machine always gets the same precision. Nothing
    is measured on an NVIDIA GPU, or for ``train.precision = "device"``.
    """
    stages = config.train.stages
    trains_backbone = not stages or any(stage.depth for stage in stages)
    if trains_backbone and (capability := backend.find_compute_capability()) is not None:
        return _choose_by_capability(capability)
    if config.train.precision == "device":
        return PrecisionChoice("float32", "")
    if any(stage.depth >= 0 for stage in stages):
        return PrecisionChoice("float32", "layers are frozen, so little is left to train")
    steps = config.train.epochs * -(-num_images // config.train.batch_size)
    if steps < MIN_STEPS:
        return PrecisionChoice("float32", f"a measurement is not worthwhile for {plural(steps, 'step')}")
    cache_path = cache.cache_folder() / f"precision-{_make_cache_key(spec, config)}.json"
    gain = _load_cached_gain(cache_path)
    is_cached = gain is not None
    if gain is None:
        gain = _measure_gain(spec, config)
        with suppress(OutputError):  # a read-only cache: measure again next time
            _io.write_atomic(cache_path, jsonio.dumps({"gain": gain}).encode())
    chosen: Precision = "mixed_bfloat16" if gain >= MIN_GAIN else "float32"
    return PrecisionChoice(
        chosen, f"bfloat16 is {gain:.2f} times as fast ({'measured before' if is_cached else 'measured'})"
    )


def _choose_by_capability(capability: tuple[int, int]) -> PrecisionChoice:
    """Choose the precision for an NVIDIA GPU from a table: compiling two networks to measure it takes minutes."""
    number = "{}.{}".format(*capability)
    if capability >= BFLOAT16_CAPABILITY:
        return PrecisionChoice("mixed_bfloat16", f"a GPU of compute capability {number} computes it in tensor cores")
    return PrecisionChoice("float32", f"a GPU of compute capability {number} does not compute in bfloat16")


@contextmanager
def mixed_precision(model: Any, precision: str) -> Iterator[None]:
    """Run a float32 `model` in bfloat16 within the context, if `precision` is "mixed_bfloat16".

    As in a model built by `models.build.build_model`, normalization, head and strided depthwise convolutions (see
    `_keras.fused_kernels.must_stay_float32`) stay in float32. Functions must be compiled within the context.
    """
    if precision != "mixed_bfloat16":
        yield
        return
    float32_layers = {NORMALIZE_LAYER, *FLOAT32_LAYERS}
    layers = [
        layer
        for layer in graphs.list_layers(model)
        if layer.name not in float32_layers and not must_stay_float32(layer)
    ]
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = precision
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def _load_cached_gain(cache_path: Path) -> float | None:
    with suppress(ModelError, ValueError, KeyError, TypeError):
        return float(jsonio.read_object(cache_path, _MAX_GAIN_BYTES)["gain"])
    return None


def _make_cache_key(spec: ModelSpec, config: RunConfig) -> str:
    shape_spec = replace(spec, seed=0, precision="float32", pixel_stats=None, weights=None)
    facts = [
        process.describe_processor(), backend.name(), backend.keras().__version__, backend.get_threads(),
        backend.list_devices(),
        repr(shape_spec), config.train.batch_size, config.train.optimizer.name, KERNELS_VERSION,
    ]  # fmt: skip
    return hashlib.sha256(jsonio.dumps(facts).encode()).hexdigest()[:16]


def _measure_gain(spec: ModelSpec, config: RunConfig) -> float:
    """Return the speedup of a training step in bfloat16: the best of up to `ROUNDS` alternating steps each."""
    size = max(1, min(config.train.batch_size, MAX_BATCH_PIXELS // (spec.height * spec.width)))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, spec.height, spec.width, spec.channels), np.uint8)
    soft_labels = smooth_labels(np.arange(size, dtype=np.int32) % spec.classes, spec.classes, 0.0)
    models = [
        _build_training_model(replace(spec, precision=precision), config) for precision in ("float32", "mixed_bfloat16")
    ]
    best, begun = [float("inf"), float("inf")], time.perf_counter()
    for round_index in range(ROUNDS + 1):
        for index, model in enumerate(models):
            started = time.perf_counter()
            training_steps.train_on_batch(model, pixels, soft_labels)
            if round_index:  # the first step compiles
                best[index] = min(best[index], time.perf_counter() - started)
        if round_index and time.perf_counter() - begun > MAX_SECONDS:
            break
    return best[0] / best[1]


def _build_training_model(spec: ModelSpec, config: RunConfig) -> Any:
    network = build_model(spec)
    model = backend.keras().Model(network.model.input, network.logits)
    model.compile(optimizer=build_optimizer(config.train.optimizer, 0.0), loss=build_loss(TrainConfig()))
    return model
