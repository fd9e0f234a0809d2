"""Choose a backend without importing any."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sightline import backend, process
from sightline._keras import accelerators
from sightline.backend import BACKENDS, Backend, BackendChoice
from sightline.errors import MissingExtraError, UsageError


@pytest.fixture
def no_keras(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Simulate a fresh process: Keras not imported, no environment variable, all backends installed."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "")  # makes monkeypatch restore it even if it was unset
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setattr(backend, "list_installed", lambda: BACKENDS)
    monkeypatch.setattr(accelerators, "has_accelerated_jax", lambda: False)
    monkeypatch.setattr(backend, "_reasons", {})
    return monkeypatch


def pretend_loaded(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    spec = importlib.machinery.ModuleSpec("keras", None)
    fake = SimpleNamespace(backend=SimpleNamespace(backend=lambda: name), __spec__=spec)
    monkeypatch.setitem(sys.modules, "keras", fake)
    return fake


def test_first_installed_is_taken(no_keras: pytest.MonkeyPatch) -> None:
    assert backend.choose_backend() == BackendChoice("tensorflow", "the fastest on a CPU of those installed")
    no_keras.setattr(backend, "list_installed", lambda: ("jax", "torch"))
    assert backend.choose_backend().name == "jax"
    no_keras.setattr(backend, "list_installed", lambda: ("torch",))
    assert backend.choose_backend() == BackendChoice("torch", "the only one installed")


@pytest.mark.parametrize("name", BACKENDS)
def test_setting_goes_before_environment_before_table(no_keras: pytest.MonkeyPatch, name: Backend) -> None:
    no_keras.setenv("KERAS_BACKEND", name)
    assert backend.choose_backend() == BackendChoice(name, "set by KERAS_BACKEND")
    no_keras.setenv("KERAS_BACKEND", "")
    assert backend.choose_backend().name == "tensorflow"
    no_keras.setenv("KERAS_BACKEND", "tensorflow" if name != "tensorflow" else "jax")
    assert backend.choose_backend(name) == BackendChoice(name, "set by device.backend")


def test_keras_in_use_decides(no_keras: pytest.MonkeyPatch) -> None:
    pretend_loaded(no_keras, "jax")
    no_keras.setenv("KERAS_BACKEND", "torch")
    assert backend.choose_backend() == backend.choose_backend("jax") == BackendChoice("jax", "already in use")
    with pytest.raises(UsageError, match=r"Keras already runs on jax in this process; start a new process for torch\."):
        backend.choose_backend("torch")


def test_keras_on_a_backend_that_cannot_train_is_an_error(no_keras: pytest.MonkeyPatch) -> None:
    pretend_loaded(no_keras, "numpy")
    with pytest.raises(
        UsageError, match=r"Unknown backend 'numpy' \(already in use\)\. Valid names: jax, tensorflow, torch\."
    ):
        backend.name()


def test_none_installed_names_the_install_line(no_keras: pytest.MonkeyPatch) -> None:
    no_keras.setattr(backend, "list_installed", tuple)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[train,tensorflow\]"'):
        backend.choose_backend()


def test_missing_backend_says_who_asked_and_what_to_install(no_keras: pytest.MonkeyPatch) -> None:
    no_keras.setattr(backend, "list_installed", lambda: ("tensorflow",))
    with pytest.raises(MissingExtraError) as caught:
        backend.choose_backend("jax")
    assert "set by device.backend" in str(caught.value)
    assert 'pip install ".[train,jax]"' in str(caught.value)
    no_keras.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(MissingExtraError, match=r"set by KERAS_BACKEND.*\.\[train,torch\]"):
        backend.choose_backend()


def test_unknown_backend_offers_the_nearest(no_keras: pytest.MonkeyPatch) -> None:
    no_keras.setenv("KERAS_BACKEND", "tensorflw")
    with pytest.raises(UsageError, match=r"'tensorflw' \(set by KERAS_BACKEND\)\. Did you mean 'tensorflow'\?"):
        backend.choose_backend()


def test_installed_asks_for_each_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[str] = []

    def find(name: str, package: str | None = None) -> importlib.machinery.ModuleSpec | None:
        requested.append(name)
        return None if name == "jax" else importlib.machinery.ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert backend.list_installed() == ("tensorflow", "torch")
    assert requested == list(BACKENDS)


def _run_without_choice(code: str) -> str:
    """Return the output of a new Python process that runs `code` without `KERAS_BACKEND`."""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip()


def test_choosing_imports_nothing() -> None:
    code = (
        "import sys; from sightline import backend; backend.choose_backend();"
        "print([m for m in ('keras', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    )
    assert _run_without_choice(code) == "[]"


def test_threads_that_need_keras_first_all_get_the_whole_module() -> None:
    _run_without_choice(
        "from concurrent.futures import ThreadPoolExecutor; from sightline import backend; "
        "list(ThreadPoolExecutor(4).map(lambda _: backend.keras().saving.load_model, range(4)))"
    )


def test_keras_missing_names_the_extra(no_keras: pytest.MonkeyPatch) -> None:
    no_keras.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(MissingExtraError, match=r"'keras'.*\.\[train,tensorflow\]"):
        backend.keras()


def test_keras_in_use_is_handed_out_and_never_switched(no_keras: pytest.MonkeyPatch) -> None:
    fake = pretend_loaded(no_keras, "jax")
    assert backend.keras() is fake
    assert backend.keras("jax") is fake
    with pytest.raises(UsageError, match="Keras already runs on jax"):
        backend.keras("tensorflow")


def test_an_accelerated_jax_goes_first(no_keras: pytest.MonkeyPatch) -> None:
    no_keras.setattr(accelerators, "has_accelerated_jax", lambda: True)
    assert backend.choose_backend() == BackendChoice("jax", "the fastest on this machine's accelerator")
    no_keras.setattr(backend, "list_installed", lambda: ("tensorflow",))
    assert backend.choose_backend().name == "tensorflow"


FRESH = """
import os, sys
from sightline import backend
backend.configure("auto", {gpus}, memory_growth={growth}, threads=0)
print(backend.choose_backend().reason)
print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["TF_FORCE_GPU_ALLOW_GROWTH"])
print(sorted({{"sklearn", "matplotlib"}} & sys.modules.keys()))
print(backend.get_threads(), backend.tensorflow().config.threading.get_intra_op_parallelism_threads())
"""


@pytest.mark.slow_with("[]-True--1 true")
@pytest.mark.parametrize(
    ("gpus", "growth", "expected"),
    [("[]", True, "-1 true"), ("[0, 2]", False, "0,2 false"), ("None", True, "None true")],
)
def test_a_fresh_start(gpus: str, growth: bool, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "TF_", "XLA_", "KERAS_BACKEND"))}
    code = FRESH.format(gpus=gpus, growth=growth)
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    why, environment_values, imported, threads = completed.stdout.splitlines()
    assert why in {"the only one installed", "the fastest on a CPU of those installed"}, "not: already in use"
    assert environment_values == expected
    assert all(importlib.util.find_spec(name) for name in ("sklearn", "matplotlib"))
    assert imported == "[]", "Keras should not have imported these, which takes as long as Keras itself"
    assert threads.split() == [str(process.count_cores())] * 2
    assert "oneDNN" not in completed.stderr


def test_gpus_of_a_running_backend_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    backend.keras()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    backend.configure("auto", [0], memory_growth=True, threads=0)
    with pytest.raises(UsageError, match="start a new process"):
        backend.configure("auto", [1], memory_growth=True, threads=0)


def test_threads_are_handed_to_the_backend(no_keras: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    threading = SimpleNamespace(
        set_intra_op_parallelism_threads=lambda n: calls.append(("intra", n)),
        set_inter_op_parallelism_threads=lambda n: calls.append(("inter", n)),
    )
    fake = SimpleNamespace(config=SimpleNamespace(threading=threading))
    no_keras.setattr(backend, "tensorflow", lambda: fake)
    backend.set_threads(6)
    assert calls == [("intra", 6), ("inter", 6)]
    torch = SimpleNamespace(set_num_threads=lambda n: calls.append(("torch", n)))
    no_keras.setitem(sys.modules, "torch", torch)
    pretend_loaded(no_keras, "torch")
    backend.set_threads(3)
    assert calls[-1] == ("torch", 3)


def test_threads_of_a_running_backend_stay() -> None:
    keras = backend.keras()
    keras.ops.add(1, 1)
    backend.set_threads(1)  # does not raise


def test_lack_of_memory_is_known_from_other_errors() -> None:
    tf = backend.tensorflow()  # would wait for 10 s before raising this error, as in tests/cli/test_resume.py
    assert backend.is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    with pytest.raises(MemoryError) as larger:
        np.ones(1 << 48)
    assert backend.is_out_of_memory(larger.value)
    with pytest.raises(tf.errors.InvalidArgumentError) as other:
        tf.matmul([[1.0]], [[1.0, 2.0], [1.0, 2.0]])
    assert not backend.is_out_of_memory(other.value)


def test_devices_name_the_processor() -> None:
    assert any(device.startswith(("cpu", "gpu")) for device in backend.list_devices())


def test_keras_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert backend.keras_home() == tmp_path
    monkeypatch.setenv("KERAS_HOME", "~/nets")
    assert backend.keras_home() == Path.home() / "nets"
    monkeypatch.delenv("KERAS_HOME")
    assert backend.keras_home() == Path.home() / ".keras"


PENDING = """
import sys
from sightline import backend
from sightline._keras import accelerators
accelerators.may_have_accelerator = lambda: {accelerated}
backend.configure("tensorflow", None, memory_growth=True, threads=3)
print("keras" in sys.modules, backend.is_pending())
print(backend.get_threads(), backend.name())
print(*backend.list_devices(), backend.has_accelerator())
print(backend.keras().backend.backend(), backend.is_pending())
print(backend.tensorflow().config.threading.get_intra_op_parallelism_threads(), backend.get_threads())
"""


@pytest.mark.parametrize("accelerated", [False, True])
def test_tensorflow_on_a_cpu_alone_is_imported_when_it_is_first_used(accelerated: bool) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "TF_", "XLA_"))}
    completed = subprocess.run(
        [sys.executable, "-c", PENDING.format(accelerated=accelerated)],
        capture_output=True, text=True, check=True, env=environment | {"KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert completed.stdout.splitlines() == [
        f"{accelerated} {not accelerated}", "3 tensorflow", "cpu:0 False", "tensorflow False", "3 3",
    ]  # fmt: skip
