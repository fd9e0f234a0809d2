"""Choose the Keras backend and import Keras; no other module does either.

Other modules call `keras()`. Nothing imports Keras at module level, so that help, listings and prediction from a bundle
start fast.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from sightline import _io, plugins, process
from sightline._keras import accelerators, compilation, imports, process_state, tf32
from sightline.errors import MissingExtraError, SightlineError, UsageError, check_installed, suggest

Backend = Literal["tensorflow", "jax", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
"""The backends in order of preference on a CPU, as measured (see docs/architecture.md)."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend and the reason why it was chosen."""

    name: Backend
    reason: str


_reasons: dict[str, str] = {}  # maps the backend in use to the reason for choosing it


@dataclass(slots=True)
class _Pending:
    """The arguments of `configure` until Keras is imported: the name of the backend and its number of threads."""

    backend: str
    threads: int


_pending: _Pending | None = None
_preferred = "auto"  # the backend that the settings request, until `configure` is called
_importing = threading.RLock()  # another thread might otherwise get an incomplete module


def list_installed() -> tuple[Backend, ...]:
    """Return the installed backends, without importing them."""
    return tuple(b for b in BACKENDS if importlib.util.find_spec(b) is not None)


def choose_backend(requested: str = "auto") -> BackendChoice:
    """Choose a backend: the one already imported, the setting, ``KERAS_BACKEND``, else the first installed.

    Raises `MissingExtraError` if the backend is not installed, or none at all, and `UsageError` for one that is not in
    `BACKENDS`, or if Keras already runs on another.
    """
    loaded = sys.modules.get("keras")
    if loaded is None and _pending is not None and requested == "auto":
        requested = _pending.backend
    if loaded is not None:
        name = str(loaded.backend.backend())
        if requested not in {"auto", name}:
            raise UsageError(f"Keras already runs on {name} in this process; start a new process for {requested}.")
        return _make_choice(name, _reasons.get(name, "already in use"))
    available = list_installed()  # only now: it takes 50 ms when repeated for each variable of a network
    environment = os.environ.get("KERAS_BACKEND")
    if requested != "auto":
        choice = _make_choice(requested, "set by device.backend")
    elif environment:
        choice = _make_choice(environment, "set by KERAS_BACKEND")
    elif "jax" in available and accelerators.has_accelerated_jax():
        choice = BackendChoice("jax", "the fastest on this machine's accelerator")
    elif available:
        choice = BackendChoice(
            available[0], "the fastest on a CPU of those installed" if len(available) > 1 else "the only one installed"
        )
    else:
        raise MissingExtraError("tensorflow-cpu", "train,tensorflow", "Training")
    if choice.name not in available:
        raise MissingExtraError(choice.name, f"train,{choice.name}", f"The backend {choice.name} ({choice.reason})")
    return choice


def _make_choice(name: str, reason: str) -> BackendChoice:
    for backend in BACKENDS:
        if backend == name:
            return BackendChoice(backend, reason)
    raise UsageError(f"Unknown backend {name!r} ({reason}).{suggest(name, BACKENDS)}")


def configure(
    requested: str,
    gpus: Sequence[int] | None,
    *,
    memory_growth: bool,
    threads: int,
    deterministic: bool = False,
    program_folder: Path | None = None,
) -> None:
    """Choose the backend of Keras, with only the GPUs numbered `gpus` visible (None: all, empty: none), and import it.

    On a machine without accelerators, TensorFlow is imported only by the first call of `keras`: nothing needs it
    earlier, and images can be read until then. `memory_growth` allocates GPU memory as needed instead of all at the
    start; `threads` is the number of compute threads (0: one per core); `deterministic` makes nondeterministic
    operations raise an error. JAX caches compiled programs in a folder for this machine within `program_folder`,
    unless ``JAX_COMPILATION_CACHE_DIR`` is set. Raises `UsageError` if Keras is already running with other GPUs.
    """
    if gpus is not None:
        visible = ",".join(map(str, gpus)) or "-1"
        if "keras" in sys.modules and os.environ.get("CUDA_VISIBLE_DEVICES") != visible:
            raise UsageError("device.gpus can only be set before Keras starts: start a new process to use other GPUs.")
        imports.set_variable("CUDA_VISIBLE_DEVICES", visible, override=True)
    imports.set_variable("TF_FORCE_GPU_ALLOW_GROWTH", str(memory_growth).lower())
    imports.set_variable("XLA_PYTHON_CLIENT_PREALLOCATE", str(not memory_growth).lower())
    if deterministic:
        imports.set_determinism_flags()
    choice = choose_backend(requested)
    if program_folder is not None and choice.name == "jax":
        processor = hashlib.sha256(repr(process.describe_processor()).encode()).hexdigest()
        compilation.keep_compiled_programs(program_folder / f"jax-{processor[:8]}")
    global _pending  # noqa: PLW0603  # process-wide state
    count = threads or process.count_cores()
    if (
        "keras" not in sys.modules
        and choice.name == "tensorflow"
        and not (deterministic or accelerators.may_have_accelerator())
    ):
        check_installed("keras", purpose="Training")
        _pending = _Pending(requested, count)
        return
    keras(requested)
    set_threads(count)
    if deterministic:
        _enforce_determinism()


