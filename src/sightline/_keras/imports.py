"""Import Keras, TensorFlow, ONNX Runtime, OpenVINO and others, quietly and without telemetry; no other module does.

After an import, only variables of `ENVIRONMENT` have changed: ``sys.modules``, ``sys.meta_path``, warning filters and
standard error are restored, and all features of Keras work.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from io import StringIO
from types import ModuleType
from typing import Any

from sightline import process
from sightline._keras import accelerators
from sightline.errors import require
from sightline.escaping import printable

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "which GPUs to use, if `device.gpus` says so; read when a backend first looks for GPUs",
    "CUBLAS_WORKSPACE_CONFIG": "deterministic matrix products, if `device.deterministic` is set; read by cuBLAS",
    "HF_HUB_DISABLE_TELEMETRY": "no telemetry; huggingface_hub reads it on import",
    "JAX_COMPILATION_CACHE_DIR": "compiled programs are kept in the cache folder; read when JAX is imported",
    "JAX_COMPILATION_CACHE_MAX_SIZE": "their limit, in bytes; read when JAX is imported",
    "JAX_PLATFORMS": "the CPU, if every GPU is hidden, where JAX for CUDA would fail; read when it is imported",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "keep also what compiles in less than a second; read by JAX likewise",
    "MLFLOW_DISABLE_TELEMETRY": "no telemetry; MLflow reads it on import",
    "NVIDIA_TF32_OVERRIDE": "no TF32, once ONNX Runtime uses a GPU; read by cuBLAS and cuDNN when they start",
    "ORT_DISABLE_TELEMETRY": "no telemetry; ONNX Runtime 1.31 reads it on import and again in each new session",
    "RAY_BACKEND_LOG_LEVEL": "no messages of Ray's C++ code on the command line's standard error",
    "RAY_USAGE_STATS_ENABLED": "no telemetry; read by the processes of a Ray cluster when they start",
    "TF_CPP_MIN_LOG_LEVEL": "no notes of TensorFlow's C++ code, which it writes until the process ends",
    "TF_ENABLE_ONEDNN_OPTS": "oneDNN also without AVX-512: training is 1.8 times as fast (benchmarks/README.md)",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "where memory is short, TensorFlow keeps none that it does not use",
    "TF_FORCE_GPU_ALLOW_GROWTH": "`device.memory_growth`; read by TensorFlow when it first uses a GPU",
    "WANDB_ERROR_REPORTING": "no reports of wandb's own errors to its makers; read by each run",
    "XLA_FLAGS": "deterministic operations on a GPU, if `device.deterministic` is set; read by JAX",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "`device.memory_growth`; read by JAX when it first uses a GPU",
}
"""The environment variables that Sightline sets unless they are already set, with the reasons."""

_LAZY_MODULES = frozenset({"keras.src.visualization", "keras.visualization", "keras.wrappers"})
_OLD_INTERFACES = frozenset({"tensorflow._api.v2.compat.v1", "tensorflow._api.v2.compat.v2"})
"""Other TensorFlow APIs, an eighth of its import time; nothing here uses them."""

_hidden_stderr: int | None = None  # a copy of standard error while it is suppressed


def set_variable(name: str, value: str, *, override: bool = False) -> None:
    """Set an environment variable of `ENVIRONMENT`; an existing value is kept unless `override` is true."""
    if name not in ENVIRONMENT:
        raise KeyError(name)
    if override or name not in os.environ:
        os.environ[name] = value


def set_determinism_flags() -> None:
    """Set the variables that make JAX and the CUDA libraries deterministic; they read them when they start."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_gpu_deterministic_ops" not in flags:
        set_variable("XLA_FLAGS", f"{flags} --xla_gpu_deterministic_ops=true".strip(), override=True)
    set_variable("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def import_keras(backend: str) -> ModuleType:
    """Import Keras on the backend of this name, and return it.

    Keras imports scikit-learn and matplotlib for ``keras.wrappers`` and ``keras.visualization``, which nothing here
    uses and which take half of its import time (4 of 8 s on two cores): they are executed on first use instead.
    ``KERAS_BACKEND`` is set only during the import. In the command line's own process, TensorFlow logs only errors, its
    older APIs are executed on first use, and two packages appear to be missing that Keras would import only to check
    whether a value has one of their types: pandas (80 MB) and, on other backends, TensorFlow (400 MB and seconds,
    whenever a layer is saved or copied).
    """
    _prepare_tensorflow()
    if backend == "jax" and accelerators.hides_gpus() and accelerators.has_jax_for_cuda():
        set_variable("JAX_PLATFORMS", "cpu")
    hidden = {"pandas"} - sys.modules.keys() if process.is_claimed() else set()
    lazily = _import_lazily(_LAZY_MODULES | (_OLD_INTERFACES if process.is_claimed() else frozenset()))
    with _set_temporarily("KERAS_BACKEND", backend), lazily, _hide_modules(hidden), _import_quietly():
        keras = importlib.import_module("keras")
    if process.is_claimed():
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        lazy_modules = sys.modules.get("keras.src.utils.module_utils")
        if lazy_modules is not None and backend != "tensorflow" and "tensorflow" not in sys.modules:
            lazy_modules.tensorflow._available = False
    return keras


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Make `import keras` in third-party packages use this backend in the block, and TensorFlow log only errors.

    Standard error is suppressed, as in our own imports.
    """
    _prepare_tensorflow()
    with _set_temporarily("KERAS_BACKEND", backend), suppress_stderr():
        yield


def import_tensorflow(purpose: str) -> Any:
    """Import TensorFlow, without Keras, and return it.

    Raises `MissingExtraError`, whose message starts with `purpose`, if it is not installed.
    """
    if "tensorflow" in sys.modules:
        return require("tensorflow", purpose)
    _prepare_tensorflow()
    with _import_quietly():
        return require("tensorflow", purpose)


def import_onnx_runtime(module: str = "onnxruntime") -> Any:
    """Import and return ONNX Runtime or a `module` of it, without telemetry; keeps ``ORT_DISABLE_TELEMETRY`` if set.

    Otherwise it would write a device id below the home folder and resolve its telemetry host.
    """
    set_variable("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module(module)


def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's packages, if installed, for ONNX Runtime's next session.

    From then on, CUDA's libraries compute float32 products without TF32 in this process. ONNX Runtime's own option does
    not affect the convolutions of cuDNN 9 (https://github.com/microsoft/onnxruntime/pull/19470).
    """
    set_variable("NVIDIA_TF32_OVERRIDE", "0")
    onnxruntime = import_onnx_runtime()
    with redirect_stdout(StringIO()):  # it prints what it cannot load; creating the session reports that anyway
        onnxruntime.preload_dlls()


def import_openvino() -> Any:
    """Import and return OpenVINO, without its telemetry unless the telemetry is already imported.

    Otherwise it would send an event and write ``~/intel`` if its package `openvino_telemetry` is installed.
    Raises `MissingExtraError` if it is not installed.
    """
    telemetry = "openvino_telemetry"
    hides_telemetry = telemetry not in sys.modules
    if hides_telemetry:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # makes its import fail, so that OpenVINO uses a stub
    try:
        package = require("openvino", "The format openvino")
        importlib.import_module("openvino.tools.ovc.convert_impl")  # otherwise imported later, with telemetry
    finally:
        if hides_telemetry:
            del sys.modules[telemetry]
    return package


def import_huggingface_hub(purpose: str) -> Any:
    """Import and return huggingface_hub without its telemetry.

    Raises `MissingExtraError`, whose message starts with `purpose`, if it is not installed.
    """
    set_variable("HF_HUB_DISABLE_TELEMETRY", "1")
    return require("huggingface_hub", purpose)


def import_mlflow() -> Any:
    """Import and return MLflow without its telemetry; in the command line's own process, it logs only warnings.

    Raises `MissingExtraError` if it is not installed.
    """
    set_variable("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = require("mlflow", "train.track=mlflow")
    if process.is_claimed():
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def import_wandb() -> Any:
    """Import and return wandb without its error reporting; raises `MissingExtraError` if it is not installed."""
    set_variable("WANDB_ERROR_REPORTING", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return require("wandb", "train.track=wandb")


def import_tensorboard(module: str) -> Any:
    """Import and return a `module` of TensorBoard for writing local files.

    In the command line's own process, the S3 client, whose import takes 0.1 s, appears to be missing. Raises
    `MissingExtraError` if TensorBoard is not installed.
    """
    hidden = {"boto3"} - sys.modules.keys() if process.is_claimed() else set()
    with _hide_modules(hidden):
        return require(f"tensorboard.{module}", "train.track=tensorboard")


def import_ray(purpose: str, module: str = "ray") -> Any:
    """Import and return Ray or a `module` of it, without telemetry, for this process and any cluster that it starts.

    In the command line's own process, Ray prints only errors. Raises `MissingExtraError`, whose message starts with
    `purpose`, if it is not installed.
    """
    set_variable("RAY_USAGE_STATS_ENABLED", "0")
    if process.is_claimed():
        set_variable("RAY_BACKEND_LOG_LEVEL", "fatal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        imported = require(module, purpose)
    if process.is_claimed():
        for handler in logging.getLogger(module).handlers:
            if not hasattr(handler, "baseFilename"):  # leave out the session's log file
                handler.setLevel(logging.ERROR)
    return imported


@contextmanager
def suppress_stderr() -> Iterator[None]:
    """Suppress standard error in the block, and show it afterwards only if the block raises an exception.

    TensorFlow's C++ code logs notes about its build at startup, regardless of the log level.
    """
    global _hidden_stderr  # noqa: PLW0603  # process-wide state
    sys.stderr.flush()
    saved_descriptor, before = os.dup(2), _hidden_stderr
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        _hidden_stderr = saved_descriptor if before is None else before
        try:
            yield
        except BaseException:
            buffer.seek(0)
            with suppress(OSError):  # a failed write must not hide the original exception
                os.write(
                    saved_descriptor, printable(buffer.read().decode(errors="backslashreplace"), keep="\n").encode()
                )
            raise
        finally:
            os.dup2(saved_descriptor, 2)
            _hidden_stderr = before
            os.close(saved_descriptor)


def find_stderr() -> int:
    """Return the real descriptor of standard error, even within `suppress_stderr`, for a last message."""
    return 2 if _hidden_stderr is None else _hidden_stderr


@contextmanager
def _import_quietly() -> Iterator[None]:
    with suppress_stderr(), warnings.catch_warnings(), _pause_garbage_collection():
        warnings.simplefilter("ignore")  # deprecations inside the frameworks' own imports
        yield


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Pause garbage collection in the block: an import creates a million permanent objects; scanning them takes 15%.

    In the command line's own process, later collections do not scan them at all. In other processes they are moved to
    the oldest generation, unless the process has frozen objects itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if process.is_claimed():
            gc.freeze()
        elif gc.get_freeze_count() == 0:
            gc.freeze()
            gc.unfreeze()  # moves them to the oldest generation
        if was_enabled:
            gc.enable()


@contextmanager
def _set_temporarily(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class _LazyFinder(MetaPathFinder):
    """Finds some modules as Python does, but delays executing each until the first use of one of its attributes."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self.names else None
        if spec is not None and spec.loader is not None:
            spec.loader = _LazyLoader(spec.loader)
        return spec


class _LazyLoader(Loader):
    """Loads a `_LazyModule`.

    `importlib.util.LazyLoader` refuses modules that replace themselves, as TensorFlow's older APIs do.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _LazyModule


class _LazyModule(ModuleType):
    """A module that is executed on the first access to a missing attribute."""

    def __getattr__(self, name: str) -> Any:
        self._execute()
        return getattr(self, name)

    def __dir__(self) -> list[str]:
        self._execute()
        return dir(self)

    def _execute(self) -> None:
        object.__setattr__(self, "__class__", ModuleType)
        spec = self.__spec__
        assert spec is not None
        assert isinstance(spec.loader, _LazyLoader)
        spec.loader = self.__loader__ = spec.loader.loader
        spec.loader.exec_module(self)


@contextmanager
def _hide_modules(names: Collection[str]) -> Iterator[None]:
    """Make importing any of these modules fail in the block."""
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def _import_lazily(names: frozenset[str]) -> Iterator[None]:
    finder = _LazyFinder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _prepare_tensorflow() -> None:
    set_variable("TF_ENABLE_ONEDNN_OPTS", "1")
    set_variable("TF_CPP_MIN_LOG_LEVEL", "3")
    if process.is_memory_short():
        set_variable("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
