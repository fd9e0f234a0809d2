"""What the images of an evaluation have to do with those that the model was trained on, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # annotations only: the help must not wait for NumPy
    from sightline.records import Evaluation, Leaked, Missing, Overlap


def cautions(found: Evaluation) -> Iterator[str]:
    """Yield a line for each reason to read a metric with care; none where there is none."""
    if found.overlap is not None:
        yield from _overlap(found.overlap)
    if found.missing is not None:
        yield _missing(found.missing)
    if found.added:
        yield f"{found.added} images were added since training and belong to no split: name their folder to evaluate on"
    if found.leaked is not None:
        yield leaked(found.leaked)


def leaked(value: Leaked) -> str:
    """Return the metrics without the images that are in an earlier split too."""
    which = _kinds(value.identical, value.near)
    start = f"{len(value.paths)} of these images are in an earlier split too ({which}); "
    other = value.without
    if other is None:
        return f"{start}there are no others"
    low, high = other.accuracy_interval.low, other.accuracy_interval.high
    return (
        f"{start}accuracy {other.accuracy:.4f} (95% interval {low:.4f} to {high:.4f}) on the {other.count} others, "
        f"loss {other.loss:.4f}"
    )


def _missing(value: Missing) -> str:
    return (
        f"{len(value.images)} of the {value.total} images of this split are not evaluated: "
        f"{len(value.images) - value.changed} missing, {value.changed} changed since training; "
        "the run keeps its metrics of all"
    )


def _overlap(value: Overlap) -> Iterator[str]:
    if value.identical is None:
        yield "this model does not know its training images: none of them could be left out"
        return
    if value.count:
        which = _kinds(len(value.identical), len(value.near or ()))
        count = f"{value.count} images that the model was trained or validated on"
        yield (
            f"TRAINING IMAGES INCLUDED: {count} ({which}) are part of this; it is not what new images will give"
            if value.included
            else f"{count} were left out ({which}); --include-training takes them in"
        )
    if value.near is None:
        yield "near duplicates of the training images were not looked for: there are too many images"


def _kinds(identical: int, near: int) -> str:
    return f"{identical} identical, {near} near duplicates"
