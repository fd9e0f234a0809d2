"""A step on several devices equals a step on one: on two virtual devices of this machine, and in two processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from multi_device import free_address, read_results, start_process
from sightline import backend
from sightline.config import DeviceConfig, resolve_config
from sightline.distributed import devices
from sightline.errors import UsageError

TOLERANCE = 1e-5  # float32, 39 steps of SGD with momentum
CHANCE_ACCURACY = 0.25  # of guessing among four classes


def skip_unless_installed(kind: str) -> None:
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")


SLOW_JAX = (pytest.mark.slow, pytest.mark.installed)
CASES = [
    ("tensorflow", "normalized"),
    pytest.param("tensorflow", "plain", marks=pytest.mark.slow),
    pytest.param("jax", "normalized", marks=pytest.mark.installed),
    pytest.param("jax", "plain", marks=SLOW_JAX),
    pytest.param("jax", "dropout", marks=SLOW_JAX),  # the mask is sampled for the global batch
    pytest.param("jax", "mixed", marks=SLOW_JAX),  # partners may be on another device
]


@pytest.mark.slow_with("tensorflow-normalized")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_devices_end_with_the_weights_of_one(kind: str, name: str, tmp_path: Path) -> None:
    skip_unless_installed(kind)
    process = start_process(tmp_path / "{}.npz", kind, name, "1,2")  # in this order: two devices stay two
    one, two = read_results(process, tmp_path / "1.npz", tmp_path / "2.npz")
    print(f"{kind}, {name}: {one.distance(two):.2g}")  # noqa: T201  # the measured difference, shown by -s
    tolerance = TOLERANCE if name in {"plain", "normalized"} else 10 * TOLERANCE
    assert one.distance(two) < tolerance
    for first, second in zip(one.history, two.history, strict=True):
        assert first == pytest.approx(second, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "dropout"])
def test_independent_tensorflow_replicas_still_learn(name: str, tmp_path: Path) -> None:
    """Masks and partners come from the replica's own slice; labels still match their images."""
    process = start_process(tmp_path / "{}.npz", "tensorflow", name, "2")
    (result,) = read_results(process, tmp_path / "2.npz")
    assert result.history[-1]["val_accuracy"] > 2.5 * CHANCE_ACCURACY


@pytest.mark.slow
@pytest.mark.installed
@pytest.mark.parametrize("name", ["plain", "normalized", "mixed"])
def test_two_processes_end_with_the_weights_of_one(name: str, tmp_path: Path) -> None:
    skip_unless_installed("jax")
    (single,) = read_results(start_process(tmp_path / "{}.npz", "jax", name, "1"), tmp_path / "1.npz")
    address = free_address()
    files = [tmp_path / f"of{rank}.npz" for rank in (0, 1)]
    running = [start_process(file, "jax", name, "1", address, "2", str(rank)) for rank, file in enumerate(files)]
    both = [read_results(process, file)[0] for process, file in zip(running, files, strict=True)]
    print(f"processes, {name}: {single.distance(both[0]):.2g}")  # noqa: T201
    assert single.distance(both[0]) < (10 * TOLERANCE if name == "mixed" else TOLERANCE)
    assert both[0].distance(both[1]) == 0
    assert both[0].history == both[1].history


@pytest.mark.backends
def test_too_many_devices_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"device.num_devices is 64, but this host has only .*: use --devices"):
        devices.resolve_devices(DeviceConfig(num_devices=64))
    with pytest.raises(UsageError, match=r"A run resumes on as many devices"):
        devices.create_distribution(DeviceConfig(num_devices=64))


@pytest.mark.backends
@pytest.mark.parametrize("seen", [["cpu:0"], ["gpu:0"]])
def test_missing_gpus_are_rejected(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "list_local_devices", lambda: seen)
    for decide in (devices.resolve_devices, devices.create_distribution):  # a new run, a resumed one
        with pytest.raises(UsageError, match=r"device.gpus is \[0, 1\], but \w+ sees (no GPU|only 1 of them)"):
            decide(DeviceConfig(gpus=(0, 1)))


def test_visible_gpus_and_no_gpus_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.resolve_devices(DeviceConfig(gpus=())).gpus == ()
    monkeypatch.setattr(backend, "list_local_devices", lambda: ["gpu:0", "gpu:1"])
    assert devices.resolve_devices(DeviceConfig(gpus=(2, 3))).gpus == (2, 3)


def test_pytorch_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "list_local_devices", lambda: ["gpu:0", "gpu:1"])
    monkeypatch.setattr(backend, "name", lambda: "torch")
    with pytest.raises(UsageError, match="Keras cannot train on several devices with PyTorch"):
        devices.resolve_devices(DeviceConfig(num_devices=0))


@pytest.mark.backends
def test_all_devices_are_counted() -> None:
    assert devices.resolve_devices(DeviceConfig(num_devices=0)).num_devices == len(backend.list_devices())


@pytest.mark.backends
def test_without_a_distribution_a_batch_is_whole() -> None:
    assert devices.scale_batch_and_rate(DeviceConfig(lr_scaling="linear"), 30, 0.1) == (30, 0.1)
    assert devices.get_local_rows(30) == slice(0, 30)


@pytest.mark.parametrize(("scaling", "size", "rate"), [("none", 32, 0.1), ("linear", 128, 0.4), ("sqrt", 128, 0.2)])
def test_batch_and_rate_over_four_devices(
    scaling: str, size: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count_replicas", lambda: 4)
    scaled = devices.scale_batch_and_rate(resolve_config({"device": {"lr_scaling": scaling}}).device, 32, 0.1)
    assert scaled == pytest.approx((size, rate))


def test_a_batch_that_four_devices_cannot_divide_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_replicas", lambda: 4)
    with pytest.raises(UsageError, match=r"batch of 30 cannot be divided evenly among 4 devices.*such as 32"):
        devices.scale_batch_and_rate(DeviceConfig(), 30, 0.1)
