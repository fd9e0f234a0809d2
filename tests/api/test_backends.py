"""A whole run on each backend that is installed; the suite itself runs on TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("tensorflow", marks=pytest.mark.slow),  # what most other tests do
        *(pytest.param(name, marks=pytest.mark.installed) for name in ("jax", "torch")),
    ],
)
def test_a_run_on_each_backend(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-m", "sightline"]
    train = [
        *command,
        "train",
        "digits",
        "--model",
        "cifar10-simple",
        "--epochs",
        "2",
        "--out",
        "r",
        "--format",
        "json",
    ]
    augment = ["--set", "augment.rotation=5"]
    done = subprocess.run(
        [*train, *augment], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["test"]["accuracy"] > 0.5
    evaluation = subprocess.run(
        [*command, "evaluate", "r", "--format", "json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(evaluation.stdout)["accuracy"] == json.loads(done.stdout)["test"]["accuracy"]
