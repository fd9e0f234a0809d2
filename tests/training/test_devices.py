"""A step on several devices equals a step on one: on two virtual devices of this machine, and in two processes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from sightline import backend
from sightline.config import DeviceConfig, resolve
from sightline.errors import UsageError
from sightline.training import devices
from spreading import free_address, read, start

NEAR = 1e-5  # float32, 39 steps of SGD with momentum
CHANCE = 0.25  # of guessing among four classes


def needs(kind: str) -> None:
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")


CASES = [
    ("tensorflow", "normalised"),
    pytest.param("tensorflow", "plain", marks=pytest.mark.slow),
    pytest.param("jax", "normalised", marks=pytest.mark.installed),
    pytest.param("jax", "plain", marks=pytest.mark.slow),
    pytest.param("jax", "dropout", marks=pytest.mark.slow),  # the mask is sampled for the global batch
    pytest.param("jax", "mixed", marks=pytest.mark.slow),  # partners may be on another device
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_devices_end_with_the_weights_of_one(kind: str, name: str, tmp_path: Path) -> None:
    needs(kind)
    running = {count: start(tmp_path / f"{count}.npz", kind, name, count) for count in (1, 2)}
    one, two = (read(tmp_path / f"{count}.npz", process) for count, process in running.items())
    print(f"{kind}, {name}: {one.distance(two):.2g}")  # noqa: T201  # the measured difference, shown by -s
    near = NEAR if name in {"plain", "normalised"} else 10 * NEAR
    assert one.distance(two) < near
    for first, second in zip(one.history, two.history, strict=True):
        assert first == pytest.approx(second, abs=near)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixed", "dropout"])
def test_what_a_device_of_tensorflow_does_by_itself_still_learns(name: str, tmp_path: Path) -> None:
    """Masks and partners come from the replica's own slice; labels still match their images."""
    found = read(tmp_path / "2.npz", start(tmp_path / "2.npz", "tensorflow", name, 2))
    assert found.history[-1]["val_accuracy"] > 2.5 * CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "normalised", "mixed"])
def test_two_processes_end_with_the_weights_of_one(name: str, tmp_path: Path) -> None:
    needs("jax")
    alone = read(tmp_path / "1.npz", start(tmp_path / "1.npz", "jax", name, 1))
    address = free_address()
    running = [start(tmp_path / f"of{rank}.npz", "jax", name, 1, address, "2", str(rank)) for rank in (0, 1)]
    both = [read(tmp_path / f"of{rank}.npz", process) for rank, process in enumerate(running)]
    print(f"processes, {name}: {alone.distance(both[0]):.2g}")  # noqa: T201
    assert alone.distance(both[0]) < (10 * NEAR if name == "mixed" else NEAR)
    assert both[0].distance(both[1]) == 0
    assert both[0].history == both[1].history


@pytest.mark.backends
def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(UsageError, match=r"device.count is 64, but this host has only .*: use --devices"):
        devices.settled(DeviceConfig(count=64))
    with pytest.raises(UsageError, match=r"A run resumes on as many devices"):
        devices.spread(DeviceConfig(count=64))


@pytest.mark.backends
@pytest.mark.parametrize("seen", [["cpu:0"], ["gpu:0"]])
def test_gpus_that_are_not_there_are_refused(seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_here", lambda: seen)
    for decide in (devices.settled, devices.spread):  # a new run, a resumed one
        with pytest.raises(UsageError, match=r"device.gpus is \[0, 1\], but \w+ sees (no GPU|only 1 of them)"):
            decide(DeviceConfig(gpus=(0, 1)))


def test_gpus_that_are_there_and_none_at_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.settled(DeviceConfig(gpus=())).gpus == ()
    monkeypatch.setattr(devices, "_here", lambda: ["gpu:0", "gpu:1"])
    assert devices.settled(DeviceConfig(gpus=(2, 3))).gpus == (2, 3)


def test_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_here", lambda: ["gpu:0", "gpu:1"])
    monkeypatch.setattr(backend, "name", lambda: "torch")
    with pytest.raises(UsageError, match="Keras cannot train on several devices with PyTorch"):
        devices.settled(DeviceConfig(count=0))


@pytest.mark.backends
def test_all_devices_are_counted_and_written_down() -> None:
    assert devices.settled(DeviceConfig(count=0)).count == len(backend.devices())


@pytest.mark.backends
def test_without_a_distribution_a_batch_is_whole() -> None:
    assert devices.scaled(DeviceConfig(scaling="linear"), 30, 0.1) == (30, 0.1)
    assert devices.share(30) == slice(0, 30)


@pytest.mark.parametrize(("scaling", "size", "rate"), [("none", 32, 0.1), ("linear", 128, 0.4), ("sqrt", 128, 0.2)])
def test_batch_and_rate_over_four_devices(
    scaling: str, size: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "replicas", lambda: 4)
    found = devices.scaled(resolve({"device": {"scaling": scaling}}).device, 32, 0.1)
    assert found == pytest.approx((size, rate))


def test_a_batch_that_four_devices_cannot_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "replicas", lambda: 4)
    with pytest.raises(UsageError, match=r"batch of 30 cannot be divided evenly among 4 devices.*such as 32"):
        devices.scaled(DeviceConfig(), 30, 0.1)
