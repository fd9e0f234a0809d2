"""Detect possible accelerators by files and variables, without importing a backend, which takes seconds."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

NVIDIA_FILES = ("/dev/nvidiactl", "/dev/dxg")
"""Files of NVIDIA GPUs, the second on WSL; a container with a GPU other than the first lacks nvidia0."""
TPU_FILE = "/dev/accel0"
DEVICE_FILES = (*NVIDIA_FILES, "/dev/kfd", TPU_FILE, "/dev/vfio/0")
"""Files of GPUs, including AMD's, and of TPUs."""


def has_device_files() -> bool:
    """Return whether the machine has a device file of a GPU or TPU."""
    return _exists(*DEVICE_FILES)


def may_have_accelerator() -> bool:
    """Return False if a backend would list only one CPU: on Linux without files of other devices."""
    simulated = {"XLA_FLAGS", "JAX_NUM_CPU_DEVICES"} & os.environ.keys()  # these can split a CPU into several devices
    return bool(simulated) or sys.platform != "linux" or has_device_files()


def has_accelerated_jax() -> bool:
    """Return whether JAX is installed with support for a visible GPU or TPU of this machine."""
    has_gpu = _exists(*NVIDIA_FILES) and has_jax_for_cuda() and not hides_gpus()
    return has_gpu or (_exists(TPU_FILE) and importlib.util.find_spec("libtpu") is not None)


def has_jax_for_cuda() -> bool:
    """Return whether JAX's package for NVIDIA GPUs is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))


def hides_gpus() -> bool:
    """Return whether ``CUDA_VISIBLE_DEVICES`` hides every NVIDIA GPU; entries after an invalid number are hidden."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    return first in {"", "-1"}


def _exists(*files: str) -> bool:
    return any(Path(file).exists() for file in files)
