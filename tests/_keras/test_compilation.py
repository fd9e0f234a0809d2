"""JAX compiles less: its programs are kept on disk, and the values of new variables are drawn by few programs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from networks import make_plan
from sightline import backend
from sightline._keras import compilation
from sightline._keras.compilation import share_compiled_draws
from sightline.models.build import build_model

pytestmark = pytest.mark.backends


@pytest.mark.parametrize("name", ["GlorotUniform", "HeNormal", "RandomNormal", "Zeros", "Ones"])
def test_shared_draws_are_the_same_values(name: str) -> None:
    keras = backend.keras()
    initializer = getattr(keras.initializers, name)
    options = {} if name in {"Zeros", "Ones"} else {"seed": 5}
    for shape in ((3, 3, 3, 8), (7,), (1025, 2), (1,)):
        alone = keras.ops.convert_to_numpy(initializer(**options)(shape))
        with share_compiled_draws():
            shared = keras.ops.convert_to_numpy(initializer(**options)(shape))
        np.testing.assert_array_equal(shared, alone)
        assert shared.dtype == alone.dtype


class Programs(logging.Handler):
    """Records the names of the programs that JAX compiles."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Finished XLA compilation of "):
            self.names.append(message.split()[4])


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    if backend.name() != "jax":
        pytest.skip("only JAX compiles a program for each shape")
    import jax

    handler, logger = Programs(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield handler.names
    finally:
        logger.removeHandler(handler)


def test_few_programs_draw_the_weights_of_a_network(compiled: list[str]) -> None:
    """MobileNetV2 has weights of 25 shapes; it took a program each, and 13 for zeros and ones."""
    import jax

    jax.clear_caches()
    build_model(make_plan("mobilenetv2", side=32))
    assert 1 <= compiled.count("jit(_uniform)") <= 6
    assert compiled.count("jit(broadcast_in_dim)") <= 3


PROGRAM = """
import logging, sys
from sightline.config import DeviceConfig
from sightline.runs.environment import start_backend
start_backend(DeviceConfig(backend="jax"))
import jax
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: sum(jax.numpy.sin(x * i) @ x for i in range(40)))(jax.numpy.ones((8, 8)))
print(jax.config.jax_compilation_cache_dir, hits.count("/jax/compilation_cache/cache_hits"))
"""


def run_program(**environment: str) -> tuple[str, int]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "KERAS_BACKEND"))}
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    )
    folder, _, hits = completed.stdout.strip().rpartition(" ")
    return folder, int(hits)


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_compiled(tmp_path: Path) -> None:
    if backend.name() != "jax":
        pytest.skip("only JAX keeps what it compiles")
    ours = {"SIGHTLINE_CACHE": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    folder, hits = run_program(**ours)
    assert (Path(folder).parent, hits) == (tmp_path / "cache", 0)
    assert list(Path(folder).glob("*-cache"))
    assert run_program(**ours)[1] > 0
    theirs = str(tmp_path / "theirs")
    assert run_program(**ours, JAX_COMPILATION_CACHE_DIR=theirs)[0] == theirs


def test_nothing_is_kept_where_its_size_cannot_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compilation.keep_compiled_programs(tmp_path)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
