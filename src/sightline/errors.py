"""The exceptions that Sightline raises.

    SightlineError              exit code   meaning
    |-- UsageError              2           an invalid option, setting or argument
    |   `-- ConfigError         2           an unknown key or a value out of range in a configuration
    |-- DataError               2           the images cannot be used as they are
    |   |-- ImageError          2           one image cannot be read (carries the reason)
    |   `-- MissingImagesError  2           images of a run are missing or have changed
    |-- ModelError              2           a model, its weights or a run cannot be built or loaded
    |-- OutputError             2           an output path is missing, in use or not writable
    |-- InsufficientMemoryError 2           the settings need more memory than is available
    |-- ProcessError            2           a training subprocess ended without a result
    |-- HostError               2           a host of a distributed training was lost
    |-- MissingExtraError       2           an optional package is not installed (names its install line)
    |-- PluginError             2           a package that extends Sightline cannot be imported or used
    |-- DivergedError           1           the training loss became NaN or infinite
    `-- Interrupted             130         interrupted by the user; progress is saved

A message says what happened, where, what was expected and what to do next, in one or two sentences.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from typing import Any


class SightlineError(Exception):
    """Base class of all errors that the user can fix; the command line prints them without a traceback.

    A `message` names options of the command line. `str` names arguments instead, once a Python function has raised it.
    """

    exit_code = 2
    names_arguments = False

    @property
    def message(self) -> str:
        """The message as the command line prints it."""
        return super().__str__()

    def __str__(self) -> str:
        return name_arguments(self.message) if self.names_arguments else self.message

    def __reduce__(self) -> tuple[Any, ...]:  # makes every subclass picklable, whatever its constructor accepts
        return _restore_error, (type(self), self.args, self.__dict__)


def _restore_error(kind: type[SightlineError], args: tuple[Any, ...], state: dict[str, Any]) -> SightlineError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def name_arguments(message: str) -> str:
    """Return a message with Python arguments in place of the options of the same names, except in commands.

    >>> name_arguments("Replace it with --force, use --no-cache, or see `sightline help --all`.")
    'Replace it with `force`, use `cache=False`, or see `sightline help --all`.'
    >>> name_arguments("Choose one with --set input.page=N, or use --folds 5.")
    'Choose one with `set=["input.page=N"]`, or use `folds=5`.'
    >>> name_arguments("Read them with --set data.class_level=1 --set data.root=FOLDER.")
    'Read them with `set=["data.class_level=1", "data.root=FOLDER"]`.'
    >>> name_arguments(
    ...     "Train with --set 'split.group=folder', choose --set data.class_level, or --allow split-folders."
    ... )
    'Train with `set=["split.group=folder"]`, choose `set=["data.class_level=..."]`, or `allow=["split-folders"]`.'
    >>> name_arguments("No images in photos--old: use --target-precision 0.9.")
    'No images in photos--old: use `target_precision=0.9`.'
    """

    def replace(match: re.Match[str]) -> str:
        option, assignments, key, number, kind = match.groups()
        if option is None:
            return match[0]
        name = option.replace("-", "_")
        if assignments:
            values = '", "'.join(assignments.split(f" --{option} "))
            return f'`{name}=["{values}"]`'
        if key or kind:
            return f'`{name}=["{f"{key}=..." if key else kind}"]`'
        if number:
            return f"`{name}={number}`"
        return f"`{name.removeprefix('no_')}=False`" if name.startswith("no_") else f"`{name}`"

    assignment = r"[a-z_.]+=(?:\.\.\.|[^\s`']*[^\s`'.,;:)])"
    value = (
        rf"({assignment}(?: --\1 {assignment})*)|([a-z_]+(?:\.[a-z_]+)+)\b(?!=|\.\w)|(\d+(?:\.\d+)?|N)\b"
        r"|(?<=allow )([a-z]+(?:-[a-z]+)+)"
    )
    message = re.sub(r"(--set )'([a-z_.]+=[^\s'\"]+)'", r"\1\2", message)  # a shell needs the quotes
    return re.sub(rf"`[^`]*`|(?<![\w/.-])--([a-z][a-z-]*)(?: (?:{value}))?", replace, message)


class UsageError(SightlineError):
    """An option, setting or argument is invalid."""


class ConfigError(UsageError):
    """A configuration has an unknown key, or a value of the wrong type or out of range."""


class DataError(SightlineError):
    """The images cannot be used as they are."""


class ImageError(DataError):
    """One image cannot be read; the message is the bare reason, without the path."""


class MissingImagesError(DataError):
    """Images that a run was trained, validated or tested on are missing or have changed."""


class ModelError(SightlineError):
    """A model, its weights or a run cannot be built or loaded."""


class OutputError(SightlineError):
    """An output path is missing, in use or not writable."""


class InsufficientMemoryError(SightlineError):
    """The settings need more memory than the machine or its device has."""


class ProcessError(SightlineError):
    """A training subprocess ended without a result, e.g. because it was killed."""


class HostError(SightlineError):
    """A host of a distributed training has exited or cannot be reached."""


class MissingExtraError(SightlineError):
    """An optional package is not installed; `extra` is Sightline's extra that installs it, "" if there is none."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        advice = suggest_install(extra) if extra else f"pip install {package}"
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed: {advice}")
        self.package = package


