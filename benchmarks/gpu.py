"""Compare training steps on one GPU: Sightline with images off and on the GPU, PyTorch, and the arithmetic limit.

    python benchmarks/gpu.py             a table of images/s for five networks, in under 8 minutes
    python benchmarks/gpu.py --tiny      the same with a few small images on the CPU, to try it
    python benchmarks/gpu.py --record    instead, the network of the CIFAR-10 record with five seeds: gpu_record.py

Images are random, the optimizer is Adam, the precision bfloat16. Each cell is measured in a separate process, which may
take `--seconds`; cells that take longer, and all cells without a GPU, stay empty and state the reason. Nothing is read
from the network. "before" and "after" are ``device.data_on_device`` off and on, on JAX. PyTorch runs channels last,
with autocast, fused Adam and images on the GPU. The limit is three times the multiplications of a forward pass at the
manufacturer's peak for bfloat16 without sparsity.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import plain_torch

EPOCHS = 3  # the first compiles; the fastest of the others counts
TOTAL_SECONDS = 8 * 60
PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
"""Dense bfloat16 TFLOP/s from NVIDIA's data sheets, by a part of the GPU's name; the first match counts."""


@dataclass(frozen=True, slots=True)
class Task:
    """A network of the registry, trained on `count` random images of size `side`."""

    name: str
    side: int
    count: int
    batch: int
    settings: tuple[str, ...] = ()

    def shrink(self) -> Task:
        """Return the same task with so few images, batches and epochs that a CPU trains it in seconds."""
        return Task(self.name, 32, 16, 8, self.settings)

    def make_arrays(self) -> tuple[Any, Any]:
        """Return uint8 images [N, side, side, 3] and labels int32 [N]; their content does not affect the speed."""
        images = np.random.default_rng(0).integers(0, 256, (self.count, self.side, self.side, 3), np.uint8)
        return images, (np.arange(self.count) % 10).astype(np.int32)


HEADLESS = ("model.hidden_units=[]", "model.pooling=average", "model.dropout=0")
TASKS = (
    Task("cifar10-deep", 32, 51200, 512),
    Task("resnet50", 224, 2048, 64, HEADLESS),
    Task("vgg16", 224, 2048, 64, HEADLESS),
    Task("mobilenetv2", 224, 2048, 64, ("model.alpha=1.0", *HEADLESS)),
    Task("efficientnet-lite0", 224, 2048, 64, HEADLESS),
)


def measure_sightline(task: Task, data_on_device: str) -> float:
    """Return the images/s of Sightline's loop on JAX in the fastest epoch after the first."""
    from sightline.callbacks import Callback
    from sightline.config import resolve_config
    from sightline.data.types import Subset
    from sightline.models.build import build_model
    from sightline.runs.environment import start_backend
    from sightline.training.loop import fit

    settings = [f"train.epochs={EPOCHS}", f"train.batch_size={task.batch}", "device.backend=jax"]
    config = resolve_config(assignments=[*settings, f"device.data_on_device={data_on_device}", *_list_settings(task)])
    start_backend(config.device)
    images, labels = task.make_arrays()
    subset = Subset(images, np.arange(len(images)), labels, tuple(map(str, range(len(images)))))
    network = build_model(_make_spec(task, "mixed_bfloat16"))
    history = fit(network, subset, subset.head(0), config, Callback()).history
    return max(record.images_per_second for record in history[1:])


