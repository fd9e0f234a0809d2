"""Commands report a missing optional package before their work, not after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from command import Command

WORK = (
    "sightline.runs.network_setup.build_dataset", "sightline.api.compression.load",
    "sightline.api.ood_evaluation.OutputReader", "sightline.api.preview._decode_images",
    "sightline.sweeps.runner.prepare_folder",
)  # fmt: skip
"""The functions with which the work of the commands begins."""


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a command begins its work."""

    def work(*_arguments: Any, **_options: Any) -> Any:
        pytest.fail("work was begun")

    for name in WORK:
        monkeypatch.setattr(name, work)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("arguments", "package", "brought"),
    [
        ("train {data} --recipe quick --out {tmp}/new", "onnx", ("onnx", "train")),
        ("train {data} --recipe quick --out {tmp}/new", "matplotlib", ("matplotlib", "train")),
        ("train {data} --recipe quick --out {tmp}/new", "tomlkit", ("tomlkit", "train")),
        ("train {data} --out {tmp}/new --track tensorboard", "tensorboard", ("tensorboard", "train")),
        ("train {data} --out {tmp}/new --track mlflow", "mlflow", ("mlflow-skinny", "mlflow")),
        ("train {data} --out {tmp}/new --track wandb", "wandb", ("wandb", "wandb")),
        ("compress {run} --out {tmp}/new", "onnx", ("onnx", "train")),
        ("evaluate {run}", "matplotlib", ("matplotlib", "train")),
        ("evaluate {run} --find-label-issues {tmp}/new", "cleanlab", ("cleanlab", "labels")),
        ("preview {data} --out {tmp}/new.png", "matplotlib", ("matplotlib", "train")),
        ("serve {run}", "uvicorn", ("uvicorn", "serve")),
        ("sweep {data} transfer-table --out {tmp}/new", "optuna", ("optuna", "sweep")),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else None,
)
def test_a_missing_package_is_named_before_the_work(
    sightline: Command, trained: tuple[Path, dict[str, Any]], colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, arguments: str, package: str, brought: tuple[str, str],
) -> None:  # fmt: skip
    name, extra = brought
    monkeypatch.setitem(sys.modules, package, None)
    result = sightline(*(word.format(data=colors, run=trained[0], tmp=tmp_path) for word in arguments.split()))
    assert result.code == 2, result.err
    assert f"needs the package '{name}', which is not installed: pip install \".[{extra}]\"" in result.err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_report_needs_no_package_of_training(
    sightline: Command, trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("matplotlib", "keras", "onnx", "tomlkit", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    assert sightline("report", trained[0]).code == 0


def test_a_missing_package_is_named_where_images_are_counted_meanwhile(
    sightline: Command, trained: tuple[Path, dict[str, Any]], colors: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The thread that counts the images meets the file, too."""
    (tmp_path / "shard.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = sightline("predict", trained[0], colors, tmp_path / "shard.parquet", "--format", "csv")
    assert (result.code, result.err.count("needs the package 'pyarrow', which is not installed")) == (2, 1)
    assert "Traceback" not in result.err
