"""Pretrained weights: where their file lies on this machine, or a sentence that says where to put it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from sightline import backend
from sightline.errors import ModelError, UsageError
from sightline.models.registry import Entry, Pretrained


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
    fields = {"alpha": alpha, "size": size if size in known.sizes else max(known.sizes, default=0)}
    return known.file.format(**fields), known.url.format(**fields)


def load(model: Any, path: Path, name: str) -> None:
    """Load a weights file into `model` in place; raises `ModelError` if it does not fit."""
    try:
        model.load_weights(str(path))
    except Exception as error:
        reason = (str(error).splitlines()[0] if str(error) else type(error).__name__).rstrip(".")
        raise ModelError(
            f"The weights in {path} do not fit {name}: {reason}. Expected the layers of {name} without its top."
        ) from error
