"""The wheel without extras in a separate environment, as installed to predict from a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import COLORS, draw_classes

REPOSITORY = Path(__file__).resolve().parents[1]
MEGABYTES = 200  # NumPy, Pillow and ONNX Runtime alone take 145 to 166
PEAK = r"""
import re, sys
from pathlib import Path
from sightline.cli import main
sys.argv = ["sightline", *sys.argv[1:]]
try:
    main()
finally:
    print(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    completed = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(wheel)], capture_output=True, text=True, check=False
    )
    if completed.returncode:
        pytest.skip(f"the wheel's dependencies cannot be installed here: {completed.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
def test_a_bundle_predicts_where_only_the_wheel_is_installed(wheel_python: Path, tmp_path: Path) -> None:
    from sightline import load, train

    colors = draw_classes(tmp_path / "colors", COLORS, 20)
    run = tmp_path / "run"
    settings = ["model.name=mobilenetv2", "model.alpha=1.0", "input.height=224", "train.epochs=1"]
    train(colors, recipe="quick", set=settings, out=run)
    images = colors / "red"
    completed = subprocess.run(
        [str(wheel_python), "-c", PEAK, "predict", str(run / "bundle"), str(images), "--format", "json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    probabilities = [json.loads(line)["probability"] for line in completed.stdout.splitlines()]
    assert probabilities == pytest.approx(
        [prediction.probability for prediction in load(run).predict(images)], abs=1e-6
    )
    assert len(probabilities) == 20
    assert int(completed.stderr.split()[-1]) < 300 * 1024  # kB of peak memory


@pytest.mark.slow
def test_the_installation_is_small(wheel_python: Path) -> None:
    site = wheel_python.parents[1] / "lib"
    ours = {"pip", "setuptools", "pkg_resources", "__pycache__"}  # part of the environment, or created on use
    size = sum(p.stat().st_size for p in site.rglob("*") if p.is_file() and not ours & set(p.parts))
    assert size < MEGABYTES * 10**6, f"{size / 10**6:.0f} MB"
    completed = subprocess.run(
        [str(wheel_python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True
    )
    assert not {p["name"] for p in json.loads(completed.stdout)} & {
        "keras",
        "tensorflow",
        "onnx",
        "matplotlib",
        "pydantic",
    }
