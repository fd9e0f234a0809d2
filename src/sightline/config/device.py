"""The settings of the backend and the hardware that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sightline.config.parse import setting


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The backend and the hardware."""

    backend: Literal["auto", "tensorflow", "jax", "torch"] = setting("auto", "Keras backend")
    gpus: tuple[int, ...] | None = setting(None, "indices of the GPUs to use, such as [0, 1]; []: none; unset: all", 0)
    num_devices: int = setting(1, "devices per host for data-parallel training; 0: all", 0)
    lr_scaling: Literal["none", "linear", "sqrt"] = setting(
        "none",
        "none: train.batch_size is the global batch, divided among the devices; linear, sqrt: it is the batch per "
        "device, and the learning rate is multiplied by the number of devices or its square root",
    )
    num_hosts: int = setting(1, "hosts that train together; recorded by `train --hosts`; do not set it", 1)
    memory_growth: bool = setting(True, "allocate GPU memory as needed instead of all at the start")
    data_on_device: Literal["auto", "on", "off"] = setting(
        "auto",
        "keep images on the device and run training steps without waiting for each other; auto: on JAX with one "
        "accelerator; the weights are the same",
    )
    feature_runtime: Literal["auto", "onnxruntime", "onnxruntime-int8", "openvino", "keras"] = setting(
        "auto",
        "runtime of frozen layers; auto: onnxruntime on CPUs, and onnxruntime-int8 for the training images of "
        "EfficientNet-Lite0, given AVX2 and 2 GB of memory; else keras; a message says if Keras replaces it",
    )
    threads: int = setting(0, "threads for computation and decoding; 0: one per core", 0, 1024)
    deterministic: bool = setting(False, "fail on nondeterministic operations; slower on a GPU, no effect on a CPU")
