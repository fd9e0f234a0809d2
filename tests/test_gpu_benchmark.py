"""`benchmarks/gpu.py` also runs without a GPU, with a few small images, on the CPU of JAX and PyTorch."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest

import sightline as sl
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
    ways = ["after"] if backend.name() == "jax" else ["PyTorch, eager"]  # compiling needs a C++ compiler
    assert all(gpu.WAYS[way](task) > 0 for way in ways)


@pytest.mark.backends
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 5))
def test_the_networks_of_pytorch_are_ours(number: int, gpu: ModuleType) -> None:
    """They have the same number of trainable weights."""
    if backend.name() != "torch":
        pytest.skip("only there is PyTorch sure to be installed")
    task = gpu.TASKS[number].shrink()
    ours = gpu._make_spec(task, "float32")
    model = importlib.import_module("sightline.models.build").build_shapes_only(ours).model
    theirs = gpu.plain_torch.NETS[task.name](3, task.side, 10)
    num_theirs = sum(weight.numel() for weight in theirs.parameters())
    assert num_theirs == sum(math.prod(weight.shape) for weight in model.trainable_weights)


@pytest.fixture
def record(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_record")


@pytest.mark.backends
@pytest.mark.usefixtures("plain_figures")
def test_the_network_of_the_record_trains(record: ModuleType, tmp_path: Path) -> None:
    """Everything from the images to six views of the test split, on the CPU of any backend."""
    settings = (*record.TINY, f"device.backend={backend.name()}")
    run = record.train_record(record.load_data(tiny=True), 0, tmp_path / "run", *settings)
    assert 0 <= min(run.accuracy, run.accuracy_of_views) <= max(run.accuracy, run.accuracy_of_views) <= 1
    assert run.training > 0
    recorded = sl.Run(tmp_path / "run")
    assert [record.epoch for record in recorded.history] == list(range(1, 9))
    train, model = recorded.config.train, recorded.config.model
    assert (model.name, train.optimizer.name, train.batch_size) == ("airbench", "muon", 2000)
    assert recorded.config.augment.alternating_flip
    assert recorded.validation is None


def test_what_the_first_epoch_takes_beyond_the_others_is_compilation(record: ModuleType) -> None:
    assert record.split_seconds([30.0, 0.25, 0.5, 0.25]) == (1.25, 29.75)
    assert record.split_seconds([0.25, 0.5, 0.5, 0.5]) == (1.75, 0.0)


def test_the_record_has_a_row_for_each_seed_and_their_mean(
    record: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    record.print_table("a GPU", [record.RecordRun(0.93 + seed / 100, 0.94, 1.5, seed) for seed in range(5)])
    table = capsys.readouterr().out
    assert "| 4 | 0.9700 | 0.9400 | 1.50 | 4.00 |" in table
    assert "| mean | 0.9500 | 0.9400 | 1.50 | 2.00 |" in table
    record.print_table("no GPU: the cells stay empty", [])
    table = capsys.readouterr().out
    assert "no GPU" in table
    assert all(f"| {name} |  |  |  |  |" in table for name in (*range(5), "mean"))


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
