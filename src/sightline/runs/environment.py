"""The environment of a run: versions, backend, devices, memory."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

from sightline import backend, process
from sightline._keras import accelerators, imports
from sightline.config import DeviceConfig, RunConfig
from sightline.data import cache
from sightline.errors import check_installed
from sightline.tracking.tracker import check_trackers
from sightline.training.augment.augmentation import AUGMENTATIONS

PACKAGES = (
    *("sightline", "keras", "tensorflow-cpu", "tensorflow", "jax", "torch"),
    *("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "scikit-learn"),
)
TORCH_USE = (
    "for programs that use PyTorch already: Keras runs its operations one by one, without compiling a step, so prefer "
    "TensorFlow on a CPU and JAX on a GPU"
)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the relevant installed packages."""
    versions_by_package = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_by_package[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions_by_package


def processor_id() -> str:
    """Return the processor's name, and a short hash of its name and features."""
    cpu_info = process.describe_processor()
    name = cpu_info[-1].partition(":")[2].strip() or cpu_info[0]
    return f"{name} ({hashlib.sha256(repr(cpu_info).encode()).hexdigest()[:8]})"


def start_backend(device: DeviceConfig) -> None:
    """Choose the backend and the devices of the settings; see `backend.configure` for when Keras is imported."""
    backend.configure(
        device.backend, device.gpus, memory_growth=device.memory_growth, threads=device.threads,
        deterministic=device.deterministic, program_folder=cache.cache_folder(),
    )  # fmt: skip


def check_packages(config: RunConfig) -> None:
    """Raise `MissingExtraError` or `UsageError` before any work if a package or an augmentation is not installed."""
    check_installed("keras", "matplotlib", "onnx", "tomlkit", purpose="Training")
    check_trackers(config.train.track)
    for custom in config.augment.custom:
        AUGMENTATIONS.find(custom.name)


def resolve_device(device: DeviceConfig) -> DeviceConfig:
    """Return `device` with the active backend and thread count, and the matching engine."""
    engine = device.feature_runtime
    if engine == "auto":
        engine = "keras" if backend.has_accelerator() else "onnxruntime"
    return replace(device, backend=backend.name(), threads=backend.get_threads(), feature_runtime=engine)


def describe_environment(on_message: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return versions, the backend and why it was chosen, devices, cores, memory and cache folders.

    A backend is started, to list its devices, only on a machine that may have an accelerator. That takes seconds, so
    `on_message` receives a line first.
    """
    choice, default = backend.choose_backend(), DeviceConfig()
    if "keras" not in sys.modules and accelerators.may_have_accelerator():
        if on_message is not None:
            on_message(f"Starting {choice.name}, which lists its devices.")
        start_backend(default)
    is_started = "keras" in sys.modules
    choice = backend.choose_backend()
    grows = os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", str(default.memory_growth).lower()) == "true"
    return {
        "backend": choice.name,
        "backend_reason": choice.reason,
        **({"backend_use": TORCH_USE} if choice.name == "torch" else {}),
        "installed_backends": list(backend.list_installed()),
        "devices": list(backend.list_devices()) if is_started else ["cpu:0"],
        "onnxruntime_providers": list(imports.import_onnx_runtime().get_available_providers()),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
        "gpu_memory": "as needed" if grows else "all at the start",
        "threads": backend.get_threads() if is_started or backend.is_pending() else process.count_cores(),
        "cores": process.count_cores(),
        "processor": processor_id(),
        "memory": _describe_memory(),
        "platform": platform.platform(),
        "cache": f"{cache.cache_folder()} (limit {cache.size_limit() / 2**30:.0f} GiB)",
        "keras_home": str(backend.keras_home()),
        "versions": installed_versions(),
    }


def _describe_memory() -> str:
    size = process.count_memory()
    return f"{size / 2**30:.1f} GiB" if math.isfinite(size) else "unknown"


def describe_little_memory() -> list[str]:
    """Return a note on the measures taken because memory is short; empty if it is not."""
    megabytes = process.count_memory() / 2**20
    note = f"memory is short ({megabytes:,.0f} MB): images are evaluated in smaller batches, at the same precision"
    return [note] if process.is_memory_short() else []
