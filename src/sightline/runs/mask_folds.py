"""Out-of-fold outputs of a segmentation model, ``eval/<split>/masks.npz``: counts and means instead of logits.

Each fold stores what its evaluation collected from the images that it held out. Logits of all pixels would take too
much space, so a fold's temperature, fitted on its own validation images, is not undone. The final model uses the median
of these temperatures.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sightline import _io, _packed
from sightline.data.masks import VOID
from sightline.data.types import Split
from sightline.errors import ModelError
from sightline.evaluation.calibration import BINS
from sightline.evaluation.mask_outputs import MaskOutputs, join_outputs
from sightline.inference.predictor import Outputs
from sightline.runs.directory import RunDirectory

PER_IMAGE = ("confusions", "boundaries", "losses", "reliability", "quality")
PER_PIXEL = ("pixel_logits", "pixel_labels", "pixel_images")
MOST = {
    "confusions": 1 << 32, "boundaries": 1 << 32, "reliability": 1 << 32,  # counts of pixels of one image
    "losses": 1e9, "quality": 1.001, "probabilities": 1.001,
}  # fmt: skip
"""The largest valid value of each array; the smallest is 0."""


def write_outputs(
    run: RunDirectory, split: Split, paths: Sequence[str], classes: tuple[str, ...], outputs: MaskOutputs
) -> None:
    """Save the outputs for the images at `paths`, without their features and true masks."""
    means, worst = outputs.outputs, outputs.worst_masks
    shape = next((mask.shape for mask in worst.values()), (0, 0))
    arrays = {name: getattr(outputs, name) for name in (*PER_IMAGE, *PER_PIXEL)} | {
        "paths": np.array(paths, np.str_),
        "classes": np.array(classes, np.str_),
        "probabilities": means.probabilities,
        "logits": means.logits,
        "worst": np.array([*worst], np.int64),
        "worst_masks": np.array([*worst.values()], np.uint8).reshape(len(worst), *shape),
    }

    def save(file: IO[bytes]) -> None:
        np.savez(file, allow_pickle=False, **arrays)

    _io.write_atomic(_get_path(run, split), save, root=run.path)


def read_outputs(
    run: RunDirectory, split: Split, classes: tuple[str, ...]
) -> tuple[tuple[str, ...], MaskOutputs] | None:
    """Return the paths of the images and the outputs for them, whose masks are empty, [N, 0, 0]; None without any.

    Raises `ModelError` if the file is damaged or has other classes.
    """
    path = _get_path(run, split)
    if not path.exists():
        return None
    try:
        with _io.open_regular(path) as file:
            arrays = _packed.load_arrays(file)
        names = tuple(arrays["classes"].tolist())
        _check_shapes(arrays, len(arrays["paths"]), len(names))
    except (OSError, ValueError, KeyError, TypeError) as error:  # TypeError: an array without dimensions
        raise ModelError(f"{path} cannot be read: {error}; train the run again with --force.") from error
    if names != classes:
        raise ModelError(f"{path} does not have the classes of its run: train it again with --force.")
    paths = tuple(map(str, arrays["paths"].tolist()))
    means = Outputs(arrays["probabilities"], arrays["logits"], np.zeros((len(paths), 0), np.float32))
    no_masks, worst = np.zeros((len(paths), 0, 0), np.uint8), zip(arrays["worst"], arrays["worst_masks"], strict=True)
    values: dict[str, Any] = {name: arrays[name] for name in (*PER_IMAGE, *PER_PIXEL)}
    return paths, MaskOutputs(means, no_masks, **values, worst_masks={int(i): mask for i, mask in worst})


def _check_shapes(arrays: dict[str, NDArray[Any]], count: int, classes: int) -> None:
    pixels, worst = len(arrays["pixel_labels"]), len(arrays["worst"])
    expected = {
        "confusions": ("i", (count, classes, classes)),
        "boundaries": ("i", (count, classes, 4)),
        "losses": ("f", (count,)),
        "reliability": ("f", (count, BINS, 3)),
        "quality": ("f", (count,)),
        "probabilities": ("f", (count, classes)),
        "logits": ("f", (count, classes)),
        "pixel_logits": ("f", (pixels, classes)),
        "pixel_labels": ("i", (pixels,)),
        "pixel_images": ("i", (pixels,)),
        "worst": ("i", (worst,)),
        "worst_masks": ("u", (worst, *arrays["worst_masks"].shape[1:3])),
    }
    for name, (kind, shape) in expected.items():
        if arrays[name].dtype.kind != kind or arrays[name].shape != shape:
            raise ValueError(f"{name} has the wrong type or shape: {arrays[name].dtype} {list(arrays[name].shape)}")
    for name, limit in (("pixel_labels", classes), ("pixel_images", count), ("worst", count)):
        if len(arrays[name]) and not 0 <= arrays[name].min() <= arrays[name].max() < limit:
            raise ValueError(f"{name} are not between 0 and {limit - 1}")
    for name, most in MOST.items():
        values = arrays[name][~np.isnan(arrays[name])] if name == "losses" else arrays[name]  # NaN: no known pixel
        if not ((values >= 0) & (values <= most)).all():
            raise ValueError(f"{name} are not between 0 and {most:,}")
    for name in ("logits", "pixel_logits"):
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} are not finite numbers")
    masks = arrays["worst_masks"]
    if masks.dtype != np.uint8 or not ((masks < classes) | (masks == VOID)).all():
        raise ValueError("worst_masks are not those of its classes")


def collect_outputs(
    folds: Sequence[RunDirectory], paths: Sequence[str], masks: NDArray[np.uint8], classes: tuple[str, ...]
) -> MaskOutputs:
    """Return the outputs for images with `masks` uint8 [N, H, W], each by the model of the fold that held it out.

    Raises `ModelError` if no fold predicted one of them.
    """
    stored = [pair for fold in folds if (pair := read_outputs(fold, "test", classes)) is not None]
    return _arrange(stored, paths, masks)


def read_collected(
    run: RunDirectory, paths: Sequence[str], masks: NDArray[np.uint8], classes: tuple[str, ...]
) -> MaskOutputs:
    """Return the outputs of `collect_outputs` as stored in the run."""
    stored = read_outputs(run, "validation", classes)
    return _arrange([] if stored is None else [stored], paths, masks)


def _arrange(
    stored: Sequence[tuple[tuple[str, ...], MaskOutputs]], paths: Sequence[str], masks: NDArray[np.uint8]
) -> MaskOutputs:
    rows = {path: row for row, path in enumerate(path for names, _ in stored for path in names)}
    missing = next((path for path in paths if path not in rows), None)
    if missing is not None:
        raise ModelError(f"There is no out-of-fold prediction for {missing}: train the run again with --force.")
    outputs = join_outputs([outputs for _, outputs in stored]).select(
        np.array([rows[path] for path in paths], np.int64)
    )
    worst = {i: mask for i, mask in outputs.worst_masks.items() if mask.shape == masks.shape[1:]}
    return replace(outputs, labels=masks, worst_masks=worst)


def find_temperature(folds: Sequence[RunDirectory]) -> float:
    """Return the median temperature of the models of the folds."""
    return statistics.median_low([float(fold.result["temperature"]) for fold in folds])


def _get_path(run: RunDirectory, split: Split) -> Path:
    return run.path / "eval" / split / "masks.npz"
