"""Train on one or several devices in a subprocess, since a backend's devices are fixed when it starts.

`python multi_device.py OUT NETWORK DEVICES [ADDRESS COUNT RANK]` runs `main`, which trains with each number of devices
in DEVICES, such as 1,2, and writes the results for `read_results` to OUT, a path with ``{}`` for that number.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline import backend
from sightline.callbacks import Callback
from sightline.config import AugmentConfig, DeviceConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from sightline.data.types import Subset
from sightline.distributed import cluster, devices
from sightline.models.build import Network
from sightline.training.loop import fit

EPOCHS, BATCH = 3, 8
TRAINING, VALIDATION = 100, 21  # 13 steps per epoch, the last with 4 images: one of two devices gets none
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


@dataclass(frozen=True)
class TrainingOutcome:
    """The final weights, and the history."""

    weights: list[NDArray[Any]]
    history: list[dict[str, Any]]

    def distance(self, other: TrainingOutcome) -> float:
        """Return the maximum difference of any weight, including batch normalization statistics."""
        return max(float(np.abs(a - b).max()) for a, b in zip(self.weights, other.weights, strict=True))


def build_network(name: str) -> Network:
    keras = backend.keras()
    keras.utils.set_random_seed(1)
    layers = keras.layers
    pixels = keras.Input((12, 12, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, -1.0)(pixels)
    for width in (8, 16):
        x = layers.Conv2D(width, 3, strides=2, padding="same")(x)
        if name != "plain":
            x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.Flatten()(x)
    if name == "dropout":
        x = layers.Dropout(0.3)(x)
    logits = layers.Dense(4)(x)
    outputs = {"probabilities": layers.Softmax()(logits), "logits": logits, "features": x}
    return Network(keras.Model(pixels, outputs), (), pretrained=False)


def make_subset(count: int, seed: int) -> Subset:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, count).astype(np.int32)
    pixels = np.clip(draw.normal(60 + 40 * labels[:, None, None, None], 50, (count, 12, 12, 3)), 0, 255)
    return Subset(pixels.astype(np.uint8), np.arange(count), labels, tuple(f"{seed}-{i}" for i in range(count)))


def train(name: str, device: DeviceConfig, processes: int = 1, **settings: Any) -> tuple[Network, list[Any]]:
    config = RunConfig(
        augment=AugmentConfig(horizontal_flip=True, mixup=0.2 if name == "mixed" else 0.0),
        train=TrainConfig(
            epochs=EPOCHS, batch_size=BATCH, optimizer=OptimizerConfig("sgd", learning_rate=0.05),
            schedule=ScheduleConfig("cosine"), **settings,
        ),
        device=devices.resolve_devices(device, processes),
    )  # fmt: skip
    distribution = devices.create_distribution(config.device)
    with distribution.scope():
        model_network = build_network(name)
        fitted = fit(model_network, make_subset(TRAINING, 0), make_subset(VALIDATION, 1), config, Callback())
    return model_network, [record_values(record) for record in fitted.history]


def record_values(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}


def main(out: str, name: str, counts: str, *others: str) -> None:
    backend.configure("auto", None, memory_growth=True, threads=1)
    team = cluster.SINGLE_HOST
    if others:
        team = cluster.connect(cluster.ClusterSpec(others[0], int(others[1]), int(others[2])))
    elif backend.name() == "tensorflow":
        tf = backend.tensorflow()
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for count in counts.split(","):
        trained_network, history = train(name, replace(DeviceConfig(), num_devices=int(count)), team.count)
        weights = [np.asarray(w, np.float64) for w in trained_network.model.get_weights()]
        arrays = {f"w{i}": w for i, w in enumerate(weights)}
        np.savez(out.format(count), allow_pickle=False, history=np.array(json.dumps(history)), **arrays)
    team.disconnect()


def start_process(out: Path, kind: str, name: str, counts: str, *others: str) -> subprocess.Popen[str]:
    environment = (
        os.environ | {"KERAS_BACKEND": kind, "PYTHONPATH": os.pathsep.join(sys.path)} | ({} if others else TWO_DEVICES)
    )
    return subprocess.Popen(
        [sys.executable, __file__, str(out), name, counts, *others],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def read_results(process: subprocess.Popen[str], *files: Path) -> list[TrainingOutcome]:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-3000:]
    return list(map(read_result, files))


def read_result(file: Path) -> TrainingOutcome:
    with np.load(file, allow_pickle=False) as arrays:
        history = json.loads(str(arrays["history"]))
        return TrainingOutcome([arrays[f"w{i}"] for i in range(len(arrays.files) - 1)], history)


def free_address() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
