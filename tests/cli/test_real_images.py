"""Complete runs on real photographs; slow, and need the shared data and ImageNet weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import Command

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(shared / "keras"))


def test_cats_and_dogs_by_transfer(sightline: Command, shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "cats_vs_dogs"
    accuracies = []
    for seed in range(3):
        run = tmp_path / f"r{seed}"
        payload = sightline(
            "train", data, "--recipe", "transfer", "--seed", seed, "--out", run, "--format", "json"
        ).json
        accuracies.append(payload["test"]["accuracy"])
    assert min(accuracies) >= 0.975
    assert sum(accuracies) / 3 >= 0.98
    named = sightline("predict", tmp_path / "r0", data / "test" / "cat", "--format", "json").lines
    assert len(named) == 120
    assert sum(line.get("label") == "cat" for line in named) >= 108


def test_flowers_by_auto(sightline: Command, shared: Path, tmp_path: Path) -> None:
    result = sightline("train", shared / "data" / "flowers5", "--out", tmp_path / "r", "--format", "json")
    assert result.json["model"] == "efficientnet-lite0"
    assert (
        result.json["test"]["accuracy"] > 0.72
    )  # 0.770 on the split of benchmarks/results/transfer.md; the head: 0.745


def test_digits_and_beans(sightline: Command, tmp_path: Path) -> None:
    digits = sightline("train", "digits", "--out", tmp_path / "d", "--format", "json").json
    assert digits["test"]["accuracy"] > 0.95
    beans = sightline("train", "beans:800@64", "--recipe", "quick", "--out", tmp_path / "b", "--format", "json").json
    assert beans["test"]["accuracy"] > 0.85
