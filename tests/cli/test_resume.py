"""Runs that were killed, stopped or out of disk, and `sightline resume`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from command import COLOURS, SMALL, Command, draw_classes
from killing import MAIN, MOMENTS, Place, after, history, run, weights
from sightline.training import checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals cannot be sent to one process on Windows")

DATA = "beans:100@32"
STAGES = """
[augment]
flip = true
rotation = 5
[[train.stages]]
name = "head"
thaw = 0
epochs = 2
views = 2
[[train.stages]]
name = "all"
thaw = -1
epochs = 2
"""
KINDS = {
    "scratch": ("--model", "cifar10-simple", "--epochs", 4, "--set", "train.checkpoint_steps=1"),
    "staged": ("--model", "cifar10-deep", "--set", "train.checkpoint_steps=3", "--set", "picture.height=16"),
}


def place(folder: Path) -> Place:
    return Place(folder / "run", folder / "cache")


def train(kind: str, where: Place) -> tuple[object, ...]:
    where.run.parent.mkdir(parents=True, exist_ok=True)
    stages = where.run.parent / "stages.toml"
    stages.write_text(STAGES if kind == "staged" else "", encoding="utf-8")
    common = ("--recipe", "quick", "--set", "train.batch_size=16", "--config", stages)
    return ("train", DATA, *common, *KINDS[kind], "--out", where.run, "--json")


def resume(where: Place) -> tuple[object, ...]:
    return ("resume", where.run, "--json")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[tuple[object, ...]]]]:
    """The weights and the history of each kind of run that nothing disturbs, once asked for."""

    class Found(dict[str, tuple[str, list[tuple[object, ...]]]]):
        def __missing__(self, kind: str) -> tuple[str, list[tuple[object, ...]]]:
            where = place(tmp_path_factory.mktemp(f"untouched-{kind}"))
            self[kind] = weights(run(where, train(kind, where))), history(where)
            return self[kind]

    return Found()


def test_killed_at_four_moments_on_one_core_at_last(untouched: Any, tmp_path: Path) -> None:
    """While indexing, while training, on one core while training further, and while evaluating."""
    where = place(tmp_path)
    assert run(where, train("staged", where), MOMENTS["indexing"]).killed
    assert not (where.run / "config.toml").exists()
    assert run(where, resume(where), MOMENTS["second epoch"]).killed
    assert run(where, resume(where), MOMENTS["later"], pinned=True).killed
    assert run(where, resume(where), MOMENTS["evaluation"]).killed
    ended = run(where, resume(where))
    assert weights(ended) == untouched["staged"][0]
    assert history(where) == untouched["staged"][1]
    assert json.loads((where.run / "run.json").read_text())["resumed"] == 4
    assert not list(where.run.rglob("*.part*"))
    assert not (where.run / "checkpoints").exists()
    again = run(where, resume(where))
    assert weights(again) == untouched["staged"][0]
    assert "nothing left to do" in again.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [*MOMENTS, *range(10)])
def test_killed_at_any_moment(untouched: Any, tmp_path: Path, kind: str, at: str | int) -> None:
    """Killed at the moment, soon after going on, and then gone on, every other time on one core."""
    where = place(tmp_path)
    chance = random.Random(f"{kind} {at}")
    moment = MOMENTS[at] if isinstance(at, str) else after(chance.uniform(1, 14))
    first = run(where, train(kind, where), moment)
    if not where.run.exists():
        pytest.skip("killed before there was a run")
    if first.killed:
        run(where, resume(where), after(chance.uniform(4, 10)))
    last = run(where, resume(where), pinned=chance.random() < 0.5)
    assert weights(last) == untouched[kind][0]
    assert history(where) == untouched[kind][1]
