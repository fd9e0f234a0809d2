"""The wheel without extras in a separate environment, as installed to predict from a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import COLOURS, draw_classes

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
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with only the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", str(wheel)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the wheel's dependencies cannot be installed here: {done.stderr.strip()[-200:]}")
    return python


@pytest.mark.slow
def test_a_bundle_predicts_where_only_the_wheel_is_installed(alone: Path, tmp_path: Path) -> None:
    from sightline import predict, train

    colours = draw_classes(tmp_path / "colours", COLOURS, 20)
    run = tmp_path / "run"
    settings = ["model.name=mobilenetv2", "model.alpha=1.0", "picture.height=224", "train.epochs=1"]
    train(colours, recipe="quick", set=settings, out=run)
    pictures = colours / "red"
    done = subprocess.run(
        [str(alone), "-c", PEAK, "predict", str(run / "bundle"), str(pictures), "--json"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["probability"] for line in done.stdout.splitlines()]
    assert found == pytest.approx([answer.probability for answer in predict(run, pictures)], abs=1e-6)
    assert len(found) == 20
    assert int(done.stderr.split()[-1]) < 300 * 1024  # kB of peak memory


@pytest.mark.slow
def test_the_installation_is_small(alone: Path) -> None:
    site = alone.parents[1] / "lib"
    ours = {"pip", "setuptools", "pkg_resources", "__pycache__"}  # part of the environment, or compiled on use
    size = sum(p.stat().st_size for p in site.rglob("*") if p.is_file() and not ours & set(p.parts))
    assert size < MEGABYTES * 10**6, f"{size / 10**6:.0f} MB"
    listed = subprocess.run([str(alone), "-m", "pip", "list", "--format=json"], capture_output=True, check=True)
    assert not {p["name"] for p in json.loads(listed.stdout)} & {
        "keras",
        "tensorflow",
        "onnx",
        "matplotlib",
        "pydantic",
    }
