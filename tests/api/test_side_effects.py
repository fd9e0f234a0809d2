"""A program that imports and calls Sightline finds its own process as it was; the program is tests/library_use.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import library_use
from sightline._keras.imports import ENVIRONMENT

pytestmark = pytest.mark.backends


def run(mode: str, folder: Path) -> dict[str, Any]:
    Image.new("RGB", (20, 20), "red").save(folder / "image.png")
    environment = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT} | {"MPLBACKEND": "agg"}
    completed = subprocess.run(
        [sys.executable, library_use.__file__, mode], cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def drop_listed(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in changes.items() if name.removeprefix("environ ") not in ENVIRONMENT}


@pytest.mark.slow
def test_only_the_listed_variables_change(tmp_path: Path) -> None:
    """By a training, loading, a prediction and an evaluation, where settings are not the default."""
    assert drop_listed(run("configured", tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow",
    reason="where TensorFlow is installed, too, Keras imports it on other backends, which changes more",
)
def test_a_new_process_is_changed_by_the_frameworks_alone(tmp_path: Path) -> None:
    ours, theirs = run("new", tmp_path), run("frameworks", tmp_path)
    assert {name: values for name, values in drop_listed(ours).items() if name not in theirs} == {}
    assert "environ KERAS_BACKEND" not in ours


@pytest.mark.slow
def test_all_of_keras_works_afterwards(tmp_path: Path) -> None:
    assert run("wrappers", tmp_path) == {"predicted": 3}
    with Image.open(tmp_path / "gallery.png") as image:
        assert image.size[0] > 100
