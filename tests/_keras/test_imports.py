"""Frameworks and runtimes are imported in one place, quietly, and leave the process as it was."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import skip_without
from sightline._keras import imports

SOURCE = Path(__file__).resolve().parents[2] / "src" / "sightline"


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
    assert places == set(), "_keras/imports.py imports them by name"


def test_sightline_load_imports_no_runtime(tmp_path: Path) -> None:
    code = """
import sys, sightline
sightline.load
print([m for m in ("onnxruntime", "openvino", "asyncio") if m in sys.modules])  # asyncio takes 10 ms, for Ray alone
"""
    assert run(code, tmp_path / "home") == "[]\n"


def test_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    imports.import_onnx_runtime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    assert imports.import_onnx_runtime().__name__ == "onnxruntime"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.installed
def test_openvino_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    skip_without("openvino")
    code = """
import sys
from sightline._keras import imports
openvino = imports.import_openvino()
print([name for name in sys.modules if name.startswith("openvino_telemetry")])
import openvino_telemetry  # it can still be imported afterwards
"""
    assert run(code, tmp_path / "home") == "[]\n"
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_waits_for_the_end_of_an_import_and_the_collector_stays_as_it_was(
    enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keras.py").write_text("import gc\nenabled = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        keras = imports.import_keras("numpy")
        assert (keras.enabled, gc.isenabled()) == (False, enabled)
    finally:
        (gc.enable if before else gc.disable)()
        sys.modules.pop("keras")


@pytest.mark.parametrize(
    ("before", "expected"), [("", "old, 0 frozen"), ("process.claim()", "frozen"), ("gc.freeze()", "collected")]
)
def test_the_command_line_alone_freezes_what_an_import_made(before: str, expected: str, tmp_path: Path) -> None:
    """A program has no objects frozen, or those that it froze itself."""
    (tmp_path / "keras.py").write_text("made = [[] for _ in range(1000)]\n")
    code = f"""
import gc, sys
sys.path.insert(0, {str(tmp_path)!r})
from sightline import process
from sightline._keras import imports
{before}
made = imports.import_keras("numpy").made
if not any(value is made for value in gc.get_objects()):
    print("frozen")
elif any(value is made for value in gc.get_objects(generation=2)):
    print(f"old, {{gc.get_freeze_count()}} frozen")
elif gc.get_freeze_count():
    print("collected")
"""
    assert run(code, tmp_path / "home") == f"{expected}\n"


def test_what_a_failing_start_wrote_is_shown() -> None:
    code = """
import os
from sightline._keras import imports
with imports.suppress_stderr():
    os.write(2, b"noise")
try:
    with imports.suppress_stderr():
        os.write(2, b"the reason")
        raise ImportError
except ImportError:
    os.write(2, b" and on")
"""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert completed.stderr == b"the reason and on"


KERAS = """
import sys
from sightline._keras import imports
keras = imports.import_keras("tensorflow")
assert not any(isinstance(finder, imports._LazyFinder) for finder in sys.meta_path)
print(sorted({"sklearn", "matplotlib"} & sys.modules.keys()))
import keras.visualization, keras.wrappers
print(keras.visualization.plot_image_gallery.__name__)
from sklearn.base import ClassifierMixin
print(issubclass(keras.wrappers.SKLearnClassifier, ClassifierMixin))
"""


@pytest.mark.slow
def test_what_keras_imports_for_its_wrappers_is_imported_when_they_are_used(tmp_path: Path) -> None:
    """Importing scikit-learn and matplotlib takes as long as importing Keras."""
    assert run(KERAS, tmp_path / "home").splitlines() == ["[]", "plot_image_gallery", "True"]


@pytest.mark.parametrize(("before", "expected"), [("", "True None"), ("process.claim()", "False False")])
def test_the_command_line_alone_spares_itself_what_keras_only_compares_types_with(
    before: str, expected: str, tmp_path: Path
) -> None:
    utilities = tmp_path / "keras" / "src" / "utils"
    utilities.mkdir(parents=True)
    (tmp_path / "pandas.py").touch()
    look = "try:\n    import pandas\nexcept ImportError:\n    pandas = None\n"
    (tmp_path / "keras" / "__init__.py").write_text(f"import keras.src.utils.module_utils\n{look}")
    (utilities / "module_utils.py").write_text("class tensorflow:\n    _available = None\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from sightline import process
from sightline._keras import imports
{before}
keras = imports.import_keras("jax")
print(keras.pandas is not None, keras.src.utils.module_utils.tensorflow._available)
import pandas
"""
    assert run(code, tmp_path / "home") == f"{expected}\n"


def test_only_listed_variables_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError, match="KERAS_HOME"):
        imports.set_variable("KERAS_HOME", "here")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    imports.set_variable("TF_CPP_MIN_LOG_LEVEL", "3")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0", "the user's own"


def test_older_interfaces_of_tensorflow_are_executed_on_first_use_in_the_command_line(tmp_path: Path) -> None:
    """TensorBoard reads its files through them. They put another module in their place as they are executed."""
    skip_without("tensorflow")
    code = """
import sys
from sightline import process
from sightline._keras import imports
process.claim()
imports.import_keras("tensorflow")
import tensorflow as tf
assert "tensorflow._api.v2.compat.v1.io" not in sys.modules
assert not hasattr(tf.compat.v1, "no_such_name")
print(tf.compat.v1.io.tf_record_iterator.__name__, "Session" in dir(tf.compat.v1), tf.compat.v2.constant(3).numpy())
"""
    assert run(code, tmp_path / "home") == "tf_record_iterator True 3\n"
