"""Pretrained weights: find, download and load them, or explain where to get them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sightline import _io, backend
from sightline._keras.loading import explain_load_error
from sightline.errors import MissingExtraError, ModelError, UsageError
from sightline.models import keras_file, keras_h5, torch_file
from sightline.models.entry import ModelEntry, PackagedWeights, PretrainedWeights

GRAY_LAYER = "gray_to_color"  # makes color images of grayscale ones, for weights that are for color images
MAX_TOP_ARRAYS = 6  # limit on arrays in a published top: three dense layers


def find_cached_file(entry: ModelEntry, alpha: float | None, size: int) -> Path | None:
    """Return the ImageNet weights file of `entry` in an installed package or Keras' cache; None if there is none."""
    if entry.pretrained is None:
        return None
    if isinstance(entry.pretrained, PackagedWeights):
        return _find_packaged_file(entry.pretrained)
    file_and_url = _format_file_and_url(entry.pretrained, entry.alpha if alpha is None else alpha, size)
    path = backend.keras_home() / "models" / file_and_url[0]
    return path if path.is_file() else None


def _find_packaged_file(weights: PackagedWeights) -> Path | None:
    spec = find_spec(weights.import_package)  # finds the package without running it
    folders = spec.submodule_search_locations if spec is not None else None
    paths = (Path(folder, weights.file) for folder in folders or ())
    return next((path for path in paths if path.is_file()), None)


def find_cached_alpha(entry: ModelEntry, size: int) -> float | None:
    """Return the largest width multiplier with cached weights; None if there is none."""
    if not isinstance(entry.pretrained, PretrainedWeights):
        return None
    cached_alphas = [a for a in entry.pretrained.alphas if find_cached_file(entry, a, size) is not None]
    return max(cached_alphas, default=None)


WEIGHT_CHOICES = frozenset({"none", "auto", "imagenet"})
"""Values of the setting ``model.weights`` that are not paths."""


def find_weights(entry: ModelEntry, setting: str, alpha: float | None, height: int, width: int) -> Path | None:
    """Return the weights file for `setting`, the setting ``model.weights``; None for random weights.

    ``none``: random; ``auto``: ImageNet weights if they are installed or cached, else random; ``imagenet``: ImageNet
    weights, downloaded if they are published as a file; anything else is a path. Raises `ModelError` if there is no
    such file; if a download fails, the message contains the URL and where to put the file.
    """
    size = height if height == width else 0
    if setting == "none":
        return None
    if setting == "auto":
        return find_cached_file(entry, alpha, size)
    if setting != "imagenet":
        path = _io.expand_home(setting)
        if not setting:
            raise ModelError("model.weights is empty: use none, auto, imagenet or the path of a .h5 or .keras file.")
        if not path.is_file():
            file = path / "model.keras"
            hint = f" Those of the run are in {file}." if file.is_file() else ""
            raise ModelError(
                f"There is no weights file {path}: use none, auto, imagenet or the path of a .h5 or .keras file.{hint}"
            )
        return path
    if entry.pretrained is None:
        raise UsageError(f"{entry.name} has no ImageNet weights: set model.weights to none or to the path of a file.")
    if (cached := find_cached_file(entry, alpha, size)) is not None:
        return cached
    if isinstance(entry.pretrained, PackagedWeights):
        package, extra = entry.pretrained.distribution, entry.pretrained.extra
        raise MissingExtraError(package, extra, f"Starting from the ImageNet weights of {entry.name}")
    return _download(entry, entry.pretrained, alpha, size)


def _download(entry: ModelEntry, pretrained: PretrainedWeights, alpha: float | None, size: int) -> Path:
    alpha = entry.alpha if alpha is None else alpha
    if pretrained.alphas and alpha not in pretrained.alphas:
        choices = ", ".join(map(str, pretrained.alphas))
        raise UsageError(f"{entry.name} has no ImageNet weights for model.alpha={alpha}: choose one of {choices}.")
    name, url = _format_file_and_url(pretrained, alpha, size)
    keras: Any = backend.keras()
    home = backend.keras_home()
    temporary_name = _io.temporary_path(Path(name)).name  # the process may be killed during the download
    try:
        with redirect_stdout(sys.stderr):  # Keras prints its progress to stdout, which is reserved for results
            path = Path(keras.utils.get_file(temporary_name, url, cache_dir=str(home), cache_subdir="models"))
        return path.replace(path.with_name(name))
    except Exception as error:
        raise ModelError(
            f"The ImageNet weights of {entry.name} are not cached and could not be downloaded ({error}). "
            f"Download {url} on another machine and save it as {home / 'models' / name}, or use --weights none."
        ) from error


def _format_file_and_url(pretrained: PretrainedWeights, alpha: float | None, size: int) -> tuple[str, str]:
    tenths = "" if alpha is None else "1_0" if alpha == 1 else f"{10 * alpha:.1f}".replace(".", "_")
    fields = {
        "alpha": alpha,
        "tenths": tenths,
        "size": size if size in pretrained.sizes else max(pretrained.sizes, default=0),
    }
    return pretrained.file.format(**fields), pretrained.url.format(**fields)


