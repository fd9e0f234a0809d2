"""The environment of a run: versions, backend, devices, memory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any

from sightline import backend, process
from sightline.config import DeviceConfig, RunConfig
from sightline.data import cache
from sightline.errors import check_installed
from sightline.report import fonts

PACKAGES = (
    *("sightline", "keras", "tensorflow-cpu", "tensorflow", "jax", "torch"),
    *("numpy", "pillow", "onnxruntime", "scikit-learn"),
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the relevant installed packages."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the processor's name, and a short hash of its name and features."""
    facts = backend.processor()
    name = facts[-1].partition(":")[2].strip() or facts[0]
    return f"{name} ({hashlib.sha256(repr(facts).encode()).hexdigest()[:8]})"


def start(device: DeviceConfig) -> None:
    """Import Keras with the configured backend and devices."""
    backend.configure(
        device.backend, device.gpus, memory_growth=device.memory_growth, threads=device.threads,
        deterministic=device.deterministic,
    )  # fmt: skip


def check_packages(config: RunConfig) -> None:
    """Raise `MissingExtraError` before any work if a package that training needs is not installed."""
    check_installed("keras", "matplotlib", "onnx", "tomlkit", purpose="Training")
    if config.train.tensorboard:
        check_installed("tensorboard", purpose="train.tensorboard")


def decided(device: DeviceConfig) -> DeviceConfig:
    """Return `device` with the active backend and thread count, and the matching engine."""
    engine = device.engine
    if engine == "auto":
        engine = "keras" if backend.accelerated() else "onnxruntime"
    return replace(device, backend=backend.name(), threads=backend.threads(), engine=engine)


def environment() -> dict[str, Any]:
    """Return versions, the backend and why it was chosen, devices, cores, memory and cache folders."""
    if "keras" not in sys.modules:
        start(DeviceConfig())
    choice = backend.choose()
    return {
        "backend": choice.name,
        "why": choice.why,
        "installed backends": list(backend.installed()),
        "devices": list(backend.devices()),
        "GPUs to be seen": os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
        "GPU memory": "as needed" if os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH") == "true" else "all at the start",
        "threads": backend.threads(),
        "cores": process.cores(),
        "processor": processor(),
        "memory": _memory(),
        "platform": platform.platform(),
        "cache": f"{cache.folder()} (limit {cache.limit() / 2**30:.0f} GiB)",
        "weights and data sets": str(backend.keras_home()),
        "versions": versions(),
    }


def fonts_by_script() -> str:
    """Describe which fonts render class names in figures."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    return "; ".join(f"{script}: {font}" for script, font in fonts.by_script().items())


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
