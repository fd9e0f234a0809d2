"""Subsets of labeled images for a learning curve: growing, nested and stratified, with the images that are held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from sightline.errors import DataError, plural
from sightline.seeding import make_generator

REPEATS = 10  # also the number of folds, if the source has no splits
SIZE_RATIO = math.sqrt(2)  # ratio of the numbers of labels at neighboring points
MIN_SIZE, MIN_SIZES, MAX_SIZES = 4, 4, 9  # labels per class in the smallest subset; limits on points of a curve


@dataclass(frozen=True, slots=True)
class Partition:
    """One repeat: the images to train on, in the order in which subsets include them, and the held-out images."""

    pool: NDArray[np.int64]
    held_out: NDArray[np.int64]


def list_strata(labels: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the rarest class of each image by its classes uint8 [N, K], and K for an image without any: int32 [N].

    Spreading each rare class evenly also spreads the common ones.

    >>> list_strata(np.array([[1, 1], [1, 0], [0, 0]], np.uint8)).tolist()
    [1, 0, 2]
    """
    ranks = np.where(labels.astype(bool), labels.sum(0, dtype=np.int64), len(labels) + 1)
    strata: NDArray[np.int32] = np.where(labels.any(1), ranks.argmin(1), labels.shape[1]).astype(np.int32)
    return strata


def draw_partitions(
    labels: NDArray[np.int32], units: NDArray[np.int64], held_out: NDArray[np.bool_] | None, seed: int
) -> list[Partition]:
    """Return the repeats: folds of the images if `held_out` is None, else orders of the images not held out.

    Subsets and folds are stratified by `labels` (int32 [N]; with several labels per image, those of `list_strata`).
    Images to train on that share a unit with one that is always held out are left out.
    """
    everything = np.arange(len(labels))
    if held_out is None:
        folds = _assign_folds(_order_units(everything, labels, units, seed, "folds"), labels)
        pairs = [(everything[folds != fold], everything[folds == fold]) for fold in range(REPEATS)]
    else:
        pool = everything[~np.isin(units, units[held_out])]
        pairs = [(pool, everything[held_out])] * REPEATS
    return [
        Partition(np.array(list(chain(*_order_units(pool, labels, units, seed, f"pool {number}"))), np.int64), test)
        for number, (pool, test) in enumerate(pairs)
        if len(test)
    ]


def _order_units(
    images: NDArray[np.int64], labels: NDArray[np.int32], units: NDArray[np.int64], seed: int, name: str
) -> list[list[int]]:
    """Return the images of each unit, in a random order in which every prefix has about the fractions of the classes.

    The first unit of each class comes first, so that every class is in every subset.
    """
    rng = make_generator(seed, "learning curve", name)
    shuffled = rng.permutation(images)
    members: dict[int, list[int]] = {}
    for image in shuffled.tolist():
        members.setdefault(int(units[image]), []).append(image)
    by_class: dict[int, list[int]] = {}
    for unit, unit_images in members.items():
        by_class.setdefault(int(np.bincount(labels[unit_images]).argmax()), []).append(unit)
    positions = {
        unit: 0.0 if number == 0 else (number + rng.random()) / len(class_units)
        for _, class_units in sorted(by_class.items())
        for number, unit in enumerate(class_units)
    }
    return [members[unit] for unit in sorted(members, key=lambda unit: (positions[unit], unit))]


def _assign_folds(ordered: Sequence[Sequence[int]], labels: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the fold of each image; units go in turn to the fold that has the fewest images of their class."""
    num_classes = int(labels.max()) + 1
    counts = np.zeros((REPEATS, num_classes))
    folds = np.empty(len(labels), np.int64)
    for unit_images in ordered:
        in_unit = np.bincount(labels[unit_images], minlength=num_classes)
        most = int(in_unit.argmax())
        fold = int(np.lexsort((counts.sum(1), counts[:, most]))[0])
        counts[fold] += in_unit
        folds[unit_images] = fold
    return folds


def list_sizes(largest: int, num_classes: int) -> tuple[int, ...]:
    """Return the numbers of labels to train with, ascending; raises `DataError` if there are too few for a curve.

    >>> list_sizes(100, 2)
    (9, 12, 18, 25, 35, 50, 71, 100)
    """
    sizes = [round(largest / SIZE_RATIO**number) for number in range(MAX_SIZES)]
    sizes = [size for size in sizes if size >= MIN_SIZE * num_classes]
    if len(sizes) < MIN_SIZES:
        needed = math.ceil(MIN_SIZE * SIZE_RATIO ** (MIN_SIZES - 1) / (1 - 1 / REPEATS))
        raise DataError(
            f"There are too few images for a learning curve: {plural(largest, 'image')} to train on in "
            f"{plural(num_classes, 'class', 'classes')}. Label at least {needed} of each class, and run this again."
        )
    return tuple(sizes[::-1])
