"""Pretrained weights: where their file lies on this machine, or a sentence that says where to put it."""

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

TOP = 6  # arrays at most that a published top has: three dense layers


def local_file(entry: Entry, alpha: float | None, size: int) -> Path | None:
    """Return the ImageNet weights' file of `entry` if it lies in Keras' cache here, else None."""
    if entry.pretrained is None:
        return None
    names = _names(entry.pretrained, entry.alpha if alpha is None else alpha, size)
    path = backend.keras_home() / "models" / names[0]
    return path if path.is_file() else None


def local_alpha(entry: Entry, size: int) -> float | None:
    """Return the greatest width multiplier whose weights lie here, None where there are none."""
    if entry.pretrained is None:
        return None
    here = [a for a in entry.pretrained.alphas if local_file(entry, a, size) is not None]
    return max(here, default=None)


WORDS = frozenset({"none", "auto", "imagenet"})
"""What the setting ``model.weights`` may be besides the path of a file."""


def find(entry: Entry, wanted: str, alpha: float | None, height: int, width: int) -> Path | None:
    """Return the file of the weights that the setting `wanted` asks for; None for random ones.

    ``none``; ``auto``: ImageNet's where they lie here; ``imagenet``: those, fetched if need be; else a file's path.
    Raises `ModelError` with the file's name, its address and where to put it if it cannot be had.
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
                f"There is no weights file {path}: give none, imagenet or the path of a .h5 or .keras file."
            )
        return path
    if entry.pretrained is None:
        raise UsageError(f"{entry.name} has no ImageNet weights: set model.weights to none or to a file.")
    return local_file(entry, alpha, size) or _fetch(entry, entry.pretrained, alpha, size)


def _fetch(entry: Entry, known: Pretrained, alpha: float | None, size: int) -> Path:
    alpha = entry.alpha if alpha is None else alpha
    if known.alphas and alpha not in known.alphas:
        choices = ", ".join(map(str, known.alphas))
        raise UsageError(f"{entry.name} has ImageNet weights for alpha {choices} only, not {alpha}.")
    name, url = _names(known, alpha, size)
    keras: Any = backend.keras()
    home = backend.keras_home()
    try:
        with redirect_stdout(sys.stderr):  # Keras prints its progress where our results go
            return Path(keras.utils.get_file(name, url, cache_dir=str(home), cache_subdir="models"))
    except Exception as error:
        raise ModelError(
            f"The ImageNet weights of {entry.name} are not on this machine and could not be fetched ({error}). "
            f"Download {url} elsewhere and put it at {home / 'models' / name}, or use --weights none."
        ) from error


def _names(known: Pretrained, alpha: float | None, size: int) -> tuple[str, str]:
    tenths = "" if alpha is None else "1_0" if alpha == 1 else f"{10 * alpha:.1f}".replace(".", "_")
    fields = {"alpha": alpha, "tenths": tenths, "size": size if size in known.sizes else max(known.sizes, default=0)}
    return known.file.format(**fields), known.url.format(**fields)


def load(backbone: Sequence[Any], head: Sequence[Any], path: Path, entry: Entry) -> bool:
    """Load a weights file into the layers of a network in place; return whether its head came from the file too.

    A file in the layout that Keras publishes may end with the top, the layers for its own classes. They go into `head`
    where that has the same shapes (the network's own head, as many classes, the same picture size) and are left out
    otherwise. Raises `ModelError` if the rest does not fit.
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
            f"Expected the layers of {entry.name} without its top."
        ) from error
    return False


def _as_model(layers: Sequence[Any]) -> Any:
    return backend.keras().Model(layers[0].input, layers[-1].output)


def _fill(backbone: Sequence[Any], head: Sequence[Any], stored: list[tuple[str, list[published.Array]]]) -> bool:
    if stored[0][0].startswith("normalization"):  # EfficientNetB0's: the mean and deviation that our graph has already
        stored = stored[1:]
    arrays = [array for _, arrays in stored for array in arrays]
    wanted, further = published.variables(backbone), published.variables(head)
    if not len(wanted) <= len(arrays) <= len(wanted) + TOP:
        raise ValueError(f"the file holds {len(arrays)} arrays, the network {len(wanted)}")
    rows = [(v, published.fitted(a, v.shape)) for v, a in zip(wanted, arrays, strict=False)]
    for (variable, array), given in zip(rows, arrays, strict=False):
        if array is None:
            raise ValueError(f"{variable.path} is {tuple(variable.shape)}, in the file {given.shape}")
    top = arrays[len(wanted) :]
    whole = bool(top) and [a.shape for a in top] == [tuple(v.shape) for v in further]
    for variable, array in [*rows, *(zip(further, top, strict=True) if whole else ())]:
        backend.assign(variable, array)
    return whole
