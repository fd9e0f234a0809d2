"""Telling from files and variables which accelerators there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sightline import backend
from sightline._keras import accelerators


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Simulate a machine with a GPU of NVIDIA, and JAX's package for it."""
    (tmp_path / "jax_cuda12_plugin.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(accelerators, "NVIDIA_FILES", (str(tmp_path), "/dev/missing"))
    monkeypatch.setattr(accelerators, "TPU_FILE", "/dev/missing")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_jax_for_cuda_needs_a_gpu(gpu_machine: pytest.MonkeyPatch) -> None:
    assert accelerators.has_accelerated_jax()
    gpu_machine.setattr(accelerators, "NVIDIA_FILES", ("/dev/missing",))
    assert not accelerators.has_accelerated_jax()


@pytest.mark.parametrize(
    ("visible", "is_hidden"),
    [("", True), ("-1", True), ("-1,0", True), ("0", False), ("1,-1", False), ("GPU-8", False)],
)
def test_a_gpu_that_is_hidden_is_none(gpu_machine: pytest.MonkeyPatch, visible: str, is_hidden: bool) -> None:
    gpu_machine.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert accelerators.hides_gpus() == is_hidden
    assert accelerators.has_accelerated_jax() != is_hidden


def run_python(code: str) -> list[str]:
    """Return the lines that a new Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.backends
def test_jax_for_cuda_computes_on_the_cpu_where_every_gpu_is_hidden(gpu_machine: pytest.MonkeyPatch) -> None:
    gpu_machine.delenv("JAX_PLATFORMS", raising=False)
    folder = Path(accelerators.NVIDIA_FILES[0])
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import os; from sightline import backend;"
        f"backend.configure({backend.name()!r}, (), memory_growth=True, threads=1);"
        "print(os.environ.get('JAX_PLATFORMS'), *backend.list_local_devices())"
    )
    assert run_python(code) == ["cpu cpu:0" if backend.name() == "jax" else "None cpu:0"]


@pytest.mark.backends
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_device_that_jax_cannot_start_is_one_sentence(gpu_machine: pytest.MonkeyPatch, platform: str) -> None:
    gpu_machine.setenv("JAX_PLATFORMS", platform)
    lines = run_python(
        "from sightline import backend, errors\n"
        "for list_devices in (backend.list_devices, backend.list_local_devices):\n"
        "    try: print(*list_devices())\n"
        "    except errors.UsageError as error: print(error)"
    )
    assert len(lines) == 2
    if backend.name() == "jax":
        assert all(line.startswith("JAX cannot start here: ") and "JAX_PLATFORMS=cpu" in line for line in lines)
    else:
        assert lines == ["cpu:0", "cpu:0"], "the variable is JAX's alone"
