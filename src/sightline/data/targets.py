"""What the label of an image says: the classes that it names, and the array that a network learns from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SEPARATOR = ";"
"""Between the classes in the label of an image that has several."""


class Targets(Protocol):
    """How a task reads labels. An `ImageRecord` holds a label as text, the same in every file that records it."""

    @property
    def allows_several(self) -> bool:
        """Whether an image may have several classes, or none."""

    @property
    def are_paths(self) -> bool:
        """Whether each class is a leaf of a tree, named by its path; see `data.class_tree`."""

    @property
    def are_masks(self) -> bool:
        """Whether the target of an image is its mask, uint8 [H, W], in place of what `encode` makes of its label."""

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the classes that a label names."""

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[Any]:
        """Return the targets of N labels, an array [N, ...]; every class that they name is one of `classes`."""


class ClassTargets:
    """A label is the name of one class; targets are class indices, int32 [N]."""

    allows_several = False
    are_masks = False
    are_paths = False

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the label itself."""
        return (label,)

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.int32]:
        """Return the index of each label in `classes`, int32 [N].

        >>> ClassTargets().encode(["dog", "cat"], ["cat", "dog"]).tolist()
        [1, 0]
        """
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[label] for label in labels], np.int32)


class PathTargets(ClassTargets):
    """A label is the path of one class in a tree; targets are the indices of the classes, its leaves, int32 [N]."""

    are_paths = True


class LabelSetTargets:
    """A label is the names of any number of classes, sorted, joined by `SEPARATOR`; targets are uint8 [N, K]."""

    allows_several = True
    are_masks = False
    are_paths = False

    def list_classes(self, label: str) -> tuple[str, ...]:
        """Return the classes; none for an empty label.

        >>> LabelSetTargets().list_classes("car;tree"), LabelSetTargets().list_classes("")
        (('car', 'tree'), ())
        """
        return tuple(name for name in label.split(SEPARATOR) if name)

    def encode(self, labels: Sequence[str], classes: Sequence[str]) -> NDArray[np.uint8]:
        """Return 1 for each of `classes` that a label names, else 0: uint8 [N, K].

        >>> LabelSetTargets().encode(["b", "", "a;b"], ["a", "b"]).tolist()
        [[0, 1], [0, 0], [1, 1]]
        """
        index = {name: k for k, name in enumerate(classes)}
        targets = np.zeros((len(labels), len(classes)), np.uint8)
        for row, label in zip(targets, labels, strict=True):
            row[[index[name] for name in self.list_classes(label)]] = 1
        return targets


class MaskTargets(LabelSetTargets):
    """A label is the classes in the mask of an image, and the target the mask; see `data.masks.load_masks`."""

    are_masks = True


CLASS_TARGETS, CLASS_PATHS, LABEL_SETS, MASKS = ClassTargets(), PathTargets(), LabelSetTargets(), MaskTargets()


def join_classes(names: Iterable[str]) -> str:
    """Return the label of an image that has these classes, as `LabelSetTargets` reads it.

    >>> join_classes(["tree", "car", "tree"])
    'car;tree'
    """
    return SEPARATOR.join(sorted(set(names)))
