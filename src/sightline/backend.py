"""The one place that chooses Keras' backend and imports Keras.

Everything else asks `keras()`; nothing imports Keras at module level, so that help, listings and prediction from a
bundle start at once.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from sightline import process
from sightline.errors import MissingExtraError, SightlineError, UsageError, check_installed, require, suggest
from sightline.escaping import printable

Backend = Literal["tensorflow", "jax", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""In order of preference on a CPU, by measurement (see docs/architecture.md)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and the reason why it was taken."""

    name: str
    why: str


_PLUGINS = {"/dev/nvidia0": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "/dev/accel0": ("libtpu",)}  # JAX's, by device

_reasons: dict[str, str] = {}  # why the backend in use was taken, once it is


def installed() -> tuple[str, ...]:
    """Return the backends that are installed, without importing them."""
    return tuple(b for b in BACKENDS if importlib.util.find_spec(b) is not None)


def choose(wanted: str = "auto") -> Choice:
    """Decide on a backend: the one imported already, the setting, ``KERAS_BACKEND``, else the first installed.

    Raises `MissingExtraError` if none, or not the wanted one, is installed.
    """
    here = installed()
    loaded = sys.modules.get("keras")
    if loaded is not None:
        name = str(loaded.backend.backend())
        if wanted not in {"auto", name}:
            raise UsageError(f"Keras runs on {name} already in this process; start a new one for {wanted}.")
        return Choice(name, _reasons.get(name, "in use already"))
    environment = os.environ.get("KERAS_BACKEND")
    if wanted != "auto":
        choice = Choice(wanted, "set by device.backend")
    elif environment:
        choice = Choice(environment, "set by KERAS_BACKEND")
    elif "jax" in here and _accelerated_jax():
        choice = Choice("jax", "the fastest on the accelerator of this machine")
    elif here:
        choice = Choice(here[0], "the fastest on a CPU of those installed" if len(here) > 1 else "the one installed")
    else:
        raise MissingExtraError("tensorflow-cpu", "train,tensorflow", "Training")
    if choice.name not in BACKENDS:
        raise UsageError(f"There is no backend {choice.name!r} ({choice.why}).{suggest(choice.name, BACKENDS)}")
    if choice.name not in here:
        raise MissingExtraError(choice.name, f"train,{choice.name}", f"The backend {choice.name} ({choice.why})")
    return choice


def _accelerated_jax() -> bool:
    """Tell whether JAX came with support for a GPU or TPU and an NVIDIA GPU or a TPU is here, without importing it."""
    return any(
        Path(device).exists() and any(importlib.util.find_spec(plugin) for plugin in plugins)
        for device, plugins in _PLUGINS.items()
    )


def configure(
    wanted: str, gpus: Sequence[int] | None, *, memory_growth: bool, threads: int, deterministic: bool = False
) -> None:
    """Import Keras on the chosen backend, with the GPUs numbered `gpus` only (None: all, empty: none).

    `memory_growth` takes a GPU's memory as it is needed, not all at the start; `threads` sets the number of those of
    the arithmetic (0: one per core); `deterministic` refuses operations whose result changes from call to call. Raises
    `UsageError` if Keras runs already and sees other GPUs.
    """
    if gpus is not None:
        visible = ",".join(map(str, gpus)) or "-1"
        if "keras" in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") != visible:
            raise UsageError("device.gpus can only be set before Keras starts: begin a new process for other GPUs.")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", str(memory_growth).lower())
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", str(not memory_growth).lower())
    if deterministic:
        _announce_determinism()
    keras(wanted)
    set_threads(threads or process.cores())
    if deterministic:
        _demand_determinism()