class PluginError(SightlineError):
    """A package that extends Sightline cannot be imported, or a function that it registered returns the wrong type."""


class DivergedError(SightlineError):
    """The training loss became NaN or infinite; `batch` contains the paths of that step's images."""

    exit_code = 1

    def __init__(self, message: str, batch: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.batch = batch


class Interrupted(SightlineError):
    """Interrupted by the user (Ctrl-C, SIGTERM or SIGHUP); progress is saved."""

    exit_code = 130


def suggest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest valid name, after `prefix`, else the list of valid names.

    >>> suggest("epoch", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    >>> suggest("zzz", ["b", "a"])
    ' Valid names: a, b.'
    """
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {prefix + near[0]!r}?" if near else f" Valid names: {', '.join(names)}."


def suggest_install(extras: str) -> str:
    """Return how to install `extras`, from a path: the project called ``sightline`` on PyPI is a different one.

    >>> suggest_install("train,jax")
    'pip install ".[train,jax]" in the checkout of Sightline, or with the path of its wheel instead of the dot'
    """
    return f'pip install ".[{extras}]" in the checkout of Sightline, or with the path of its wheel instead of the dot'


EXTRAS = {
    "adlfs": ("adlfs", "remote"),
    "ai_edge_litert": ("ai-edge-litert", "export"),
    "cleanlab": ("cleanlab", "labels"),
    "aiohttp": ("aiohttp", "remote"),
    "fsspec": ("fsspec", "remote"),
    "gcsfs": ("gcsfs", "remote"),
    "huggingface_hub": ("huggingface-hub", "hub"),
    "keras": ("keras", "train,tensorflow"),
    "matplotlib": ("matplotlib", "train"),
    "mlflow": ("mlflow-skinny", "mlflow"),
    "onnx": ("onnx", "train"),
    "openvino": ("openvino", "export"),
    "optuna": ("optuna", "sweep"),
    "pandas": ("pandas", "pandas"),
    "prometheus_client": ("prometheus-client", "serve"),
    "pyarrow": ("pyarrow", "parquet"),
    "python_multipart": ("python-multipart", "serve"),
    "ray": ("ray", "ray"),
    "s3fs": ("s3fs", "remote"),
    "safetensors": ("safetensors", "export"),
    "scipy": ("scipy", "train"),
    "segno": ("segno", "studio"),
    "sklearn": ("scikit-learn", "train"),
    "starlette": ("starlette", "serve"),
    "tensorboard": ("tensorboard", "train"),
    "tensorflow": ("tensorflow", "tensorflow"),
    "tomlkit": ("tomlkit", "train"),
    "uvicorn": ("uvicorn", "serve"),
    "wandb": ("wandb", "wandb"),
}
"""Maps the import name of each optional package to its name on PyPI and the extras that install it (with a backend)."""


def require(module: str, purpose: str) -> Any:
    """Import `module`, such as ``"sklearn.datasets"``, and return it.

    Raises `MissingExtraError`, whose message starts with `purpose`, if its package or a dependency of it is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        absent = (error.name or package).partition(".")[0]
        name, extra = EXTRAS[package]
        raise MissingExtraError(name if absent == package else absent, extra, purpose) from error


def check_installed(*packages: str, purpose: str) -> None:
    """Raise `MissingExtraError` if one of `packages` is not installed; cheap, as it imports none of them.

    >>> check_installed("optuna", purpose="A sweep")
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            name, extra = EXTRAS.get(package, (package.replace("_", "-"), ""))
            raise MissingExtraError(name, extra, purpose)


def plural(count: int, noun: str, plural_noun: str = "") -> str:
    """Return ``"1 image"``, ``"2 images"``, with thousands separators; `plural_noun` is an irregular plural.

    >>> plural(1, "image"), plural(1200, "image"), plural(2, "class", "classes")
    ('1 image', '1,200 images', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def list_some(names: Sequence[str], most: int = 12) -> str:
    """Return at most `most` names for a message.

    >>> list_some(["ant", "bee", "cat"], 2), list_some(["ant", "bee"], 2)
    ('ant, bee, ...', 'ant, bee')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