def load_weights(backbone: Sequence[Any], head: Sequence[Any], path: Path, entry: ModelEntry) -> bool:
    """Load a weights file into the layers of a model in place; return whether the head was loaded too.

    A file published for Keras may include the top, the layers for its own classes. They are loaded into `head` if the
    shapes match (the model's default head, the same number of classes and image size) and ignored otherwise. Raises
    `ModelError` if the other weights do not fit.
    """
    try:
        stored_layers, head_layers = _read_layers(path, entry), head if _may_include_head(entry) else ()
        if stored_layers is not None:
            return _assign_arrays(backbone, head_layers, stored_layers)
        convolutions = keras_h5.count_convolutions(_shapes([*backbone, *head]))
        with warnings.catch_warnings():  # Keras finds the layers in `layers`, but misses its own lists by depth
            warnings.filterwarnings("ignore", "Skipping nested container", UserWarning)
            _load_with_keras(_build_submodel(backbone), path, entry, convolutions)
    except Exception as error:
        reason = explain_load_error(error).rstrip(".")
        raise ModelError(
            f"The weights in {path} do not fit {entry.name}: {reason}. "
            f"Expected the layers of {entry.name} without the top."
        ) from error
    return False


def are_for_color(path: Path) -> bool:
    """Return whether the weights of a file are for color images, as all are but those of a grayscale ``.keras`` file.

    Raises `ModelError` for a damaged ``.keras`` file.
    """
    if path.suffix != ".keras":
        return True
    with keras_file.open_keras_file(path) as name:
        layers = keras_file.read_config(name).get("layers", [])
    with suppress(KeyError, IndexError, TypeError):  # no network of Sightline
        is_gray: bool = layers[0]["config"]["batch_shape"][-1] == 1
        return not is_gray or GRAY_LAYER in [layer["name"] for layer in layers]
    return True


def _read_layers(path: Path, entry: ModelEntry) -> list[tuple[str, list[keras_h5.Array]]] | None:
    """Return the arrays of each layer in file order; None for a file of Keras 3."""
    if isinstance(entry.pretrained, PackagedWeights) and path.suffix == ".pth":
        return torch_file.read_layers(path, entry.pretrained.sha256)
    return keras_h5.read_h5_layers(path)


def _shapes(layers: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in keras_h5.list_variables(layers)]


def _load_with_keras(model: Any, path: Path, entry: ModelEntry, convolutions: int) -> None:
    """Load a file of Keras 3, which Keras reads under a name of the checked file.

    Keras ignores parts of such a file that `model` does not have, such as the top or a decoder. Raises `ValueError` if
    the file has more convolutions than the whole network `entry`, unless its network name is the same: such a file
    belongs to a deeper network, whose first layers alone are of little value.
    """
    if path.suffix == ".keras":
        with keras_file.open_keras_file(path) as name:
            if keras_file.read_config(name).get("name") != entry.network_name:
                _check_depth(keras_file.read_shapes(name), convolutions)
            keras_file.load_weights(model, name)
    elif path.suffix == ".h5":
        with _io.open_regular(path) as file, _io.name_open_file(file, path) as name:
            keras_h5.read_h5_layers(name)  # the check
            _check_depth(keras_h5.read_shapes(name), convolutions)
            model.load_weights(str(name))
    else:
        raise ValueError("it is neither a .h5 nor a .keras file")


def _check_depth(shapes: Sequence[tuple[int, ...]], convolutions: int) -> None:
    if (stored := keras_h5.count_convolutions(shapes)) > convolutions:
        raise ValueError(f"the file has {stored} convolutions, the network {convolutions}")


def _may_include_head(entry: ModelEntry) -> bool:
    weights = entry.pretrained
    return isinstance(weights, PackagedWeights) or (weights is not None and weights.includes_head)


def _build_submodel(layers: Sequence[Any]) -> Any:
    return backend.keras().Model(layers[0].input, layers[-1].output)


def _assign_arrays(
    backbone: Sequence[Any], head: Sequence[Any], stored_layers: list[tuple[str, list[keras_h5.Array]]]
) -> bool:
    if stored_layers[0][0].startswith("normalization"):  # EfficientNetB0: our graph normalizes already
        stored_layers = stored_layers[1:]
    arrays = [array for _, arrays in stored_layers for array in arrays]
    backbone_variables, head_variables = keras_h5.list_variables(backbone), keras_h5.list_variables(head)
    if not len(backbone_variables) <= len(arrays) <= len(backbone_variables) + MAX_TOP_ARRAYS:
        raise ValueError(f"the file has {len(arrays)} arrays, the model needs {len(backbone_variables)}")
    pairs = [(v, keras_h5.match_shape(a, v.shape)) for v, a in zip(backbone_variables, arrays, strict=False)]
    for (variable, array), stored_array in zip(pairs, arrays, strict=False):
        if array is None:
            raise ValueError(f"{variable.path} has shape {tuple(variable.shape)}, but {stored_array.shape} in the file")
    head_arrays = arrays[len(backbone_variables) :]
    head_fits = bool(head_arrays) and [a.shape for a in head_arrays] == [tuple(v.shape) for v in head_variables]
    for variable, array in [*pairs, *(zip(head_variables, head_arrays, strict=True) if head_fits else ())]:
        backend.assign(variable, array)
    return head_fits