def _announce_determinism() -> None:
    """Set what JAX and CUDA's libraries read when they start."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _demand_determinism() -> None:
    """Have the backend raise an error for each operation that it cannot repeat bit for bit, for this whole process."""
    name = choose().name
    if name == "tensorflow":
        tensorflow().config.experimental.enable_op_determinism()
    elif name == "torch":
        import torch

        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False


def name() -> Backend:
    """Return the backend in use, or the one that would be."""
    found: Backend = next(b for b in BACKENDS if b == choose().name)
    return found


def keras(wanted: str = "auto") -> Any:
    """Import Keras on the chosen backend, quietly, and return the module."""
    loaded = sys.modules.get("keras")
    if loaded is not None and wanted == "auto":
        return loaded
    choice = choose(wanted)
    check_installed("keras", purpose="Training")
    os.environ["KERAS_BACKEND"] = choice.name
    keep_freed_memory(choice.name)
    _prepare_tensorflow()
    with _hidden("sklearn", "matplotlib"), hushed_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the backend's own imports
        import keras as module
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it advises against tracing once for each stage
    _reasons[str(module.backend.backend())] = choice.why
    return module


@contextmanager
def hushed_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, and show it only if what runs inside fails.

    TensorFlow's C++ code writes notes about its own build while it starts, whatever the log level.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            with suppress(OSError):  # it cannot be written, and what is raised matters more
                os.write(kept, printable(held.read().decode(errors="backslashreplace"), keep="\n").encode())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _hidden(*packages: str) -> Iterator[None]:
    """Let `packages` look uninstalled for a moment, unless they are imported already.

    Keras imports scikit-learn and matplotlib for wrappers and galleries that nothing here uses: half of the time that
    its import takes (4 of 8 s on two cores). In a process whose Keras was imported so, ``keras.wrappers`` and
    ``keras.visualization`` say that the package is missing; import Keras before Sightline to use them.
    """
    absent = [name for name in packages if name not in sys.modules]
    hiding: dict[str, Any] = dict.fromkeys(absent)
    sys.modules.update(hiding)
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


def keep_freed_memory(wanted: str = "auto") -> None:
    """Do as `process.keep_freed_memory` where the backend will be TensorFlow, on a CPU; imports no backend.

    JAX and PyTorch compile and compute in threads of their own, which one arena makes queue.
    """
    with suppress(SightlineError):  # no backend is installed, or an unknown one is wanted: told where it is needed
        if choose(wanted).name == "tensorflow" and not any(Path(device).exists() for device in _PLUGINS):
            process.keep_freed_memory()


def processor() -> list[str]:
    """Return the processor's name and abilities, which decide how sums are grouped."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if found := sorted({line for line in lines if line.startswith(("model name", "flags"))}):
            return found
    return [platform.processor(), platform.machine()]


def set_threads(count: int) -> None:
    """Set the number of threads of the arithmetic; only before the first computation, and not for JAX.

    Always set, because the order in which large sums are added up depends on it: left to the backend it would be that
    of the cores at hand, and a run resumed on fewer would end with other weights.
    """
    if choose().name == "tensorflow":
        tf = tensorflow()
        try:
            tf.config.threading.set_intra_op_parallelism_threads(count)
            tf.config.threading.set_inter_op_parallelism_threads(count)
        except RuntimeError:  # already running: a second run in one process keeps the first one's threads
            return
    elif choose().name == "torch":
        import torch

        torch.set_num_threads(count)


def threads() -> int:
    """Return how many threads the backend's arithmetic uses within one operation."""
    name = choose().name
    if name == "tensorflow":
        found = tensorflow().config.threading.get_intra_op_parallelism_threads()
    elif name == "torch":
        import torch

        found = torch.get_num_threads()
    else:
        found = 0
    return int(found) or process.cores()


def assign(variable: Any, value: Any) -> None:
    """Set a Keras variable to a copy of `value`, an array or another variable of the same shape.

    JAX's arrays cannot change, so Keras lets the variable hold the very buffer that it is given, NumPy's too. A
    compiled step is given the buffers of all variables for good: of two that hold the same one, the other is left with
    a deleted array.
    """
    if name() == "jax":
        import jax

        value = jax.numpy.array(keras().ops.convert_to_tensor(value, dtype=variable.dtype), copy=True)
    variable.assign(value)


