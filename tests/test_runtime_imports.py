"""ONNX Runtime and OpenVINO are imported lazily, in one place, with telemetry disabled."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline import runtime_imports

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sightline"


def run(code: str, home: Path) -> str:
    """Run Python code in a new process with the empty home folder `home`; return its output."""
    home.mkdir()
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "SIGHTLINE_")) and k != "CI"
    }
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment | {"HOME": str(home)}
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_they_are_imported_in_one_place() -> None:
    """Nothing else may import them first: telemetry cannot be disabled afterwards."""
    places = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in {"onnxruntime", "openvino"} for name in names):
                places.add(path.relative_to(SOURCE).as_posix())
    assert places == set(), "runtimes.py imports them by name"


def test_import_sightline_imports_no_runtime(tmp_path: Path) -> None:
    code = "import sys, sightline; sightline.load; print([m for m in ('onnxruntime', 'openvino') if m in sys.modules])"
    assert run(code, tmp_path / "home") == "[]\n"


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    runtime_imports.import_onnx_runtime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    assert runtime_imports.import_onnx_runtime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_openvino_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = """
import sys
from sightline import runtimes
openvino = runtimes.openvino()
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry  # it can still be imported afterwards
"""
    assert run(code, tmp_path / "home") == "[]\n"
    assert list((tmp_path / "home").rglob("*")) == []