def measure_torch(task: Task, *, is_compiled: bool) -> float:
    """Return the images/s of a plain PyTorch loop in the fastest epoch after the first."""
    import torch
    from torch.nn import functional

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    net = plain_torch.NETS[task.name](3, task.side, 10).to(device, memory_format=torch.channels_last).train()
    model = torch.compile(net) if is_compiled else net
    pixels, classes = task.make_arrays()
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).to(device, memory_format=torch.channels_last)
    labels = torch.from_numpy(classes.astype(np.int64)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True)
    speeds = []
    loss = torch.zeros(())
    for _ in range(EPOCHS):
        order = torch.randperm(task.count, device=device).view(-1, task.batch)
        started = time.perf_counter()
        for rows in order:
            with torch.autocast(device, torch.bfloat16):
                loss = functional.cross_entropy(model(images[rows].float().div(255)), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        float(loss.detach())  # waits for the device
        speeds.append(task.count / (time.perf_counter() - started))
    return float(max(speeds[1:]))


def compute_limit(task: Task, peak: float) -> float:
    """Return the images/s at `peak` TFLOP/s: a step has three times the multiply-adds of a forward pass."""
    from sightline.models.build import build_shapes_only
    from sightline.models.describe import describe_model

    description = describe_model(build_shapes_only(_make_spec(task, "float32")).model, task.name)
    return peak * 1e12 / (3 * 2 * description.multiply_adds)


WAYS = {
    "before": partial(measure_sightline, data_on_device="off"),
    "after": partial(measure_sightline, data_on_device="on"),
    "PyTorch, eager": partial(measure_torch, is_compiled=False),
    "PyTorch, compiled": partial(measure_torch, is_compiled=True),
}


def _list_settings(task: Task) -> list[str]:
    return [f"model.name={task.name}", "model.normalize=unit", *task.settings]


def _make_spec(task: Task, precision: str) -> Any:
    from sightline.config import resolve_config
    from sightline.models.build import ModelSpec

    config = resolve_config(assignments=_list_settings(task))
    return ModelSpec(config.model, task.side, task.side, 3, 10, precision=precision)


def find_gpu() -> str:
    """Return the name of the first NVIDIA GPU; "" without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return completed.stdout.strip().partition("\n")[0]


def run_cell(task: Task, way: str, seconds: float, *, tiny: bool) -> str:
    """Measure one cell in a separate process; return the images/s, or the reason why it is empty."""
    if seconds < 5:
        return "(no time left)"
    command = [sys.executable, __file__, "--one", task.name, way, *(["--tiny"] if tiny else [])]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
    except subprocess.TimeoutExpired:
        return f"(over {seconds:.0f} s)"
    except subprocess.CalledProcessError as error:
        return f"({(error.stderr.strip().splitlines() or ['failed'])[-1][:60]})"
    return f"{json.loads(completed.stdout.splitlines()[-1]):,.0f}"


def print_table(gpu: str, tasks: tuple[Task, ...], seconds: float, *, tiny: bool) -> None:
    """Print the table, each row as soon as it is measured."""
    peak = next((value for name, value in PEAKS.items() if name in gpu), 0)
    device = gpu or ("the CPU of JAX and PyTorch, tiny: no speeds of a GPU" if tiny else "no GPU: the cells stay empty")
    print(f"Training steps, images/s, Adam, bfloat16. {device}; {measure.describe_machine()}")
    print(f"{datetime.now(UTC):%Y-%m-%d}, commit {measure.read_commit()}\n")
    print(f"| network | {' | '.join(WAYS)} | limit by arithmetic |\n|{'---|' * (len(WAYS) + 2)}")
    ends = time.perf_counter() + TOTAL_SECONDS
    for task in tasks:
        cells = [task.name]
        for way in WAYS:
            left = min(seconds, ends - time.perf_counter())
            cells.append(run_cell(task, way, left, tiny=tiny) if gpu or tiny else "")
        cells.append(f"{compute_limit(task, peak):,.0f}" if peak and not tiny else "")
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table, or the speed of one cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=[task.name for task in TASKS], help="default: all")
    parser.add_argument("--seconds", type=float, default=90.0, help="limit of a cell, compilation included")
    parser.add_argument("--tiny", action="store_true", help="a few small images, without a GPU too")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="train the network of the CIFAR-10 record with 5 seeds")
    options = parser.parse_args()
    if options.record:
        script = str(Path(__file__).with_name("gpu_record.py"))
        subprocess.run([sys.executable, script, *(["--tiny"] if options.tiny else [])], check=True)
        return
    tasks = tuple(task.shrink() if options.tiny else task for task in TASKS)
    if options.one:
        name, way = options.one
        print(json.dumps(WAYS[way](next(task for task in tasks if task.name == name))))
        return
    if options.tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    selected = tuple(task for task in tasks if task.name in (options.networks or [each.name for each in TASKS]))
    print_table("" if options.tiny else find_gpu(), selected, options.seconds, tiny=options.tiny)


if __name__ == "__main__":
    main()