def prefer(requested: str) -> None:
    """Set the backend for third-party packages that import Keras before `configure` does."""
    global _preferred  # noqa: PLW0603  # process-wide state
    _preferred = requested


@contextmanager
def _prepare_plugins() -> Iterator[None]:
    choice = None
    with suppress(SightlineError):  # no backend, or Keras already runs on another: reported when it is needed
        choice = choose_backend(_preferred)
    if choice is None:
        yield
        return
    _reasons.setdefault(choice.name, choice.reason)
    with imports.use_backend(choice.name):
        yield


plugins.surround_imports(_prepare_plugins)


def is_pending() -> bool:
    """Return whether the first call of `keras` will import what `configure` has chosen."""
    return _pending is not None


def _enforce_determinism() -> None:
    """Make the backend raise an error for nondeterministic operations, in this whole process."""
    name = choose_backend().name
    if name == "tensorflow":
        tensorflow().config.experimental.enable_op_determinism()
    elif name == "torch":
        import torch

        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False


def name() -> Backend:
    """Return the backend in use, or the one that would be chosen."""
    return choose_backend().name


def keras(requested: str = "auto") -> Any:
    """Import Keras on the chosen backend, quietly, and return the module."""
    global _pending  # process-wide state
    with _importing:
        module = sys.modules.get("keras")
        if module is None or requested != "auto":
            choice = choose_backend(requested)
            check_installed("keras", purpose="Training")
            tune_malloc(choice.name)
            module = imports.import_keras(choice.name)
            _reasons[str(module.backend.backend())] = choice.reason
        if _pending is not None:
            pending, _pending = _pending, None
            set_threads(pending.threads)
    return module


def tune_malloc(requested: str = "auto") -> None:
    """Call `process_state.tune_malloc` if the backend will be TensorFlow on a CPU; imports no backend.

    JAX and PyTorch compile and compute in threads of their own, which would contend for a single arena.
    """
    with suppress(SightlineError):  # no backend, or an unknown one: reported when it is needed
        if choose_backend(requested).name == "tensorflow" and not accelerators.has_device_files():
            process_state.tune_malloc()


def set_threads(count: int) -> None:
    """Set the number of compute threads; only effective before the first computation, and not on JAX.

    Always set it, because it determines the order in which large sums are accumulated: by default it is the number of
    cores, and a run resumed on fewer cores would end with different weights.
    """
    if choose_backend().name == "tensorflow":
        tf = tensorflow()
        try:
            tf.config.threading.set_intra_op_parallelism_threads(count)
            tf.config.threading.set_inter_op_parallelism_threads(count)
        except RuntimeError:  # already running: a second run in one process keeps the thread count of the first
            return
    elif choose_backend().name == "torch":
        import torch

        torch.set_num_threads(count)


def get_threads() -> int:
    """Return the number of threads that the backend uses within one operation."""
    if _pending is not None:
        return _pending.threads
    name = choose_backend().name
    if name == "tensorflow":
        count = tensorflow().config.threading.get_intra_op_parallelism_threads()
    elif name == "torch":
        import torch

        count = torch.get_num_threads()
    else:
        count = 0
    return int(count) or process.count_cores()


def assign(variable: Any, value: Any) -> None:
    """Set a Keras variable to a copy of `value`, an array or another variable of the same shape.

    JAX arrays are immutable, so Keras stores the given buffer itself, even NumPy's. A compiled step donates the buffers
    of all variables: if two variables share one, the other is left with a deleted array.
    """
    if name() == "jax":
        import jax
        import numpy as np

        if isinstance(value, np.ndarray):  # copied on the host: JAX would compile a program for each shape
            value = jax.device_put(value.astype(jax.numpy.dtype(variable.dtype)), may_alias=False)
        else:
            value = jax.numpy.array(keras().ops.convert_to_tensor(value, dtype=variable.dtype), copy=True)
    variable.assign(value)


