"""`benchmarks/compare_peers.py` on images of several seeds: dependent predictions are not counted twice."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sightline import intervals
from sightline.evaluation.paired import mcnemar_p_value

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMAGES = 240
WRONG = {"fast": 2, "fast:input.height=96": 9}  # number of the first test images, the same for every seed


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark with a set whose test split is the same for every seed, and two models without a seed."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("compare_peers")

    def list_images(_name: str, _seed: int, folder: Path) -> Iterator[tuple[str, str, str]]:
        yield f"{folder}/train/0.png", "cat", "train"
        yield from ((f"{folder}/test/{number}.png", "cat", "test") for number in range(IMAGES))

    def run_effort(_manifest: Path, effort: str, _seed: int, _folder: Path) -> tuple[list[bool], float]:
        return [number >= WRONG[effort] for number in range(IMAGES)], 1.0

    monkeypatch.setattr(module, "list_images", list_images)
    monkeypatch.setattr(module, "run_effort", run_effort)
    return module


def run_seeds(
    peers: ModuleType, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    options = ["--sets", "pets", "--only", *WRONG, "--seeds", *map(str, range(count))]
    monkeypatch.setattr(sys, "argv", ["compare_peers.py", *options])
    peers.main()
    return capsys.readouterr().out


def test_seeds_that_give_the_same_model_tell_no_more_than_one(
    peers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, three = (run_seeds(peers, count, monkeypatch, capsys) for count in (1, 3))
    assert ("240 test images, 1 seed\n" in one, "240 test images, 3 seeds" in three) == (True, True)
    for table in (one, three):
        assert f"(p = {mcnemar_p_value(7, 0):.3g})" in table
    (low, high), (grouped_low, grouped_high) = (
        map(float, re.findall(r"0\.9625 \| (\S+) to (\S+) \|", table)[0]) for table in (one, three)
    )
    assert (low, high) == pytest.approx(intervals.wilson_interval(231, 240), abs=1e-4)
    assert grouped_high - grouped_low == pytest.approx(high - low, rel=0.1)
    assert low < high
