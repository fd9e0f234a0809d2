"""`benchmarks/gpu.py` runs without a GPU too: with a few small images, on the CPU of JAX and of PyTorch."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest

from sightline import backend

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.mark.backends
def test_every_way_of_this_backend_trains(gpu: ModuleType) -> None:
    task = gpu.TASKS[0].shrink()
    if backend.name() == "tensorflow":
        pytest.skip("the benchmark compares JAX and PyTorch")
    ways = ["after"] if backend.name() == "jax" else ["PyTorch, eager"]  # to compile takes a C++ compiler
    assert all(gpu.WAYS[way](task) > 0 for way in ways)


@pytest.mark.backends
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
def test_the_networks_of_pytorch_are_ours(number: int, gpu: ModuleType) -> None:
    """They have as many weights that are trained, whatever they are compared on."""
    if backend.name() != "torch":
        pytest.skip("only there is PyTorch sure to be installed")
    task = gpu.TASKS[number].shrink()
    ours = gpu._make_spec(task, "float32")
    model = importlib.import_module("sightline.models.build").build_shapes_only(ours).model
    theirs = gpu.plain_torch.NETS[task.name](3, task.side, 10)
    num_theirs = sum(weight.numel() for weight in theirs.parameters())
    assert num_theirs == sum(math.prod(weight.shape) for weight in model.trainable_weights)


def test_cells_stay_empty_without_a_gpu(
    gpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: "")
    gpu.print_table(gpu.find_gpu(), gpu.TASKS, 1, tiny=False)
    table = capsys.readouterr().out
    assert "no GPU: the cells stay empty" in table
    for task in gpu.TASKS:
        assert f"| {task.name} |  |  |  |  |  |" in table


def test_the_limit_is_that_of_the_multiplications(gpu: ModuleType) -> None:
    """VGG16 multiplies and adds 15.3e9 times in its convolutions for an image of 224x224 (Simonyan, 2015)."""
    vgg16 = next(task for task in gpu.TASKS if task.name == "vgg16")
    assert gpu.compute_limit(vgg16, 989) == pytest.approx(989e12 / (6 * 15.35e9), rel=0.01)