def assign_all(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Set each of `variables` to a copy of its value in `values`; see `assign`."""
    for variable, value in zip(variables, values, strict=True):
        assign(variable, value)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in full float32 precision in the block.

    By default, NVIDIA GPUs since Ampere round the factors to a 10-bit mantissa (TF32), and TPUs to 7 bits (bfloat16);
    all three backends do so in convolutions. Probabilities then differ by 4e-4 from those of an exported file that
    runs in full float32. The setting of JAX applies to the thread, those of the others to the whole process, as a
    `process.SharedSetting`.

    A TensorFlow function keeps the precision in effect when it was compiled: compile inside the block whatever the
    block calls. Layers with a lower-precision `dtype_policy` keep it.
    """
    if name() == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
        return
    with _NO_TF32.hold():
        yield


def _disable_tf32() -> Callable[[], None]:
    """Disable TF32 in TensorFlow or PyTorch; return a function that restores it."""
    return tf32.disable_in_tensorflow(tensorflow()) if name() == "tensorflow" else tf32.disable_in_torch()


_NO_TF32 = process.SharedSetting(_disable_tf32)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error raised by NumPy or a backend means out of memory; imports no backend."""
    if isinstance(error, MemoryError):
        return True
    name = type(error).__name__  # TensorFlow and PyTorch have their own types, JAX and its runtime do not
    return name in {"ResourceExhaustedError", "OutOfMemoryError"} or (
        name in {"XlaRuntimeError", "JaxRuntimeError"} and "RESOURCE_EXHAUSTED" in str(error)
    )


def is_nondeterminism_error(error: BaseException) -> bool:
    """Return whether a backend raised `error` because `configure` made it deterministic."""
    return isinstance(error, Exception) and "determinis" in str(error) and not isinstance(error, SightlineError)


def tensorflow() -> ModuleType | Any:
    """Return TensorFlow; call it only if TensorFlow is the backend."""
    keras()
    import tensorflow as tf

    return tf


def list_devices() -> tuple[str, ...]:
    """Return the devices that the chosen backend computes on, such as ``cpu:0`` or ``gpu:0``."""
    if _pending is not None:
        return ("cpu:0",)
    if keras().backend.backend() == "torch":  # Keras does not list its devices
        import torch

        return tuple(f"gpu:{i}" for i in range(torch.cuda.device_count())) or ("cpu:0",)
    with _explain_start():
        return tuple(keras().distribution.list_devices())


def list_local_devices() -> list[str]:
    """Return the devices of `list_devices` that belong to this host."""
    if name() != "jax":
        return list(list_devices())
    import jax

    with _explain_start():
        return [f"{device.platform}:{device.id}" for device in jax.local_devices()]


@contextmanager
def _explain_start() -> Iterator[None]:
    """Raise `UsageError` where JAX fails in the block because it cannot use a GPU that it is installed for."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if name() != "jax":
            raise
        reason = str(error).partition(" (")[0].split("\n", maxsplit=1)[0] or "it finds none of its devices"
        raise UsageError(
            f"JAX cannot start here: {reason}. Check the GPU driver with nvidia-smi, and that no other program "
            "fills its memory, or compute on the CPU: set JAX_PLATFORMS=cpu in the environment."
        ) from error


def find_compute_capability() -> tuple[int, int] | None:
    """Return the compute capability of the first GPU, such as (9, 0) for an H100; None without an NVIDIA GPU."""
    with suppress(AttributeError, IndexError, KeyError, ValueError, TypeError):
        if name() == "jax":
            import jax

            major, minor = str(jax.local_devices()[0].compute_capability).split(".")
        elif name() == "tensorflow":
            experimental = tensorflow().config.experimental
            gpu = tensorflow().config.list_physical_devices("GPU")[0]
            major, minor = experimental.get_device_details(gpu)["compute_capability"]
        else:
            import torch

            if not torch.cuda.is_available():
                return None
            major, minor = torch.cuda.get_device_capability()
        return int(major), int(minor)
    return None


def has_accelerator() -> bool:
    """Return whether the backend computes on something other than the CPU."""
    return any(not device.startswith("cpu") for device in list_devices())


def keras_home() -> Path:
    """Return the folder where Keras keeps datasets and weights: ``$KERAS_HOME`` or ``~/.keras``."""
    return _io.expand_home(os.environ.get("KERAS_HOME") or process.find_home() / ".keras")
