"""Run the command line in this process, and train one small run that many tests share."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command import COLORS, Command, Outcome, draw_classes
from hostile_names import FOLDER, RUN, draw_hostile
from hub_server import TOKEN, Hub, run_hub
from sightline import process, progress
from sightline.cli import main


@pytest.fixture
def sightline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``sightline ARGUMENTS...`` in this process; return its exit code and output."""
    for name in ("SHORT_SECONDS", "FIRST_LINE_SECONDS"):  # no output depends on the speed of the machine
        monkeypatch.setattr(progress, name, math.inf)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(process, "_claimed", False)  # `main` sets it, and monkeypatch restores it
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server, and a login of huggingface_hub in an empty home."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    with run_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is another service
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))
        yield server
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three classes that differ in color, with 40 images of 32x32 each."""
    return draw_classes(tmp_path_factory.mktemp("data") / "colors", COLORS, 40)


@pytest.fixture(scope="session")
def trained(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run on `colors`, and its ``--format json`` output."""
    from sightline.api.training import train_run

    path = tmp_path_factory.mktemp("runs") / "run"
    assignments = ["model.name=cifar10-simple", "model.hidden_units=[96]", "train.epochs=2"]
    return path, train_run(colors, recipe="quick", set=assignments, out=path).to_dict()


@pytest.fixture(scope="session")
def hostile_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four classes of 12 images; their names and that of the folder are hostile."""
    return draw_hostile(tmp_path_factory.mktemp("hostile") / FOLDER)


@pytest.fixture(scope="session")
def hostile_run(hostile_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `hostile_images`, in a folder with a hostile name."""
    from sightline.api.training import train_run

    out = tmp_path_factory.mktemp("hostile-runs") / RUN
    settings = ["model.name=cifar10-simple", "model.hidden_units=[64]", "train.epochs=1"]
    train_run(hostile_images, recipe="quick", set=settings, out=out)
    return out
