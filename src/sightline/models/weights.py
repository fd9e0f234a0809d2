"""Pretrained weights: find, download and load them, or explain where to put the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sightline import backend
from sightline.errors import ModelError, UsageError
from sightline.models import published
from sightline.models.registry import Entry, Pretrained

TOP = 6  # maximum number of arrays in a published top: three dense layers


def local_file(entry: Entry, alpha: float | None, size: int) -> Path | None:
    """Return the ImageNet weights file of `entry` if Keras' cache has it, else None."""
    if entry.pretrained is None:
        return None
    names = _names(entry.pretrained, entry.alpha if alpha is None else alpha, size)
    path = backend.keras_home() / "models" / names[0]
    return path if path.is_file() else None


def local_alpha(entry: Entry, size: int) -> float | None:
    """Return the largest width multiplier whose weights are cached, None if there are none."""
    if entry.pretrained is None:
        return None
    here = [a for a in entry.pretrained.alphas if local_file(entry, a, size) is not None]
    return max(here, default=None)


WORDS = frozenset({"none", "auto", "imagenet"})
"""Values of the setting ``model.weights`` that are not paths."""


def find(entry: Entry, wanted: str, alpha: float | None, height: int, width: int) -> Path | None:
    """Return the weights file for the setting ``model.weights``, given as `wanted`; None for random weights.

    ``none``: random; ``auto``: ImageNet weights if they are cached, else random; ``imagenet``: ImageNet weights,
    downloaded if necessary; anything else is a path. Raises `ModelError` if there is no such file; if a download fails,
    the message has its URL and where to put the file.
    """
    size = height if height == width else 0
    if wanted == "none":
        return None
    if wanted == "auto":
        return local_file(entry, alpha, size)
    if wanted != "imagenet":
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise ModelError(
                f"There is no weights file {path}: use none, auto, imagenet or the path of a .h5 or .keras file."
            )
        return path
    if entry.pretrained is None:
        raise UsageError(f"{entry.name} has no ImageNet weights: set model.weights to none or to the path of a file.")
    return local_file(entry, alpha, size) or _fetch(entry, entry.pretrained, alpha, size)


def _fetch(entry: Entry, known: Pretrained, alpha: float | None, size: int) -> Path:
    alpha = entry.alpha if alpha is None else alpha
    if known.alphas and alpha not in known.alphas:
        choices = ", ".join(map(str, known.alphas))
        raise UsageError(f"{entry.name} has no ImageNet weights for model.alpha={alpha}: choose one of {choices}.")
    name, url = _names(known, alpha, size)
    keras: Any = backend.keras()
    home = backend.keras_home()
    try:
        with redirect_stdout(sys.stderr):  # Keras prints its progress to stdout, which is for results
            return Path(keras.utils.get_file(name, url, cache_dir=str(home), cache_subdir="models"))
    except Exception as error:
        raise ModelError(
            f"The ImageNet weights of {entry.name} are not cached and could not be downloaded ({error}). "
            f"Download {url} on another machine and save it as {home / 'models' / name}, or use --weights none."
        ) from error


def _names(known: Pretrained, alpha: float | None, size: int) -> tuple[str, str]:
    tenths = "" if alpha is None else "1_0" if alpha == 1 else f"{10 * alpha:.1f}".replace(".", "_")
    fields = {"alpha": alpha, "tenths": tenths, "size": size if size in known.sizes else max(known.sizes, default=0)}
    return known.file.format(**fields), known.url.format(**fields)


def load(backbone: Sequence[Any], head: Sequence[Any], path: Path, entry: Entry) -> bool:
    """Load a weights file into the layers of a model in place; return whether the head was loaded too.

    A file published for Keras may include the top: the layers for its own classes. They are loaded into `head` if the
    shapes match (the model's default head, as many classes, the same image size) and ignored otherwise. Raises
    `ModelError` if the other weights do not fit.
    """
    try:
        stored = published.read(path)
        if stored is not None:
            return _fill(backbone, head if entry.pretrained and entry.pretrained.top else (), stored)
        _as_model(backbone).load_weights(str(path))
    except Exception as error:
        reason = (str(error).splitlines()[0] if str(error) else type(error).__name__).rstrip(".")
        raise ModelError(
            f"The weights in {path} do not fit {entry.name}: {reason}. "
            f"Expected the layers of {entry.name} without the top."
        ) from error
    return False


def _as_model(layers: Sequence[Any]) -> Any:
    return backend.keras().Model(layers[0].input, layers[-1].output)


def _fill(backbone: Sequence[Any], head: Sequence[Any], stored: list[tuple[str, list[published.Array]]]) -> bool:
    if stored[0][0].startswith("normalization"):  # EfficientNetB0: our graph normalizes already
        stored = stored[1:]
    arrays = [array for _, arrays in stored for array in arrays]
    wanted, further = published.variables(backbone), published.variables(head)
    if not len(wanted) <= len(arrays) <= len(wanted) + TOP:
        raise ValueError(f"the file has {len(arrays)} arrays, the model needs {len(wanted)}")
    rows = [(v, published.fitted(a, v.shape)) for v, a in zip(wanted, arrays, strict=False)]
    for (variable, array), given in zip(rows, arrays, strict=False):
        if array is None:
            raise ValueError(f"{variable.path} has shape {tuple(variable.shape)}, but {given.shape} in the file")
    top = arrays[len(wanted) :]
    whole = bool(top) and [a.shape for a in top] == [tuple(v.shape) for v in further]
    for variable, array in [*rows, *(zip(further, top, strict=True) if whole else ())]:
        backend.assign(variable, array)
    return whole