def assign_all(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Set each of `variables` to a copy of the value at its place; see `assign`."""
    for variable, value in zip(variables, values, strict=True):
        assign(variable, value)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products of float32 in float32 while the block runs.

    GPUs since NVIDIA's Ampere round the factors to 10 bits of mantissa (TF32) unless told otherwise, TPUs to 7
    (bfloat16): convolutions by default on all three backends. Probabilities then differ by 4e-4 from those of a file
    that is run in full float32. TensorFlow and PyTorch hold this for the whole process, JAX for the thread.

    A function keeps the precision that it was compiled in on TensorFlow: compile in the block what is called there, and
    call nothing there that was compiled before. Layers of a lower `dtype_policy` stay in it.
    """
    which = name()
    if which == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
        return
    restore = _refuse_tensor_float_32() if which == "tensorflow" else _refuse_reduced_products()
    try:
        yield
    finally:
        restore()


def _refuse_tensor_float_32() -> Callable[[], None]:
    """Turn TF32 off in TensorFlow; return what puts it back."""
    experimental = tensorflow().config.experimental
    kept = experimental.tensor_float_32_execution_enabled()
    experimental.enable_tensor_float_32_execution(enabled=False)
    return lambda: experimental.enable_tensor_float_32_execution(kept)


def _refuse_reduced_products() -> Callable[[], None]:
    """Turn TF32 and bfloat16 products off in PyTorch; return what puts them back.

    PyTorch has two sets of switches since 2.9, and reading the older raises once somebody used the newer.
    """
    import torch

    backends: Any = torch.backends
    try:
        matmul, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:
        switches = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
        kept = [switch.fp32_precision for switch in switches]
        for switch in switches:
            switch.fp32_precision = "ieee"

        def restore() -> None:
            for switch, precision in zip(switches, kept, strict=True):
                switch.fp32_precision = precision

        return restore

    def switch_to(precision: str, allowed: bool) -> None:  # noqa: FBT001  # as PyTorch has it
        torch.set_float32_matmul_precision(precision)
        backends.cudnn.allow_tf32 = allowed

    switch_to("highest", allowed=False)
    return lambda: switch_to(matmul, convolutions)


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of NumPy or of a backend means that memory was short; imports no backend."""
    if isinstance(error, MemoryError):
        return True
    name = type(error).__name__  # tensorflow, torch; jax and its runtime
    return name in {"ResourceExhaustedError", "OutOfMemoryError"} or (
        name in {"XlaRuntimeError", "JaxRuntimeError"} and "RESOURCE_EXHAUSTED" in str(error)
    )


def cannot_repeat(error: BaseException) -> bool:
    """Tell whether a backend raised `error` because `configure` was to have it deterministic."""
    return isinstance(error, Exception) and "determinis" in str(error) and not isinstance(error, SightlineError)


def tensorflow() -> ModuleType | Any:
    """Return TensorFlow; only where it is the backend."""
    keras()
    import tensorflow as tf

    return tf


def tensorflow_alone(purpose: str) -> Any:
    """Import TensorFlow quietly and without Keras, whatever Keras' backend is.

    Raises `MissingExtraError`, whose message starts with `purpose`, if it is not installed.
    """
    if "tensorflow" not in sys.modules:
        _prepare_tensorflow()
        with hushed_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside its own imports
            require("tensorflow", purpose)
    return require("tensorflow", purpose)


def _prepare_tensorflow() -> None:
    """Set what TensorFlow reads from the environment when it is imported."""
    # Off by default without AVX-512, where it makes training 1.8 times faster too (benchmarks/README.md).
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def devices() -> tuple[str, ...]:
    """Return the devices that the chosen backend computes on, such as ``cpu:0`` or ``gpu:0``."""
    if keras().backend.backend() == "torch":  # of which Keras keeps no list
        import torch

        return tuple(f"gpu:{i}" for i in range(torch.cuda.device_count())) or ("cpu:0",)
    return tuple(keras().distribution.list_devices())


def accelerated() -> bool:
    """Whether the backend computes on something other than the CPU."""
    return any(not device.startswith("cpu") for device in devices())


def keras_home() -> Path:
    """Return the folder in which Keras keeps data sets and weights: ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
